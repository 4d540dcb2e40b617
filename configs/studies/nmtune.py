"""Does NMTune repair what noise has done? The papers' figures on mitigation: scores and spectra, before and after.

    python -m nml_jax.main --config=configs/studies/nmtune.py:digits

Published (arXiv 2309.17002 and 2403.06869): NMTune repairs a part of the damage, and is above the linear probe and an
MLP of the same size, in-domain and out-of-domain. So a gain is claimed at every rate above 0, where there is damage;
that of clean encoders stands in figure and table. (Both compare with a probe that is not tuned; here it is.)

The digits took 50 s of CPU time after spectra, whose runs it shares; on a GPU it was not run.
"""

from ml_collections import ConfigDict

from configs.studies import twins


def get_config(twin: str = "digits") -> ConfigDict:
    config = twins.make_twin(twin, "nmtune")
    config.tune.methods = ("lbfgs", "mlp", "nmtune")
    config.tune.presets = ("paper", "code")
    return config.lock()
