"""Do detectors suffer from noise in pre-training? The papers' tables 4 and 5.

    python -m nml_jax.main --config=configs/studies/detection.py:digits
    python -m nml_jax.main --config=configs/studies/detection.py:coco,retina

`digits` pre-trains on ten digits with 0 and 30 % wrong labels and three seeds, and trains the four detectors on scenes
of digits (configs/detect_digits.py). `coco` pre-trains ResNet-50 on ImageNet at the papers' rates and trains one system
on COCO by mmdetection's 1x, or by another recipe of configs/detect_coco.py, as in coco,retina,rsb; each has a folder of
its own. It needs accelerators and was not run.

Published (arXiv 2403.06869), at 0, 5, 10, 20 and 30 %: box AP of Faster R-CNN 38.5, 38.6, 38.6, 38.4, 37.9 and of
RetinaNet 38.3, 38.4, 38.4, 37.9, 37.0; mask AP of Mask R-CNN 31.3, 31.4, 31.3, 31.2, 30.3 and of SOLOv2 32.2, 32.7,
32.4, 32.0, 31.4. Their recipe is not published, and the numbers are unconfirmed. `digits` took 44 CPU
minutes on one thread, 78 by the clock beside other work; on a GPU it was not run.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import detect_coco, detect_digits, resnet50_in1k
from nml_jax.errors import UserError


def get_config(twin: str = "digits") -> ConfigDict:
    name, _, which = twin.partition(",")
    if name not in TWINS or (name == "digits" and which):
        cause = f"configs/studies/detection.py:{twin} is unknown"
        raise UserError(cause, "give digits, or coco with a system, as in coco,retina")
    config = TWINS[name](which or "retina")
    with config.unlocked():
        config.study = "detection"
        config.stages = ("pretrain", "detect", "report")
        config.detect.starts = ("encoder",)
    return config.lock()


def _make_digits(which: str) -> ConfigDict:
    config = detect_digits.get_config()
    with config.unlocked():
        config.name = "studies_digits_detection"
    return config


def _make_coco(which: str) -> ConfigDict:
    config, detector = resnet50_in1k.get_config("a2"), detect_coco.get_config(which)
    with config.unlocked():
        config.name = detector.name.replace("detect_coco", "studies_coco_detection")
        config.detect = detector.detect
    return config


TWINS: dict[str, Callable[[str], ConfigDict]] = {"digits": _make_digits, "coco": _make_coco}
