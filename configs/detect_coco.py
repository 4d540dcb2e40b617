"""Train a detector on COCO for "1x": 12 epochs, 16 images a step, on a ResNet-50.

    python -m nml_jax.prepare coco_folder COCO data/coco
    python -m nml_jax.main --config=configs/detect_coco.py:retina --config.init_from=runs/r50/noise=0.05,seed=0

The part after the colon is retina, faster, mask or solo, and after a comma whose recipe it is:

    mmdetection   the default; version 3.3.0, configs/_base_ and each system's r50_fpn_1x, but for ROIAlign, which takes
                  2 samples per bin and axis: theirs are adaptive, here detect.roi.sampling=0, which costs 4 to 16 times
    detectron2    revision 02b5c4e2, config/defaults.py, configs/Base-*.yaml, "1x"; not solo
    torchvision   0.28, models/detection, with the schedule of mmdetection; not solo
    rsb           mmdetection's configs/resnet_strikes_back: AdamW, for encoders trained with such recipes

A published 1x of mmdetection has a box AP of 36.5 (retina), 37.4 (faster) and 38.2 (mask), and a mask AP of 34.7 (mask)
and 34.8 (solo), on an encoder without noise. None of this was run here at full size. The recipe behind the detection
results of arXiv 2309.17002 and 2403.06869 is not published: their numbers agree with none of these.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from nml_jax.errors import UserError

# A key of the config -> its value, where it differs from configs/common.py.
SYSTEMS: dict[str, dict[str, Any]] = {
    "retina": {"detect.optimizer.lr": 0.01},
    "faster": {"detect.optimizer.lr": 0.02},
    "mask": {"detect.optimizer.lr": 0.02},
    "solo": {"detect.optimizer.lr": 0.01, "detect.optimizer.clip_norm": 35.0},
}
NO_DECAY = ((r".*(bn\d*|norm)/.*", 0.0), (r".*", 1.0))
_two_stages = {"detect.rpn.low_quality": 0.0, "detect.mask.low_quality": 2.0}
_elsewhere = {**_two_stages, "detect.clamp_both": False, "detect.low_quality": "argmax", "detect.fpn.init": "kaiming"}
RECIPES: dict[str, dict[str, Any]] = {
    "mmdetection": {},
    "detectron2": {
        **_elsewhere,
        "detect.norm": "frozen",
        "detect.min_size": -1.0,
        "detect.rpn.per": "full",
        "detect.roi.level_rule": "d2",
        "detect.roi.sampling": 0,
        "detect.data.scales": (640, 672, 704, 736, 768, 800),
        "detect.epochs": 12.28,  # 90,000 steps of 16 of 117,266 images
        "detect.optimizer.milestones": (8.187, 10.916),  # 60,000 and 80,000 steps
        "detect.optimizer.warmup_steps": 1000,
        "detect.optimizer.decay": NO_DECAY,
    },
    "torchvision": {
        **_elsewhere,
        "detect.norm": "frozen",  # as there with pre-trained weights
        "detect.anchors.rounded": "corners",
        "detect.min_size": 0.01,
        "detect.rpn.beta": 1 / 9,
        "detect.rpn.after": (2000, 1000),
        "detect.rpn.min_size": 0.001,
        "detect.roi.level_rule": "tv",
        "detect.roi.aligned": False,
        "detect.roi.beta": 1 / 9,
        "detect.mask.binarise": False,
    },
    "rsb": {
        "detect.optimizer.name": "adamw",
        "detect.optimizer.lr": 2e-4,
        "detect.optimizer.weight_decay": 0.05,
        "detect.optimizer.decay": NO_DECAY,
    },
}
# What a recipe does otherwise for one system.
EXCEPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("retina", "torchvision"): {
        "detect.anchors.rounded": "sizes",
        "detect.min_size": -1.0,
        "detect.max_detections": 300,
        "detect.retina.p6_from": "p5",
        "detect.retina.per": "image",
    },
    ("retina", "rsb"): {"detect.optimizer.lr": 1e-4},
}


def get_config(which: str = "retina") -> ConfigDict:
    system, _, recipe = which.partition(",")
    recipe = recipe or "mmdetection"
    for name, known in ((system, SYSTEMS), (recipe, RECIPES)):
        if name not in known:
            raise UserError(f"configs/detect_coco.py:{which} is unknown: {name!r}", f"choose from {', '.join(known)}")
    if system == "solo" and recipe in ("detectron2", "torchvision"):
        raise UserError(f"{recipe} has no SOLOv2", "give solo or solo,rsb")
    config = common.get_config()
    with config.unlocked():
        config.name = f"detect_coco_{system}" + (f"_{recipe}" if recipe != "mmdetection" else "")
        config.stages = ("detect", "report")
        config.detect.systems = (system,)
        config.detect.data.source = "directory"
        config.detect.data.path = "data/coco"
        config.detect.data.num_classes = 80
        config.detect.data.expected = 117_266  # images of train2017 with an object to learn
        config.detect.optimizer.update(
            name="sgd", momentum=0.9, weight_decay=1e-4, decay=((r".*", 1.0),), schedule="step", gamma=0.1,
            milestones=(8.0, 11.0), warmup_steps=500,
        )  # fmt: skip
        config.update_from_flattened_dict(
            {**SYSTEMS[system], **RECIPES[recipe], **EXCEPTIONS.get((system, recipe), {})}
        )
        config.detect.optimizer.warmup_lr = 0.001 * config.detect.optimizer.lr
    return config
