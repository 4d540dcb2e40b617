"""The twins on our side: their configs, and their weights by the names that torchvision has for them."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from configs import detect_digits
from configs.common import get_config
from nml_jax.models import Model, detection
from tests.models.detection import twins

TWINS = ("retina", "faster", "mask", "solo")  # that other libraries have, with the keys of twins.py
SYSTEMS = tuple(name for name in detection.SYSTEMS if name != "faster")  # Mask R-CNN holds all of Faster R-CNN
# Parts of names of ours -> torchvision's.
NAMES = (
    (r"encoder/", "backbone.body."),
    (r"stem_(conv|bn)/", r"\g<1>1."),
    (r"stage(\d)_block(\d)/", r"layer\1.\2."),
    (r"downsample_conv/", "downsample.0."),
    (r"downsample_bn/", "downsample.1."),
    (r"detector/fpn/lateral(\d)/", r"backbone.fpn.inner_blocks.\1.0."),
    (r"detector/fpn/output(\d)/", r"backbone.fpn.layer_blocks.\1.0."),
    (r"detector/fpn/extra2/", r"backbone.fpn.extra_blocks.p6."),
    (r"detector/fpn/extra3/", r"backbone.fpn.extra_blocks.p7."),
    (r"detector/head/class_out/", "head.classification_head.cls_logits."),
    (r"detector/head/class(\d)/", r"head.classification_head.conv.\1.0."),
    (r"detector/head/box_out/", "head.regression_head.bbox_reg."),
    (r"detector/head/box(\d)/", r"head.regression_head.conv.\1.0."),
    (r"detector/rpn/conv/", "rpn.head.conv.0.0."),
    (r"detector/rpn/class/", "rpn.head.cls_logits."),
    (r"detector/rpn/box/", "rpn.head.bbox_pred."),
    (r"detector/box/fc0/", "roi_heads.box_head.fc6."),
    (r"detector/box/fc1/", "roi_heads.box_head.fc7."),
    (r"detector/box/class/", "roi_heads.box_predictor.cls_score."),
    (r"detector/box/box/", "roi_heads.box_predictor.bbox_pred."),
    (r"detector/mask/conv(\d)/", r"roi_heads.mask_head.\1.0."),
    (r"detector/mask/double/", "roi_heads.mask_predictor.conv5_mask."),
    (r"detector/mask/out/", "roi_heads.mask_predictor.mask_fcn_logits."),
    (r"detector/kernels/(kernel|class)_out/", r"mask_head.conv_\1."),
    (r"detector/kernels/(kernel|class)(\d)/", r"mask_head.\1_convs.\2."),
    (r"detector/features/level(\d)_(\d)/", r"mask_head.mask_feature_head.convs_all_levels.\1.conv\2."),
    (r"detector/features/out/", "mask_head.mask_feature_head.conv_pred."),
    (r"(convs\.\d|conv\d|conv_pred)\.norm/", r"\1.gn."),
    (r"mask_head\.(conv_|)class", r"mask_head.\1cls"),
    (r"/", "."),
    (r"(kernel|scale)$", "weight"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
)


def rename(name: str) -> str:
    """Return torchvision's name of a parameter or statistic of ours."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def count_background(name: str) -> int:
    """Count the outputs of a parameter for background in torchvision, the first ones, that ours lacks."""
    return next((n for part, n in {"box_predictor.bbox_pred": 4, "mask_fcn_logits": 1}.items() if part in name), 0)


def shape_there(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that torchvision's parameter of a name has; ours has `shape`. It has a class of background."""
    if name.endswith("conv5_mask.weight"):
        return (shape[2], shape[3], 2, 2)
    there = tuple(shape[i] for i in {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)])
    return there[0] + count_background(name), *there[1:]


def convert(name: str, value: np.ndarray) -> np.ndarray:
    """Bring torchvision's parameter to our order of axes and classes: channels last, and background the last class."""
    if name.endswith("fc6.weight"):  # [out, C, h, w] flat
        return value.reshape(len(value), twins.FPN, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(value))
    if name.endswith("conv5_mask.weight"):
        return value.transpose(2, 3, 0, 1)
    if "cls_score" in name:
        value = np.roll(value, -1, 0)
    value = value[count_background(name) :]
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def convert_back(name: str, value: np.ndarray) -> np.ndarray:
    """Bring our parameter to torchvision's order. What background has there and lacks here, boxes and a mask, is 0."""
    if name.endswith("fc6.weight"):
        return value.reshape(7, 7, twins.FPN, -1).transpose(3, 2, 0, 1).reshape(value.shape[1], -1)
    if name.endswith("conv5_mask.weight"):
        return value.transpose(2, 3, 0, 1)
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    if "cls_score" in name:
        value = np.roll(value, 1, 0)
    more = count_background(name)
    return np.concatenate([np.zeros((more, *value.shape[1:]), value.dtype), value])


def make_config(system: str, width: int = twins.ROI["width"]) -> Any:
    """Make the sections of a twin as torchvision has its detector; one that has no twin is that of the digit scenes.

    width: of the box head.
    """
    config = get_config()
    config.model.update(
        name="resnet18", width=twins.WIDTH, blocks=(1, 1, 1, 1), stem="small", mean=twins.MEAN, std=twins.STD
    )
    config.detect.fpn.width = twins.FPN
    config.detect.update(freeze=0, clamp_both=False, low_quality="argmax", max_detections=40)
    config.detect.min_size = -1.0 if system == "retina" else 0.01
    config.detect.anchors.rounded = "sizes" if system == "retina" else "corners"
    config.detect.retina.update(twins.RETINA)
    config.detect.rpn.update(twins.RPN)
    config.detect.roi.update(twins.ROI, width=width)
    config.detect.mask.update(twins.MASK)
    config.detect.solo.update(twins.SOLO)
    if system not in TWINS and system in config.detect:
        config.detect[system].update(detect_digits.get_config().detect[system])
    return config


def build(
    system: str,
    classes: int = twins.CLASSES,
    canvas: tuple[int, int] = twins.CANVAS,
    width: int = twins.ROI["width"],
) -> tuple[Model, Any]:
    """Build a twin; return it and the section `detect`."""
    config = make_config(system, width)
    return detection.build(config.model, config.detect, system, num_classes=classes, canvas=canvas), config.detect


def name_there(path: Any) -> str:
    """Return torchvision's name of a leaf of our parameters or state."""
    return rename("/".join(str(key.key) for key in path).replace("/batch_stats", ""))


def fill(model: Model, draw: Callable[[str, Any], np.ndarray] = twins.draw) -> tuple[Any, Any]:
    """Return the weights of a twin, equal to torchvision's. `draw`: (name, shape) there -> value there."""

    def one(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        name = name_there(path)
        return convert(name, draw(name, shape_there(name, x.shape)))

    return tuple(jax.tree_util.tree_map_with_path(one, tree) for tree in model.shapes)  # type: ignore[return-value]
