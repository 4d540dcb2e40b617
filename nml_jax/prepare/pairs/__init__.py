"""Image-text pairs become a prepared dataset."""
