"""Tiny detectors with the same weights and pictures on both sides of a comparison with another library.

Weights follow from their names there and their shapes, so that none are stored.
"""

import zlib
from typing import Any

import numpy as np

WIDTH, FPN, CLASSES, CANVAS = 8, 16, 3, (64, 96)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RETINA: dict[str, Any] = {"strides": (4, 8, 16, 32), "p6_from": "p5", "per": "image"}
RPN: dict[str, Any] = {"strides": (2, 4, 8, 16), "low_quality": 0.0, "samples": 10**8, "beta": 1 / 9,
                       "before": (60, 50), "after": (50, 40), "min_size": 1e-3}  # fmt: skip
ROI: dict[str, Any] = {"samples": 10**8, "level_rule": "tv", "aligned": False, "width": 12, "beta": 1 / 9}
MASK: dict[str, Any] = {"low_quality": 2.0, "depth": 1, "crop": 32, "binarise": False}
# Parts of names whose gradients are compared element by element; all others by their norm.
KEPT = ("body.conv1.weight", "layer4.0.conv1", "layer3.0.bn2", "fpn", "conv.0.0", "cls_logits", "bbox_reg", "rpn",
        "fc7", "predictor", "mask_fcn1")  # fmt: skip


def draw(name: str, shape: Any) -> np.ndarray:
    """Draw the weights of a name: kernels [out, in, ...] that keep the scale, statistics near 0 and 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        fan_in = np.prod(shape[1:]) if "conv5_mask" not in name else shape[0]
        gain = 0.1 if "bbox" in name else 0.15 if "cls" in name or "predictor" in name else 1.4
        return (gain * rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
    if name.endswith(("running_var", "bn1.weight", "bn2.weight", "downsample.1.weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.normal(size=shape) - ("cls_logits" in name)).astype(np.float32)


def make_batch() -> dict[str, np.ndarray]:
    """Make two pictures that fill the canvas: four objects and an empty place, and one object."""
    rng = np.random.default_rng(7)
    boxes = np.float32([
        [[4, 6, 36, 38], [20, 10, 52, 42], [58, 3, 90, 35], [8, 29, 40, 61], [0, 0, 0, 0]],
        [[30, 20, 62, 52], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ])  # fmt: skip
    return {
        "image": rng.integers(0, 256, (2, *CANVAS, 3), dtype=np.uint8),
        "size": np.tile(np.int32(CANVAS), (2, 1)),
        "boxes": boxes,
        "masks": rng.integers(0, 2, (2, 5, 8, 8), dtype=np.uint8).repeat(4, 2).repeat(4, 3),
        "labels": np.int32([[0, 2, 1, 0, -1], [1, -1, -1, -1, -1]]),
    }


BATCH = make_batch()


def paint_masks(i: int) -> np.ndarray:
    """Paint the masks of picture i on its canvas, uint8 [M, H, W]; every box is as large as a stored mask."""
    out = np.zeros((len(BATCH["boxes"][i]), *CANVAS), np.uint8)
    for mask, box, stored in zip(out, BATCH["boxes"][i].astype(int), BATCH["masks"][i], strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = stored[: box[3] - box[1], : box[2] - box[0]]
    return out
