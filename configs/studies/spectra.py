"""Do the singular values of the features explain what noise does? The papers' figure 5.

    python -m nml_jax.main --config=configs/studies/spectra.py:digits

Published (arXiv 2309.17002 and 2403.06869): the entropy SVE rises with noise and the share of the largest singular
value falls; out-of-domain scores fall as LSVR rises. The last is from figures, and the sources disagree on LSVR's
direction.

The digits took 84 s of CPU time; on a GPU it was not run.
"""

from ml_collections import ConfigDict

from configs.studies import twins


def get_config(twin: str = "digits") -> ConfigDict:
    config = twins.make_twin(twin, "spectra")
    config.tune.methods = ("lbfgs",)
    return config.lock()
