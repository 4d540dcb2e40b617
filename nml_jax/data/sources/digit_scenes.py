"""Draw scenes of scikit-learn's handwritten digits on noise: images with boxes, classes and masks that need no file.

A scene is a pure function of (seed, id). The pixels come from the split of the digits with the same name, so that no
digit of a training scene is in a test scene.
"""

import functools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from nml_jax.data.images import masks
from nml_jax.data.sources.digits import read_digits
from nml_jax.data.sources.objects import Objects, ObjectSource, make_objects
from nml_jax.data.sources.source import digest
from nml_jax.errors import UserError

KINDS = ("plain", "empty", "crowd", "touching")
INK = 0.3  # of the darkest: a pixel of a glyph above this belongs to its mask
MOST = 5  # digits of a plain scene
OVERLAP = 0.2  # of the smaller box: what two boxes of a plain scene have in common, at most
SIZES = 14 / 64, 32 / 64  # sides of a digit, as shares of the scene's
TRIES = 50  # places to try for a digit
NOISE = 100  # grey values of the background are below this; the ink goes up to 255


@functools.cache
def _read_glyphs(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of a split, float32 [N, 8, 8] from 0 to 1, and their labels."""
    source: Any = read_digits(split)
    return source.images[..., 0].astype(np.float32) / 255, source.labels


class DigitScenes(ObjectSource):
    """`count` scenes of `side` by `side` pixels.

    Args:
        split: train or test, from which the digits are.
        kinds: of KINDS; scene i has kind i modulo their number. plain: one to five digits that hardly overlap. empty:
            none. crowd: a digit, and a heap of small digits of one class with a single annotation (`crowd`). touching:
            two digits whose boxes meet.

    Raises:
        UserError: there is no such split or kind, or the scenes are too small.
    """

    def __init__(self, split: str, count: int, side: int, *, seed: int = 0, kinds: Sequence[str] = ("plain",)):
        _read_glyphs(split)
        if not kinds or not {*kinds} <= {*KINDS}:
            raise UserError(f"digit scenes of the kinds {tuple(kinds)}", f"choose from {', '.join(KINDS)}")
        if side < 32 or count < 1:
            raise UserError(f"{count} digit scenes of {side} pixels", "ask for at least 1 scene of at least 32 pixels")
        self.split, self.side, self.seed, self.kinds = split, side, seed, tuple(kinds)
        super().__init__(
            np.full((count, 2), side),
            class_names=[str(digit) for digit in range(10)],
            category_ids=range(1, 11),
            fingerprint=digest("digit scenes", split, count, side, seed, list(kinds)),
        )
        self._kept: dict[int, tuple[np.ndarray, Objects]] = {}

    def image(self, i: int) -> np.ndarray:
        return self._draw(i)[0]

    def objects(self, i: int) -> Objects:
        return self._draw(i)[1]

    def _draw(self, i: int) -> tuple[np.ndarray, Objects]:
        if i not in self._kept:
            kind = self.kinds[i % len(self.kinds)]
            self._kept[i] = draw_scene(self.split, self.seed, i, self.side, kind)
        return self._kept[i]


def draw_scene(split: str, seed: int, i: int, side: int, kind: str) -> tuple[np.ndarray, Objects]:
    """Draw scene i: uint8 [side, side, 3] and its objects. The arguments are those of `DigitScenes`."""
    rng = np.random.default_rng([seed, i, ("train", "test").index(split)])
    canvas = rng.random((side, side), np.float32) * np.float32(NOISE / 255)
    scene = _Scene(canvas, *_read_glyphs(split), rng)
    if kind == "crowd":
        scene.add_heap()
    if kind == "touching":
        scene.add_pair()
    elif kind != "empty":
        for _ in range(1 if kind == "crowd" else int(rng.integers(1, MOST + 1))):
            scene.add_digit()
    image = np.rint(np.repeat(canvas[..., None], 3, axis=-1) * 255).astype(np.uint8)
    return image, make_objects(scene.boxes, scene.labels, scene.crowd, scene.areas, scene.masks)


class _Scene:
    """A scene that is being drawn, and the annotations of its objects so far."""

    def __init__(self, canvas: np.ndarray, glyphs: np.ndarray, labels: np.ndarray, rng: np.random.Generator):
        self.canvas, self.glyphs, self.classes, self.rng = canvas, glyphs, labels, rng
        self.boxes: list[list[int]] = []
        self.labels: list[int] = []
        self.crowd: list[bool] = []
        self.areas: list[int] = []
        self.masks: list[Any] = []

    def choose_size(self) -> int:
        """Draw the side of a digit in pixels."""
        low, high = (round(share * len(self.canvas)) for share in SIZES)
        return int(self.rng.integers(low, high + 1))

    def choose_glyph(self, size: int, digit: int | None = None) -> tuple[np.ndarray, int]:
        """Draw a digit, of a class if one is given: its ink, float32 [h, w] cut to the mask's extent, and its class."""
        pool = np.arange(len(self.classes)) if digit is None else np.flatnonzero(self.classes == digit)
        k = int(self.rng.choice(pool))
        ink = cv2.resize(self.glyphs[k], (size, size), interpolation=cv2.INTER_LINEAR)
        rows, columns = (np.flatnonzero((ink > INK).any(axis)) for axis in (1, 0))
        return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], int(self.classes[k])

    def paint(self, ink: np.ndarray, top: int, left: int) -> np.ndarray:
        """Paint a digit over the scene; return its mask, bool [side, side]."""
        (h, w), mask = ink.shape, np.zeros(self.canvas.shape, bool)
        under = self.canvas[top : top + h, left : left + w]
        np.maximum(under, ink, out=under)
        mask[top : top + h, left : left + w] = ink > INK
        return mask

    def annotate(self, mask: np.ndarray, label: int, *, crowd: bool = False) -> None:
        """Add the object of a mask."""
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        self.boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        self.labels.append(label)
        self.crowd.append(crowd)
        self.areas.append(int(mask.sum()))
        self.masks.append(masks.encode(mask))

    def add_digit(self) -> None:
        """Add a digit at a random place where it hardly overlaps others; none if no such place is found."""
        ink, label = self.choose_glyph(self.choose_size())
        (h, w), (height, width) = ink.shape, self.canvas.shape
        for _ in range(TRIES):
            top, left = int(self.rng.integers(height - h + 1)), int(self.rng.integers(width - w + 1))
            if all(_overlap((left, top, left + w, top + h), box) < OVERLAP for box in self.boxes):
                self.annotate(self.paint(ink, top, left), label)
                return

    def add_pair(self) -> None:
        """Add two digits side by side: where the box of the first ends, that of the second begins."""
        size = min(self.choose_size(), len(self.canvas) // 2)
        (first, one), (second, other) = self.choose_glyph(size), self.choose_glyph(size)
        room = [n - max(a, b) for n, a, b in zip(self.canvas.shape, first.shape, second.shape, strict=True)]
        left = int(self.rng.integers(self.canvas.shape[1] - first.shape[1] - second.shape[1] + 1))
        top = int(self.rng.integers(room[0] + 1))
        self.annotate(self.paint(first, top, left), one)
        self.annotate(self.paint(second, top, left + first.shape[1]), other)

    def add_heap(self) -> None:
        """Add a heap of small digits of one class as one region, of which single digits are not told apart."""
        side, digit = len(self.canvas), int(self.rng.integers(10))
        small, corner = round(SIZES[0] * side), int(self.rng.integers(side // 2))
        mask = np.zeros(self.canvas.shape, bool)
        for _ in range(6):
            ink, _ = self.choose_glyph(small, digit)
            top, left = corner + self.rng.integers(side // 2 - small + 1, size=2)
            mask |= self.paint(ink, int(top), int(left))
        self.annotate(mask, digit, crowd=True)


def _overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Return what two boxes have in common, as a share of the smaller one."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
