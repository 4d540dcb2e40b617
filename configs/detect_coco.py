"""Train a detector on COCO from a ResNet-50, at full size: the usual "1x" of 12 epochs.

    python -m nml_jax.main --config=configs/detect_coco.py:retina --config.init_from=RUN --config.detect.data.path=DIR
    python -m nml_jax.main --config=configs/detect_coco.py:mask,rsb --config.init_from=RUN --config.detect.data.path=DIR

The argument is a system, retina, faster, mask or solo, and optionally a variant:

    (none)  mmdetection 3.3.0, schedule_1x: SGD, 0.02 for 16 images (RetinaNet, SOLOv2: 0.01), × 0.1 after epochs 8, 11
    rsb     the same with AdamW, 2e-4 (RetinaNet: 1e-4) and weight decay 0.05, for encoders trained as "ResNet strikes
            back" does (mmdetection's configs/resnet_strikes_back)
    d2      detectron2 at 02b5c4e2: 90,000 steps, frozen BatchNorm, shorter sides from 640 to 800
    tv      torchvision 0.28's first weights: 26 epochs, its anchors, losses and ROIAlign

DIR is COCO 2017, prepared once: python -m nml_jax.prepare coco_folder COCO DIR, where COCO has
annotations/instances_train2017.json, instances_val2017.json, and the images in train2017/ and val2017/, or their zips.

Published AP on val2017, boxes / masks, in %:

              d2           mmdetection  mmdetection, rsb  papers, 0 → 30 % wrong labels
    retina    37.4         36.5         39.0              38.3 → 37.0
    faster    37.9         37.4         40.8              38.5 → 37.9
    mask      38.6 / 35.2  38.2 / 34.7  41.2 / 38.2       - / 31.3 → 30.3
    solo      -            - / 34.8     -                 - / 32.2 → 31.4

The papers do not publish their recipe. Their AP of boxes is above that of every 1x, and their AP of masks below; so
which of these they used is unconfirmed. Not run here.
"""

from ml_collections import ConfigDict

from configs import common
from nml_jax.errors import UserError

SYSTEMS = ("retina", "faster", "mask", "solo")
VARIANTS = ("", "rsb", "d2", "tv")
IMAGES = 117_266  # of train2017 that have an object


def get_config(arg: str = "retina") -> ConfigDict:
    """Return the config of a system and variant, as in "mask,rsb".

    Raises:
        UserError: there is no such system or variant.
    """
    system, _, variant = arg.partition(",")
    if system not in SYSTEMS or variant not in VARIANTS:
        variants = ", ".join(VARIANTS[1:])
        cure = f"choose one of {', '.join(SYSTEMS)}, and behind a comma nothing or one of {variants}"
        raise UserError(f"configs/detect_coco.py has no {arg!r}", cure)
    config = common.get_config()
    with config.unlocked():
        config.name = f"detect_coco_{arg.replace(',', '_')}"
        config.stages = ("detect", "report")
        config.model.name = "resnet50"
        config.runtime.log_every = 50
        set_schedule(config.detect, system)
        {"": lambda _: None, "rsb": set_rsb, "d2": set_d2, "tv": set_tv}[variant](config.detect)
    return config


def set_schedule(detect: ConfigDict, system: str) -> None:
    """Set the data, and the schedule of mmdetection."""
    detect.systems = (system,)
    detect.data.source, detect.data.train, detect.data.test = "directory", "train2017", "val2017"
    detect.data.num_classes, detect.data.expected = 80, IMAGES
    how = detect.optimizer
    how.name, how.momentum, how.weight_decay, how.decay = "sgd", 0.9, 1e-4, ((r".*", 1.0),)
    how.lr = 0.01 if system in ("retina", "solo") else 0.02
    how.schedule, how.milestones, how.gamma = "step", (8.0, 11.0), 0.1
    how.warmup_steps, how.warmup_lr = 500, 1e-3 * how.lr
    how.clip_norm = 35.0 if system == "solo" else 0.0


def set_rsb(detect: ConfigDict) -> None:
    """Set AdamW, without decay of norms."""
    how = detect.optimizer
    how.name, how.weight_decay = "adamw", 0.05
    how.decay = ((r"encoder/.*bn\d*/.*", 0.0), (r".*", 1.0))
    how.lr = 1e-4 if detect.systems == ("retina",) else 2e-4
    how.warmup_lr = 1e-3 * how.lr


def set_d2(detect: ConfigDict) -> None:
    """Set what detectron2 does otherwise."""
    detect.epochs = 90_000 * 16 / IMAGES
    detect.optimizer.milestones = (60_000 * 16 / IMAGES, 80_000 * 16 / IMAGES)
    detect.optimizer.warmup_steps = 1000
    detect.data.scales = (640, 672, 704, 736, 768, 800)
    detect.norm, detect.clamp_both, detect.low_quality, detect.min_size = "frozen", False, "argmax", -1.0
    detect.rpn.low_quality, detect.rpn.per = 0.0, "full"
    detect.roi.level_rule, detect.roi.sampling, detect.mask.low_quality = "d2", 0, 2.0


def set_tv(detect: ConfigDict) -> None:
    """Set what torchvision does otherwise."""
    retina = detect.systems == ("retina",)
    detect.epochs, detect.optimizer.milestones, detect.optimizer.warmup_steps = 26.0, (16.0, 22.0), 1000
    detect.norm, detect.clamp_both, detect.low_quality = "frozen", False, "argmax"
    detect.min_size, detect.max_detections = (-1.0, 300) if retina else (0.01, 100)
    detect.fpn.init, detect.anchors.rounded = "kaiming", "sizes" if retina else "corners"
    detect.retina.p6_from, detect.retina.per = "p5", "image"
    detect.rpn.low_quality, detect.rpn.beta, detect.rpn.min_size = 0.0, 1 / 9, 0.001
    detect.rpn.after = (2000, 1000)
    detect.roi.level_rule, detect.roi.sampling, detect.roi.aligned, detect.roi.beta = "tv", 2, False, 1 / 9
    detect.mask.low_quality, detect.mask.binarise = 2.0, False
