"""Image decoding, transforms and augmentation."""
