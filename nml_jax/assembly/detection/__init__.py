"""Trained detectors and what they are applied to."""
