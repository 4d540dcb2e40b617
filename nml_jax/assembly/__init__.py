"""From a config to objects: encoder, data with noise, evaluators, feature sets."""
