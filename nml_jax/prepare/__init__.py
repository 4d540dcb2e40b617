"""What runs once, before: builders of prepared datasets."""
