"""RandAugment (Cubuk et al. 2019) with the op set and magnitude ranges of timm's "rand-m7-mstd0.5-inc1".

"inc1" means that every op gets more severe with the magnitude. The ops themselves are Pillow's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _transform(image: Image.Image, matrix: tuple[float, ...], how: dict[str, Any]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **how)


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    return image.point([min(255, i + amount) if i < 128 else i for i in range(256)] * 3)


def _scale_factor(v: float, s: int) -> float:
    return max(0.1, 1 + 0.9 * s * v)


# name -> f(image, v, s, how): v = magnitude / 10 in [0, 1], s = a random sign, how = resampling filter and fill colour.
OPS: dict[str, Callable[[Image.Image, float, int, dict[str, Any]], Image.Image]] = {
    "auto_contrast": lambda image, v, s, how: ImageOps.autocontrast(image),
    "equalize": lambda image, v, s, how: ImageOps.equalize(image),
    "invert": lambda image, v, s, how: ImageOps.invert(image),
    "rotate": lambda image, v, s, how: image.rotate(30 * s * v, **how),
    # Keep at least one bit: at magnitude 10 none would be left, and Pillow would raise.
    "posterize": lambda image, v, s, how: ImageOps.posterize(image, max(1, 4 - int(4 * v))),
    "solarize": lambda image, v, s, how: ImageOps.solarize(image, 256 - int(256 * v)),
    "solarize_add": lambda image, v, s, how: _solarize_add(image, int(110 * v)),
    "color": lambda image, v, s, how: ImageEnhance.Color(image).enhance(_scale_factor(v, s)),
    "contrast": lambda image, v, s, how: ImageEnhance.Contrast(image).enhance(_scale_factor(v, s)),
    "brightness": lambda image, v, s, how: ImageEnhance.Brightness(image).enhance(_scale_factor(v, s)),
    "sharpness": lambda image, v, s, how: ImageEnhance.Sharpness(image).enhance(_scale_factor(v, s)),
    "shear_x": lambda image, v, s, how: _transform(image, (1, 0.3 * s * v, 0, 0, 1, 0), how),
    "shear_y": lambda image, v, s, how: _transform(image, (1, 0, 0, 0.3 * s * v, 1, 0), how),
    "translate_x": lambda image, v, s, how: _transform(image, (1, 0, 0.45 * s * v * image.width, 0, 1, 0), how),
    "translate_y": lambda image, v, s, how: _transform(image, (1, 0, 0, 0, 1, 0.45 * s * v * image.height), how),
}
NAMES = tuple(OPS)


def rand_augment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    count: int,
    magnitude: float,
    std: float,
    probability: float,
    mean: Sequence[float],
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Apply `count` ops drawn with replacement, each with `probability`, at magnitude N(magnitude, std) in [0, 10].

    Args:
        image: uint8 [H, W, 3].
        mean: mean per channel of pixels in [0, 1]; the fill colour outside the image.

    Returns:
        uint8 [H, W, 3].
    """
    how = {"resample": FILTER[interpolation], "fillcolor": tuple(min(255, round(255 * m)) for m in mean)}
    result = Image.fromarray(image)
    for op in rng.integers(len(NAMES), size=count):
        if rng.random() < probability:
            v = min(max(rng.normal(magnitude, std), 0.0), 10.0) / 10
            result = OPS[NAMES[op]](result, v, 1 if rng.random() < 0.5 else -1, how)
    return np.asarray(result)
