"""Does NMTune go together with methods against wrong downstream labels? The papers' last combination.

    python -m nml_jax.main --config=configs/studies/noisy_downstream.py:digits

0, 10, 20 and 40 % of the downstream training labels are wrong, on top of the noise in pre-training. Every head is
trained on all rows and without the suspects, the rows whose labels are likely wrong. Published (arXiv 2403.06869):
NMTune stays above the probe. Generalised cross-entropy, which the paper combines it with, is not here yet.
"""

from ml_collections import ConfigDict

from configs.studies import twins


def get_config(twin: str = "digits") -> ConfigDict:
    config = twins.make_twin(twin, "noisy_downstream")
    config.sweep.noise = (0.0, 0.3)
    config.tune.noises = (0.0, 0.1, 0.2, 0.4)
    config.tune.suspects = "drop"
    return config.lock()
