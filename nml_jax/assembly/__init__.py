"""Build objects from a config: the encoder, noisy data, evaluators and feature sets."""
