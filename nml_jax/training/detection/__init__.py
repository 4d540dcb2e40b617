"""Detectors: the program that trains them, and what is saved of them."""
