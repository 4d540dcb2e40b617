"""See what label noise in pre-training does to features, on scikit-learn's digits, in three minutes on a CPU.

    python -m nml_jax.main --config=configs/digits.py

A small ResNet learns the digits 0 to 4 with five shares of wrong labels and three seeds each. The downstream tests are
the digits 5 to 9 (in-domain) and the same images shifted, noisy, inverted, rotated and blurred (out-of-domain).
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.name = "digits"
    config.sweep.noise = (0.0, 0.05, 0.1, 0.2, 0.3)
    config.sweep.seed = (0, 1, 2)

    config.data.source = "digits"
    config.data.classes = (0, 1, 2, 3, 4)
    config.data.validation = 0.2
    config.data.image_size = 8

    config.augment.crop = "none"
    config.augment.flip = 0.0

    config.model.name = "resnet18"
    config.model.stem = "small"
    config.model.width = 16
    config.model.blocks = (1, 1, 1)
    config.model.mean = (0.5, 0.5, 0.5)
    config.model.std = (0.5, 0.5, 0.5)

    config.optimizer.lr = 3e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_epochs = 2.0

    config.train.batch = 64
    config.train.epochs = 20.0

    config.runtime.threads = 0
    config.runtime.log_every = 50
    config.runtime.eval_every = 4.0
    config.runtime.save_every = 10.0

    config.downstream.tasks = ("digits",)

    config.tune.methods = ("linear", "lbfgs", "mlp", "nmtune")
    config.tune.epochs = 20
    config.tune.standardize = True  # a linear probe on raw features is a weak opponent
    return config.lock()
