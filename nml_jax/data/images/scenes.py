"""Transforms of images with objects: resize to a canvas, flip, pad, and rasterise the masks.

A canvas is (height, width), landscape; a picture that is higher than wide has the turned canvas. The picture is pasted
at the top left. All functions are pure and draw only from the given generator.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from nml_jax.data.images import masks
from nml_jax.data.images.codec import decode
from nml_jax.data.sources.objects import Objects

MULTIPLE = 32  # the sides of a canvas, so that every map of a network is halved evenly
SMALLEST = 1.0  # pixels on the canvas: an object with a shorter side is left out


@dataclasses.dataclass(frozen=True)
class View:
    """How a picture lies on its canvas.

    Attributes:
        old: (height, width) of the picture.
        new: the same on the canvas.
        flip: whether left and right are exchanged.
    """

    old: tuple[int, int]
    new: tuple[int, int]
    flip: bool = False

    def place(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes of the picture, [n, 4], as boxes on the canvas, clipped to the picture there."""
        (height, width), (h, w) = self.old, self.new
        boxes = boxes * np.array([w / width, h / height] * 2)
        boxes = boxes.clip(0, [w, h] * 2)
        return np.stack([w - boxes[:, 2], boxes[:, 1], w - boxes[:, 0], boxes[:, 3]], 1) if self.flip else boxes


def pad_canvas(short: int, long: int) -> tuple[int, int]:
    """Return the landscape canvas for pictures whose sides are at most `short` and `long` pixels."""
    return -(-short // MULTIPLE) * MULTIPLE, -(-long // MULTIPLE) * MULTIPLE


def is_portrait(size: Any) -> Any:
    """Return whether pictures of (height, width), int [..., 2], are higher than wide."""
    size = np.asarray(size)
    return size[..., 0] > size[..., 1]


def fit(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Return the largest size with the same ratio whose sides are at most `short` and `long` pixels; at least 1."""
    factor = min(short / min(height, width), long / max(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def paste(image: np.ndarray, view: View, canvas: tuple[int, int]) -> np.ndarray:
    """Resize a picture bilinearly, flip it and paste it on a canvas of zeros, uint8 [H, W, 3]."""
    h, w = view.new
    image = image if view.old == view.new else cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    out = np.zeros((*canvas, 3), np.uint8)
    out[:h, :w] = cv2.flip(image, 1) if view.flip else image
    return out


def pad_objects(boxes: np.ndarray, labels: np.ndarray, most: int) -> dict[str, np.ndarray]:
    """Return boxes float32 [most, 4], zeros behind the last, and labels int32 [most], -1 behind the last."""
    n = len(labels)
    out = {"boxes": np.zeros((most, 4), np.float32), "labels": np.full(most, -1, np.int32)}
    out["boxes"][:n], out["labels"][:n] = boxes, labels
    return out


def choose_objects(objects: Objects, view: View, most: int, *, need_masks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Choose the objects to train on: no crowds, none below a pixel on the canvas, the first `most` of the others.

    Returns:
        Their indices, and their boxes on the canvas.
    """
    boxes = view.place(objects.boxes)
    good = ~objects.crowd & ((boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) >= SMALLEST)
    if need_masks:
        good &= np.array([mask is not None for mask in objects.masks], bool)
    kept = np.flatnonzero(good)[:most]
    return kept, boxes[kept]


def crop_masks(objects: Objects, kept: np.ndarray, view: View, most: int, side: int) -> np.ndarray:
    """Return each object's mask within its own box, uint8 [most, side, side] of 0 and 1."""
    out = np.zeros((most, side, side), np.uint8)
    height, width = view.old
    for k, i in enumerate(kept):
        box = objects.boxes[i].clip(0, [width, height] * 2)
        out[k] = masks.crop(objects.masks[i], view.old, box, side, flip=view.flip)
    return out


def draw_maps(
    objects: Objects, kept: np.ndarray, view: View, canvas: tuple[int, int], most: int, stride: int
) -> Mapping[str, np.ndarray]:
    """Return the masks on the whole canvas.

    Returns:
        maps: uint8 [most, H / stride, ceil(W / stride / 8)], bits of the masks at a coarser scale, bilinear.
        centres: float32 [most, 2], the mean (column, row) of each mask's pixels on the canvas; -1 for an empty one.
    """
    height, width = (side // stride for side in canvas)
    maps = np.zeros((most, height, -(-width // 8)), np.uint8)
    centres = np.full((most, 2), -1, np.float32)
    for k, i in enumerate(kept):
        part, top, left = masks.cut_out(masks.draw(objects.masks[i], view.old, view.new, flip=view.flip), stride)
        if not part.size:
            continue
        h, w = (side // stride for side in part.shape)
        coarse = np.zeros((height, width), np.uint8)
        y, x = top // stride, left // stride
        coarse[y : y + h, x : x + w] = cv2.resize(part, (w, h), interpolation=cv2.INTER_LINEAR)
        maps[k] = np.packbits(coarse, axis=-1)
        columns, rows = part.sum(0, dtype=np.int64), part.sum(1, dtype=np.int64)
        moments = columns @ np.arange(left, left + len(columns)), rows @ np.arange(top, top + len(rows))
        centres[k] = np.array(moments) / columns.sum()
    return {"maps": maps, "centres": centres}


@dataclasses.dataclass(frozen=True)
class SceneTransform:
    """Make a record with `Objects` an example for a detector.

    Attributes:
        canvas: the landscape canvas, see `pad_canvas`.
        short, long: most pixels of the picture's sides on it.
        scales: values of `short` to draw from in training; (): its own.
        flip: probability of a flip in training.
        most: objects of an example; more are cut.
        crop: side of the masks within boxes, 0: none.
        stride: of the masks on the canvas, 0: none.
    """

    canvas: tuple[int, int]
    short: int
    long: int
    scales: tuple[int, ...] = ()
    flip: float = 0.0
    most: int = 100
    crop: int = 0
    stride: int = 0

    def train(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return the record as one for training: image, size, boxes, labels, and masks, or maps and centres."""
        image, objects = decode(record["image"]), record["objects"]
        height, width = image.shape[:2]
        short = self.scales[rng.integers(len(self.scales))] if self.scales else self.short
        view = View((height, width), fit(height, width, short, self.long), bool(rng.random() < self.flip))
        canvas = self.find_canvas(height, width)
        kept, boxes = choose_objects(objects, view, self.most, need_masks=bool(self.crop or self.stride))
        out = {"id": record["id"], "image": paste(image, view, canvas), "size": np.array(view.new, np.int32)}
        out |= pad_objects(boxes, objects.labels[kept], self.most)
        if self.crop:
            out["masks"] = crop_masks(objects, kept, view, self.most, self.crop)
        if self.stride:
            out |= draw_maps(objects, kept, view, canvas, self.most, self.stride)
        return out

    def test(self, record: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Return the record as one for evaluation: image, and size on the canvas."""
        image = decode(record["image"])
        height, width = image.shape[:2]
        view = View((height, width), fit(height, width, self.short, self.long))
        image = paste(image, view, self.find_canvas(height, width))
        return {"id": record["id"], "image": image, "size": np.array(view.new, np.int32)}

    def find_canvas(self, height: int, width: int) -> tuple[int, int]:
        """Return the canvas of a picture of this size."""
        up, across = self.canvas
        return (across, up) if is_portrait((height, width)) else (up, across)
