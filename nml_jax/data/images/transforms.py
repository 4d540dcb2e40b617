"""Image transforms on the host: crops, augmentation, resizing, and the shifts of test images.

All functions are pure. They take and return uint8 [H, W, 3] and draw only from the given `np.random.Generator`.
Normalisation happens on the device.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image

from nml_jax import ranges
from nml_jax.data.images.codec import decode
from nml_jax.data.images.randaugment import FILTER, rand_augment
from nml_jax.errors import UserError

Step = Callable[[np.ndarray, np.random.Generator], np.ndarray]

RESIZES = ("shortest", "squash")
CROPS = ("random_resized", "pad", "none")
CV2_FILTER = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def check_ranges(config: Any) -> None:
    """Raise UserError if a value of the section `augment` is out of range."""
    ranges.require_at_least(1, "augment", config, "repeats")
    ranges.require_at_least(0, "augment", config, "pad", "randaugment")
    ranges.require_share("augment", config, "flip", "erase", "randaugment_prob")
    ranges.require_interval("augment", config, "scale", "ratio")


def resize(
    image: np.ndarray, height: int, width: int, *, interpolation: str = "bicubic", antialias: bool = True
) -> np.ndarray:
    """Resize to [height, width, 3].

    Args:
        interpolation: "bilinear" or "bicubic".
        antialias: True: filter over the whole source area of a pixel with Pillow, as published evaluations do (bicubic
            a = -0.5). False: sample the nearest 2x2 or 4x4 source pixels with OpenCV (a = -0.75).
    """
    if image.shape[:2] == (height, width):
        return image
    if antialias:
        return np.asarray(Image.fromarray(image).resize((width, height), FILTER[interpolation]))
    return cv2.resize(image, (width, height), interpolation=CV2_FILTER[interpolation])


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Cut out the middle [size, size, 3]. The image must be at least that large."""
    top, left = (round((n - size) / 2) for n in image.shape[:2])
    return image[top : top + size, left : left + size]


def fit(image: np.ndarray, size: int, *, crop: float = 1.0, squash: bool = False, **how: Any) -> np.ndarray:
    """Resize the shorter side to size / crop, keeping the aspect ratio, and cut out the middle [size, size, 3].

    With `squash`, both sides become size / crop.
    """
    height, width = image.shape[:2]
    short, now = int(size / crop), min(height, width)
    if squash:
        return centre_crop(resize(image, short, short, **how), size)
    return centre_crop(resize(image, short * height // now, short * width // now, **how), size)


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    scale: Sequence[float],
    ratio: Sequence[float],
    **how: Any,
) -> np.ndarray:
    """Crop a box of random area and aspect ratio and resize it to [size, size, 3].

    The "Inception" crop (Szegedy et al. 2015, section 6). The area is a share of the image's, uniform in `scale`. The
    log aspect ratio (width / height) is uniform in `ratio`. After ten boxes that do not fit, use the largest centred
    box within `ratio`.
    """
    height, width = image.shape[:2]
    narrow, wide = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        share = scale[0] + (scale[1] - scale[0]) * rng.random()  # rng.uniform takes three times as long
        area, aspect = height * width * share, math.exp(narrow + (wide - narrow) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            break
    else:
        aspect = min(max(width / height, ratio[0]), ratio[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        top, left = (height - h) // 2, (width - w) // 2
    return resize(image[top : top + h, left : left + w], size, size, **how)


def pad_crop(image: np.ndarray, rng: np.random.Generator, *, pad: int) -> np.ndarray:
    """Pad every side with `pad` zeros and crop a random window of the original size."""
    height, width = image.shape[:2]
    top, left = rng.integers(2 * pad + 1, size=2)
    return np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[top : top + height, left : left + width]


def flip(image: np.ndarray, rng: np.random.Generator, *, probability: float) -> np.ndarray:
    """Exchange left and right with this probability."""
    return cv2.flip(image, 1) if rng.random() < probability else image  # a reversed NumPy view is slow to copy


def random_erasing(
    image: np.ndarray, rng: np.random.Generator, *, probability: float, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Replace a random box by noise with this probability (Zhong et al. 2017, "pixel" mode).

    The box has 2 to 33 % of the area and an aspect ratio of 0.3 to 1/0.3. Each value is N(0, 1) after normalisation,
    that is N(mean, std) in pixels, clipped to uint8.
    """
    if rng.random() >= probability:
        return image
    height, width = image.shape[:2]
    for _ in range(10):
        area, aspect = height * width * rng.uniform(0.02, 1 / 3), math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            noise = 255 * (np.asarray(mean) + np.asarray(std) * rng.standard_normal((h, w, 3)))
            image = image.copy()
            image[top : top + h, left : left + w] = np.rint(noise).clip(0, 255)
            break
    return image


def train_transform(
    augment: Any, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]:
    """Return f(record, rng), which decodes, crops and augments the image: uint8 [image_size, image_size, 3].

    Args:
        augment: the section `config.augment`.
        mean, std: statistics per channel of pixels in [0, 1], for the fill colour of RandAugment and the noise of
            random erasing.

    Raises:
        UserError: a value of `augment` is not one of its choices.
    """
    how = _read_resampling(augment)
    if augment.crop == "random_resized":
        where = {"scale": tuple(augment.scale), "ratio": tuple(augment.ratio)}
        steps: list[Step] = [partial(random_resized_crop, size=image_size, **where, **how)]
    else:
        steps = [lambda image, rng: fit(image, image_size, **how)]
    if augment.crop == "pad":
        steps.append(partial(pad_crop, pad=augment.pad))
    if augment.flip:
        steps.append(partial(flip, probability=augment.flip))
    if augment.randaugment:
        strength = {"magnitude": augment.randaugment_magnitude, "std": augment.randaugment_std}
        chance = {"count": augment.randaugment, "probability": augment.randaugment_prob}
        steps.append(partial(rand_augment, **strength, **chance, mean=mean, interpolation=augment.interpolation))
    if augment.erase:
        steps.append(partial(random_erasing, probability=augment.erase, mean=mean, std=std))

    def transform(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = decode(record["image"])
        for step in steps:
            image = step(image, rng)
        return record | {"image": image}

    return transform


def eval_transform(
    augment: Any, image_size: int
) -> Callable[[dict[str, Any], np.random.Generator | None], dict[str, Any]]:
    """Return f(record, rng=None), which decodes, resizes and centre-crops the image: uint8 [size, size, 3].

    size is augment.test_size or image_size. Random-resized crops enlarge objects in training; `test_crop` compensates
    (Touvron et al. 2019). The other crops do not, so the whole shorter side is kept, and an image that already has this
    size stays as it is.

    Raises:
        UserError: a value of `augment` is not one of its choices.
    """
    how = _read_resampling(augment) | {"squash": augment.resize == "squash"}
    size = augment.test_size or image_size
    crop = augment.test_crop if augment.crop == "random_resized" else 1.0
    if not 0 < crop <= 1:
        raise UserError(f"augment.test_crop must be above 0 and at most 1, got {crop}", "such as 0.875")
    return lambda record, rng=None: record | {"image": fit(decode(record["image"]), size, crop=crop, **how)}


def _read_resampling(augment: Any) -> dict[str, Any]:
    for key, choices in (("crop", CROPS), ("interpolation", tuple(FILTER)), ("resize", RESIZES)):
        if getattr(augment, key) not in choices:
            cure = f"it must be one of {', '.join(choices)}"
            raise UserError(f"unknown augment.{key}={getattr(augment, key)!r}", cure)
    return {"interpolation": augment.interpolation, "antialias": augment.antialias}


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(image, matrix, (image.shape[1], image.shape[0]), flags=cv2.INTER_LINEAR)


def _shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move the image by an eighth of its size in one of eight directions. Fill with zeros."""
    step = max(1, round(max(image.shape[:2]) / 8))
    dy, dx = divmod(int(rng.choice([0, 1, 2, 3, 5, 6, 7, 8])), 3)
    return _warp(image, np.array([[1, 0, step * (dx - 1)], [0, 1, step * (dy - 1)]], np.float32))


def _add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add N(0, 0.2) to every value of pixels in [0, 1]."""
    return np.rint(image + 0.2 * 255 * rng.standard_normal(image.shape)).clip(0, 255).astype(np.uint8)


def _invert(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - image


def _rotate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate the image by 20 to 40 degrees in a random direction. Fill with zeros."""
    height, width = image.shape[:2]
    angle = rng.uniform(20, 40) * (1 if rng.random() < 0.5 else -1)
    return _warp(image, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0))


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian of sigma = 0.5 + size / 64 pixels: 0.6 for 8-pixel images, 1.5 for 64, 4 for 224."""
    return cv2.GaussianBlur(image, (0, 0), 0.5 + max(image.shape[:2]) / 64)


# Shifts of test images. Lengths scale with the image, so 8-pixel digits and 64-pixel photos are affected equally.
SHIFTS: dict[str, Step] = {
    "shifted": _shift,
    "gaussian_noise": _add_noise,
    "inverted": _invert,
    "rotated": _rotate,
    "blurred": _blur,
}
