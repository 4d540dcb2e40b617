"""Compare LoRA and full fine-tuning of encoders pre-trained on noisy labels, on scikit-learn's digits.

    python -m nml_jax.main --config=configs/finetune_digits.py

The pre-training is that of configs/digits.py, with 0 and 30 % wrong labels and three seeds. On the digits 5 to 9 it
compares a linear probe and NMTune on frozen features, LoRA of rank 4 on every convolution, and full fine-tuning. The
last two run with and without NMTune's covariance and singular-value terms on the encoder's features. All have the same
number of epochs. Fine-tuning starts from a probe, so the WiSE-FT curve does, too. Tests are in-domain and on five
shifts of the images.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    with config.unlocked():
        config.name = "finetune_digits"
        config.stages = ("pretrain", "extract", "tune", "finetune", "report")
        config.sweep.noise = (0.0, 0.3)

        config.tune.methods = ("linear", "nmtune")
        config.tune.presets = ("paper",)
        config.tune.epochs = 10

        config.finetune.epochs = 10.0
        config.finetune.lrs = (1e-3, 1e-2)
        config.finetune.head_init = "probe"
        config.finetune.rank = 4
        config.finetune.alpha = 4.0
        config.finetune.targets = ("resnet_conv",)
        config.finetune.wise = (0.0, 0.25, 0.5, 0.75, 1.0)
    return config
