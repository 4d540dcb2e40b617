"""NMTune, its relatives and plain probes as a scikit-learn classifier on features."""

from nml_jax.tuning.classifier.arguments import METHODS as METHODS
from nml_jax.tuning.classifier.estimator import NMTuneClassifier as NMTuneClassifier
