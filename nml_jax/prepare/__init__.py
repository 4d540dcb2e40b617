"""Builders of prepared datasets. They run once, before any training."""
