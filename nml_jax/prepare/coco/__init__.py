"""Prepare detection data in COCO's format."""
