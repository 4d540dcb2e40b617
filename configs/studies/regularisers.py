"""Which of NMTune's terms, and of its rivals, does what, under one budget?

    python -m nml_jax.main --config=configs/studies/regularisers.py:digits

NMTune as in the paper and as released, each of its terms alone, SKD, FGS and LGM, against an MLP of the same size.
Published: each is above the MLP; SKD, FGS and LGM are our reading of abstracts (docs/method.md).

The digits took 60 s of CPU time after spectra, whose runs it shares; on a GPU it was not run.
"""

from ml_collections import ConfigDict

from configs.studies import twins


def get_config(twin: str = "digits") -> ConfigDict:
    config = twins.make_twin(twin, "regularisers")
    config.sweep.noise = (0.0, 0.3)
    config.tune.methods = ("lbfgs", "mlp", "nmtune", "skd", "fgs", "lgm")
    config.tune.presets = ("paper", "code", "mse", "cov", "svd")
    return config.lock()
