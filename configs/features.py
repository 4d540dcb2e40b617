"""Which head to put on features that somebody else has computed, and how sure that is: in minutes on a CPU.

    python -m nml_jax.main --config=configs/features.py --config.features.train=train.npz \
        --config.features.test=test.npz --config.features.ood=other_domain.npz

Linear probe (by gradient and by L-BFGS), MLP and NMTune (both presets) on the rows of `train`, five seeds; each is
scored on every file of `test` (in-domain) and `ood` (out-of-domain). A seed decides the validation part, the
initialisation and the order, and without a test file which 30 % of the training file are tested on. Every method
chooses among three settings: what is trained by gradient among learning rates, the L-BFGS probe among penalties.
The report says which method to use, which of the heads in runs/features/seed=*/heads that is, and the command that
applies it: `python -m nml_jax.predict HEAD FEATURES`.

Files: .npz, .npy pairs ("X.npy,y.npy"), .safetensors, .csv and .parquet; several test files by ";".
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.name = "features"
    config.stages = ("features", "tune", "diagnose", "report")
    config.sweep.noise = ()
    config.sweep.seed = (0, 1, 2, 3, 4)

    config.tune.methods = ("lbfgs", "linear", "mlp", "nmtune")
    config.tune.standardize = True  # a probe on raw features is a weak opponent
    config.tune.steps = 300  # of each of 4 trainings per method and seed; the probe by L-BFGS is solved to the end
    config.tune.lrs = (0.01, 0.003, 0.001)
    config.tune.weight_decays = (1e-4,)  # in so few steps another one makes no difference
    config.tune.cs = (3e-3, 0.03, 0.3)
    config.tune.alphas = (10.0, 100.0, 1000.0)
    config.tune.ks = (1, 5, 20)
    return config.lock()
