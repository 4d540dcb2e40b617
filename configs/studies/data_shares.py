"""Does it matter how many downstream rows there are? The papers' figure 3.

    python -m nml_jax.main --config=configs/studies/data_shares.py:digits

Published (arXiv 2309.17002): the same picture at 10, 25, 50, 75 and 100 % of the downstream training rows.

The digits took 38 s of CPU time after spectra, whose runs it shares; on a GPU it was not run.
"""

from ml_collections import ConfigDict

from configs.studies import twins


def get_config(twin: str = "digits") -> ConfigDict:
    config = twins.make_twin(twin, "data_shares")
    config.sweep.noise = (0.0, 0.1, 0.3)
    config.tune.methods = ("lbfgs",)
    config.tune.shares = (0.1, 0.25, 0.5, 0.75, 1.0)
    return config.lock()
