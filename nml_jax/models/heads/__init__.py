"""Heads on features."""
