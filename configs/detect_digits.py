"""Compare detectors on noisy encoders on scenes of scikit-learn's digits, which need no file.

    python -m nml_jax.main --config=configs/detect_digits.py --config.noise=0.05 --config.seed=0

A small ResNet learns the ten digits with a share of wrong labels. From it each detector is trained on scenes of one to
five digits on noise, and once more from random weights for as many steps. The 256 test scenes are made of other digits.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    with config.unlocked():
        config.name = "detect_digits"
        config.stages = ("pretrain", "detect", "report")
        config.sweep.noise = (0.0, 0.3)
        config.sweep.seed = (0, 1, 2)
        config.data.classes = ()
        config.data.image_size = 16
        config.model.width = 12
        config.model.blocks = (1, 1, 1, 1)
        config.train.epochs = 20.0
        config.runtime.eval_every = 10.0
        set_detectors(config)
    return config


def set_detectors(config: ConfigDict) -> None:
    """Set the section `detect` to tiny detectors on canvases of 64 pixels."""
    detect = config.detect
    detect.systems = ("retina", "faster", "mask", "solo")
    detect.starts = ("encoder", "random")
    detect.norm, detect.freeze = "train", 0
    detect.fpn.width = 24
    detect.retina.strides = (8, 16)
    detect.retina.tower = 1
    detect.retina.scales = (1.5, 2.5)
    detect.rpn.update(strides=(4, 8, 16), scales=(4.0,), before=(200, 200), after=(64, 64), samples=64)
    detect.roi.update(samples=32, width=96, top=100)
    detect.mask.update(side=7, depth=2, crop=28)
    # Masks in cells of 2 pixels: with cells of 4 one digit in six would be too small to count.
    detect.solo.update(strides=(2, 4, 8), grids=(12, 8, 6), ranges=((1, 24), (16, 40), (32, 90)), width=32, depth=2)
    detect.solo.update(mask_width=24, kernel=24, groups=4, positives=48, candidates=100, top=60)
    detect.data.canvas = (64, 64)
    detect.data.flip = 0.0
    detect.data.max_objects = 8
    detect.epochs = 10.0
    detect.lr_batch = 0
    detect.optimizer.name = "adamw"
    detect.optimizer.lr = 5e-3
    detect.optimizer.warmup_steps = 50
    detect.optimizer.weight_decay = 1e-4
