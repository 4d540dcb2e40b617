"""Convert masks: polygons and run lengths as COCO writes them, and pixels. The codec is pycocotools'.

All pixels are those of a picture of `height` by `width`. A segmentation is a list of polygons or an RLE, see
`data/sources/objects.py`.
"""

import math
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as codec

MOST = 2**32 - 1  # the largest count of an RLE that the codec can hold
GROUPS = 6  # of five bits in a compressed count: the codec shifts more out of its integers


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask, bool [H, W], as a compressed RLE whose counts are a str."""
    rle: Any = codec.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def to_rle(segmentation: Any, height: int, width: int) -> Any:
    """Return a segmentation, which `check` has found sound, as a compressed RLE. Polygons become their union."""
    if isinstance(segmentation, list):
        return codec.merge(codec.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return codec.frPyObjects(segmentation, height, width)
    return segmentation


def check(segmentation: Any, height: int, width: int) -> None:
    """Check the form of a segmentation. pycocotools would write beyond the picture, or take a line for a box.

    Raises:
        ValueError: it is not one, a polygon has fewer than three points or reaches beyond the picture by more than its
            longer side (its outline is traced pixel by pixel), the size of an RLE is another, or the codec cannot hold
            one of its counts.
    """
    side = max(height, width)
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or not all(type(x) in (int, float) for x in polygon):
                raise ValueError("a polygon that is not a list of numbers")
            if len(polygon) % 2 or len(polygon) < 6:
                what = "an odd number of coordinates" if len(polygon) % 2 else "fewer than 3 points"
                raise ValueError(f"a polygon of {what}")
            if not all(-side <= x <= 2 * side for x in polygon):
                finite = all(abs(x) < math.inf for x in polygon)
                what = "that reaches far beyond its image" if finite else "with a number that is not finite"
                raise ValueError(f"a polygon {what}")
        if not segmentation:
            raise ValueError("no polygon")
        return
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("a segmentation that is neither polygons nor an RLE")
    size = segmentation["size"]
    if not isinstance(size, list) or size != [height, width] or not all(type(n) is int for n in size):
        raise ValueError(f"an RLE of size {ascii(size)[:40]} for an image of {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _read_counts(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("an RLE whose counts are not whole numbers of 0 or more")
    if max(counts, default=0) > MOST:
        raise ValueError(f"an RLE with a count above {MOST}")
    if sum(counts) != height * width:
        raise ValueError(f"an RLE whose counts add up to {sum(counts)}, not to the {height * width} pixels")


def _read_counts(text: str) -> list[int]:
    """Read the counts of a compressed RLE: groups of five bits; from the fourth on, differences to the last but one."""
    numbers: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"an RLE with the character {character!r}")
        value |= (group & 31) << shift
        shift += 5
        if shift > 5 * GROUPS:
            raise ValueError(f"an RLE with a count of more than {GROUPS} characters")
        if not group & 32:
            value -= (1 << shift) if group & 16 else 0
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("an RLE that is cut off")
    return numbers


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the pixels of a segmentation, uint8 [H, W] of 0 and 1."""
    return codec.decode(to_rle(segmentation, height, width))


def measure(segmentation: Any, height: int, width: int) -> tuple[float, list[float]]:
    """Return the area in pixels and the box x1 y1 x2 y2 of a segmentation."""
    rle = to_rle(segmentation, height, width)
    x, y, w, h = map(float, codec.toBbox(rle))
    return float(codec.area(rle)), [x, y, x + w, y + h]


def draw(segmentation: Any, size: tuple[int, int], new: tuple[int, int], *, flip: bool) -> np.ndarray:
    """Return the mask of a picture of `size` (height, width) that is resized to `new`, uint8 [H, W] of 0 and 1.

    Polygons are resized before they become pixels; an RLE is decoded and resized bilinearly.

    Args:
        flip: exchange left and right.
    """
    (height, width), (h, w) = size, new
    if isinstance(segmentation, list):
        scaled = [_scale(polygon, w / width, h / height, w if flip else None) for polygon in segmentation]
        return decode(scaled, h, w)
    mask = decode(segmentation, height, width)
    mask = mask if new == size else cv2.resize(mask, (w, h), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(mask[:, ::-1]) if flip else mask


def cut_out(mask: np.ndarray, multiple: int) -> tuple[np.ndarray, int, int]:
    """Cut out the part of a mask, uint8 [H, W], that is not 0, so that work on it is in proportion to the object.

    Returns:
        The part, of sides and at a row and a column that are multiples of `multiple`, with zeros beyond the mask; the
        row; the column. The part of an empty mask is empty.
    """
    if mask.flags.f_contiguous:  # as pycocotools decodes it
        top, left, h, w = cv2.boundingRect(mask.T)
    else:
        left, top, w, h = cv2.boundingRect(mask)
    top, left, bottom, right = top // multiple, left // multiple, -(-(top + h) // multiple), -(-(left + w) // multiple)
    found = mask[top * multiple : bottom * multiple, left * multiple : right * multiple]
    out = np.zeros(((bottom - top) * multiple, (right - left) * multiple), np.uint8)
    out[: found.shape[0], : found.shape[1]] = found
    return out, top * multiple, left * multiple


def crop(segmentation: Any, size: tuple[int, int], box: np.ndarray, side: int, *, flip: bool) -> np.ndarray:
    """Return the mask within a box, as uint8 [side, side] of 0 and 1.

    Args:
        size: (height, width) of the picture.
        box: float [4], x1 y1 x2 y2 in the picture, before it is flipped.
        flip: exchange left and right.
    """
    x1, y1, x2, y2 = (float(x) for x in box)
    sx, sy = side / (x2 - x1), side / (y2 - y1)
    if isinstance(segmentation, list):
        moved = [np.asarray(polygon, np.float64) - np.tile([x1, y1], len(polygon) // 2) for polygon in segmentation]
        return decode([_scale(polygon, sx, sy, side if flip else None) for polygon in moved], side, side)
    mask = decode(segmentation, *size)
    # Pixel u of the crop has its centre at x1 + (u + 0.5) / sx of the picture, whose pixel i has it at i + 0.5.
    back = np.array([[1 / sx, 0, x1 + 0.5 / sx - 0.5], [0, 1 / sy, y1 + 0.5 / sy - 0.5]])
    out = cv2.warpAffine(mask * np.uint8(255), back, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    out = (out >= 128).astype(np.uint8)
    return np.ascontiguousarray(out[:, ::-1]) if flip else out


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Paste a mask into its box: the pixels of a picture where it is above one half, bool [height, width].

    The mask is interpolated bilinearly between the centres of its cells, and is 0 beyond them, as in all codebases.

    Args:
        mask: float [h, w], probabilities.
        box: float [4], x1 y1 x2 y2 in pixels of the picture.
    """
    x1, y1, x2, y2 = (float(x) for x in box)
    out = np.zeros((height, width), bool)
    rows = slice(max(int(y1) - 1, 0), min(int(y2) + 2, height))
    columns = slice(max(int(x1) - 1, 0), min(int(x2) + 2, width))
    down = _interpolate(rows, y1, y2, mask.shape[0])
    across = _interpolate(columns, x1, x2, mask.shape[1])
    out[rows, columns] = down @ np.asarray(mask, np.float32) @ across.T > 0.5
    return out


def _interpolate(pixels: slice, low: float, high: float, cells: int) -> np.ndarray:
    """Return the weights of cells between low and high at the centres of pixels, float32 [pixels, cells]."""
    at = (np.arange(pixels.start, pixels.stop) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
    return np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0).astype(np.float32)


def resize_map(mask: np.ndarray, canvas: tuple[int, int], size: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Resize a mask on a whole canvas to the picture: its pixels above one half, bool [height, width].

    Args:
        mask: float [H / stride, W / stride], probabilities.
        canvas: (H, W).
        size: (height, width) of the picture on the canvas.
    """
    whole = cv2.resize(np.asarray(mask, np.float32), canvas[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.resize(whole[: size[0], : size[1]], (width, height), interpolation=cv2.INTER_LINEAR) > 0.5


def _scale(polygon: Any, sx: float, sy: float, mirror: float | None) -> list[float]:
    """Scale a polygon; with `mirror`, the width of the picture, exchange left and right."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2) * (sx, sy)
    if mirror is not None:
        points[:, 0] = mirror - points[:, 0]
    return points.reshape(-1).tolist()
