"""Arithmetic in float32 that keeps more than float32 does, for devices without float64."""
