"""Find the best head for features that you already have, and how sure that choice is, in minutes on a CPU.

    python -m nml_jax.main --config=configs/features.py --config.features.train=train.npz \
        --config.features.test=test.npz --config.features.ood=other_domain.npz

It trains a linear probe (by gradient and by L-BFGS), an MLP and NMTune (both presets) on the rows of `train` with five
seeds, and scores each on every file of `test` (in-domain) and `ood` (out-of-domain). The seed decides the validation
part, the initialisation and the order; without a test file, also which 30 % of the training file are the test rows.
Every method chooses among three settings: learning rates if it is trained by gradient, penalties for the L-BFGS probe.
The report says which method to use, which head in runs/features/seed=*/heads that is, and the command that applies it:
`python -m nml_jax.predict HEAD FEATURES`.

Files may be .npz, .npy pairs ("X.npy,y.npy"), .safetensors, .csv and .parquet. Separate several test files by ";".
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
    config.tune.steps = 300  # limits each of 4 trainings per method and seed, but not the L-BFGS probe
    config.tune.lrs = (0.01, 0.003, 0.001)
    config.tune.weight_decays = (1e-4,)  # others make no difference in so few steps
    config.tune.cs = (3e-3, 0.03, 0.3)
    config.tune.alphas = (10.0, 100.0, 1000.0)
    config.tune.ks = (1, 5, 20)
    return config.lock()
