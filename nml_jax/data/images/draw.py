"""Draw objects on pictures: boxes, masks, and names with scores."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg

from nml_jax.data.images import masks

SIDE = 176  # pixels of the longer side of a picture on a sheet
GAP = 6  # pixels between pictures
PAPER = 255  # grey value behind them
QUALITY = 75
MOST = 65_500  # pixels of a side that a JPEG can have
# Okabe and Ito's colours, as RGB, one class after another.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


class Drawn(NamedTuple):
    """An object to draw.

    box: x1 y1 x2 y2 in pixels of the picture. text: name, and score. label: decides the colour. mask: or None.
    """

    box: Sequence[float]
    text: str
    label: int
    mask: Any = None


def draw_objects(image: np.ndarray, objects: Iterable[Drawn], side: int | None = None) -> np.ndarray:
    """Draw objects on a copy of a picture, uint8 [H, W, 3].

    Args:
        side: resize the picture to this longer side first; None: as it is, or as large as a JPEG can be.
    """
    height, width = image.shape[:2]
    side = MOST if side is None and max(height, width) > MOST else side
    scale = side / max(height, width) if side else 1.0
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    out = np.array(image, order="C") if (h, w) == (height, width) else cv2.resize(image, (w, h), interpolation=smooth)
    for one in objects:
        colour = COLOURS[one.label % len(COLOURS)]
        if one.mask is not None:
            inside = masks.draw(one.mask, (height, width), (h, w), flip=False).astype(bool)
            out[inside] = out[inside] // 2 + np.array(colour, np.uint8) // 2
        x1, y1, x2, y2 = (round(v * scale) for v in one.box)
        cv2.rectangle(out, (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1)), colour, 1)
        at = (max(x1, 0), y1 - 3 if y1 > 12 else min(y2 + 10, h - 2))
        for shade, thickness in (((0, 0, 0), 3), (colour, 1)):  # a dark rim makes the text readable on any picture
            cv2.putText(out, one.text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.35, shade, thickness, cv2.LINE_AA)
    return out


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode a picture, uint8 [H, W, 3], as JPEG."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), QUALITY)


def make_sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]], columns: int = 2) -> bytes:
    """Lay out pairs of pictures side by side, several pairs in a row, as a JPEG."""
    cell, rows = SIDE + GAP, math.ceil(len(pairs) / columns)
    out = np.full((rows * cell + GAP, 2 * columns * cell + (columns + 1) * GAP, 3), PAPER, np.uint8)
    for k, pair in enumerate(pairs):
        row, column = divmod(k, columns)
        for side, picture in enumerate(pair):
            top, left = GAP + row * cell, GAP + column * (2 * cell + GAP) + side * cell
            out[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return encode_jpeg(out)
