"""Find the best head for features that you already have, and how sure that choice is, in minutes on a CPU.

    python -m nml_jax.main --config=configs/features.py --config.features.train=train.npz \
        --config.features.test=test.npz --config.features.ood=other_domain.npz

It trains a linear probe (by L-BFGS), an MLP and NMTune (both presets) on the rows of `train` with five
seeds, and scores each on every file of `test` (in-domain) and `ood` (out-of-domain). The seed decides the validation
part, the initialisation and the order; without a test file, also which 30 % of the training file are the test rows.
Every method chooses among three settings: learning rates if it is trained by gradient, penalties for the L-BFGS probe.
The report says which method to use, which head in runs/features/seed=*/heads that is, and the command that applies it:
`python -m nml_jax.predict HEAD FEATURES`.

Settings are chosen once per method, on one split, and shared by the seeds if there is a test file. One at the edge of
its grid is compared with one beyond it. Heads are then trained again on all training rows, and calibrated. Training
starts from the L-BFGS probe and stops when validation no longer improves. `--config=configs/features.py:quick` is the
first part alone: the tuned probe, spectra, separability and baselines, in a minute.

`--config=configs/features.py:regression` is for labels that are numbers to be predicted, such as ratings. A ridge
regression takes the place of the L-BFGS probe, and R² that of the accuracy, or what `--config.tune.metric` names.

Files may be .npz, .npy pairs ("X.npy,y.npy"), .safetensors, .csv and .parquet. Separate several test files by ";".
"""

from ml_collections import ConfigDict

from configs import common


def get_config(part: str = "") -> ConfigDict:
    if part not in ("", "quick", "regression"):
        raise ValueError(f"there is no part {part!r}; give configs/features.py, with :quick or with :regression")
    config = common.get_config()
    config.name = "features"
    config.stages = ("features", "tune", "diagnose", "report")
    config.sweep.noise = ()
    config.sweep.seed = (0, 1, 2, 3, 4)

    set_heads(config.tune)
    config.diagnose.start = "probe"
    if part == "regression":
        config.name = "features_regression"
        config.features.regression = True
        config.tune.methods = ("ridge", "mlp", "nmtune")
    if part == "quick":
        config.name = "features_quick"
        config.stages = ("features", "tune", "diagnose", "report")
        config.sweep.seed = (0,)
        config.tune.methods = ("lbfgs",)
        config.diagnose.folds = 0
    return config.lock()


def set_heads(tune: ConfigDict) -> None:
    """Set which heads are compared on frozen features, and how they are trained: measured, see docs/benchmarks.md."""
    tune.methods = ("lbfgs", "mlp", "nmtune")
    tune.standardize = True  # a probe on raw features is a weak opponent
    tune.start = "probe"
    tune.batch = 128
    tune.epochs = 60  # the budget of each training: so many epochs,
    tune.steps = 3000  # and so many steps, but not of the L-BFGS probe
    tune.patience = 6
    tune.halving = True
    tune.shared = True
    tune.widen = True
    tune.calibrate = True  # accuracy chooses the penalty, which says nothing about the scale of logits
    tune.width = 0  # chosen by rows and features; 4 is the papers'
    tune.lrs = (1e-3, 3e-4, 1e-4)  # from the probe, larger ones lose accuracy in other domains
    tune.weight_decays = (1e-4,)  # others make no difference in so few steps
    tune.cs = (1e-3, 0.01, 0.1)
    tune.alphas = (10.0, 100.0, 1000.0)
    tune.ks = (1, 5, 20)
