"""Heads on features, put together from the config: what they are trained on, their scores, files and cost."""
