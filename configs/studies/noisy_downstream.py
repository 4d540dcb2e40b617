"""Does NMTune go together with methods against wrong downstream labels? The papers' last combination.

    python -m nml_jax.main --config=configs/studies/noisy_downstream.py:digits

0, 10, 20 and 40 % of the downstream training labels are wrong, on top of the noise in pre-training. Every head is
trained on all rows and without the suspects, the rows whose labels are likely wrong; probe and NMTune are there with
the cross-entropy and with the generalised one (GCE), and encoders are tuned on the same wrong labels. Published (arXiv
2403.06869): NMTune stays above the probe, also together with GCE.

The digits took 10 CPU minutes after spectra, whose runs it shares; on a GPU it was not run.
"""

from ml_collections import ConfigDict

from configs.studies import twins


def get_config(twin: str = "digits") -> ConfigDict:
    config = twins.make_twin(twin, "noisy_downstream")
    config.sweep.noise = (0.0, 0.3)
    config.sweep.seed = config.sweep.seed[:5]  # every encoder is tuned on four sets of labels
    twins.tune_encoders(config)
    config.tune.methods = ("lbfgs", "nmtune", "linear_gce", "nmtune_gce")
    config.tune.noises = config.finetune.noises = (0.0, 0.1, 0.2, 0.4)
    config.tune.suspects = "drop"
    return config.lock()
