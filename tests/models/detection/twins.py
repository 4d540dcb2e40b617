"""Tiny detectors with the same weights and pictures on both sides of a comparison with another library.

Random weights follow from their names there and their shapes, so that none are stored. Trained ones are, rounded.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

WIDTH, FPN, CLASSES, CANVAS = 8, 16, 3, (64, 96)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RETINA: dict[str, Any] = {"strides": (4, 8, 16, 32), "p6_from": "p5", "per": "image"}
RPN: dict[str, Any] = {"strides": (2, 4, 8, 16), "low_quality": 0.0, "samples": 10**8, "beta": 1 / 9,
                       "before": (60, 50), "after": (50, 40), "min_size": 1e-3}  # fmt: skip
ROI: dict[str, Any] = {"samples": 10**8, "level_rule": "tv", "aligned": False, "width": 12, "beta": 1 / 9}
SOLO: dict[str, Any] = {"strides": (2, 4, 8, 16), "grids": (10, 8, 6, 4), "width": 16, "depth": 1, "mask_width": 8,
                        "ranges": ((1, 24), (16, 40), (30, 64), (50, 200)), "kernel": 8, "groups": 4}  # fmt: skip
MASK: dict[str, Any] = {"low_quality": 2.0, "depth": 1, "crop": 32, "binarise": False}
# Trained twins, on digit scenes, have these besides.
TRAINED: dict[str, Any] = {"classes": 10, "canvas": (64, 64), "width": 64}  # width: of the box head
SURE = 0.5  # score above which their detections are compared with the objects, and their masks are kept
# Parts of names whose gradients are compared element by element; all others by their norm.
KEPT = ("body.conv1.weight", "layer4.0.conv1", "layer3.0.bn2", "fpn", "conv.0.0", "cls_logits", "bbox_reg", "rpn",
        "fc7", "predictor", "mask_fcn1", "conv_cls", "conv_kernel", "kernel_convs",
        "conv_pred", "convs_all_levels.2")  # fmt: skip


def draw(name: str, shape: Any) -> np.ndarray:
    """Draw the weights of a name: kernels [out, in, ...] that keep the scale, statistics near 0 and 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        fan_in = np.prod(shape[1:]) if "conv5_mask" not in name else shape[0]
        gain = 0.1 if "bbox" in name else 0.15 if "cls" in name or "predictor" in name else 1.4
        return (gain * rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
    if name.endswith(("running_var", "bn1.weight", "bn2.weight", "downsample.1.weight", "gn.weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.normal(size=shape) - ("cls_logits" in name)).astype(np.float32)


def round_weight(x: np.ndarray) -> dict[str, np.ndarray]:
    """Round a trained weight to what is stored of it: kernels to 8 bits and a scale, all others to 16."""
    if x.ndim < 2:
        return {"value": x.astype(np.float16)}
    scale = np.float32(np.abs(x).max() / 127 or 1)
    return {"value": np.rint(x / scale).astype(np.int8), "scale": scale}


def get_weight(stored: Mapping[str, np.ndarray], system: str, name: str) -> np.ndarray:
    """Return the trained weight of a system, float32; Faster R-CNN has those of Mask R-CNN.

    stored: the content of golden_trained.safetensors.
    """
    prefix = f"trained/{system.replace('faster', 'mask')}/weights/{name}"
    return stored[f"{prefix}/value"].astype(np.float32) * stored.get(f"{prefix}/scale", np.float32(1))


def make_batch() -> dict[str, np.ndarray]:
    """Make two pictures that fill the canvas: four objects and an empty place, and one object."""
    rng = np.random.default_rng(7)
    boxes = np.float32([
        [[4, 6, 36, 38], [20, 10, 52, 42], [58, 4, 90, 36], [8, 28, 40, 60], [0, 0, 0, 0]],
        [[30, 20, 62, 52], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ])  # fmt: skip
    masks = rng.integers(0, 2, (2, 5, 8, 8), dtype=np.uint8).repeat(4, 2).repeat(4, 3)
    painted = np.stack([paint_masks(*pair) for pair in zip(boxes, masks, strict=True)])
    return {
        "image": rng.integers(0, 256, (2, *CANVAS, 3), dtype=np.uint8),
        "size": np.tile(np.int32(CANVAS), (2, 1)),
        "boxes": boxes,
        "masks": masks,
        "maps": np.packbits(painted[:, :, ::2, ::2], -1),  # blocks of masks begin at even pixels
        "centres": find_centres(painted),
        "labels": np.int32([[0, 2, 1, 0, -1], [1, -1, -1, -1, -1]]),
    }


def paint_masks(boxes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Paint masks [M, c, c] on canvases, uint8 [M, H, W]; a box is as large as a mask, or empty."""
    out = np.zeros((len(boxes), *CANVAS), np.uint8)
    for canvas, box, mask in zip(out, boxes.astype(int), masks, strict=True):
        canvas[box[1] : box[3], box[0] : box[2]] = mask[: box[3] - box[1], : box[2] - box[0]]
    return out


def find_centres(painted: np.ndarray) -> np.ndarray:
    """Return the mean x and y of the pixels of masks [B, M, H, W], -1 for empty ones, float32 [B, M, 2]."""
    count = painted.sum((2, 3), dtype=np.float32)[..., None]
    x = (painted.sum(2) * np.arange(CANVAS[1])).sum(-1)
    y = (painted.sum(3) * np.arange(CANVAS[0])).sum(-1)
    return np.where(count > 0, np.stack([x, y], -1) / np.maximum(count, 1), -1).astype(np.float32)


BATCH = make_batch()
