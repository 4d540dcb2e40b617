"""Position embeddings of one grid of patches, read for another."""

import math
from typing import Any

import jax
import numpy as np

from nml_jax import console


def fit(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """Resample position embeddings [1, 1 + n², C], class token first, to [1, 1 + m², C], and say so.

    This is timm's `resample_abs_pos_embed`: bicubic with a = −0.5, low-pass filtered when the grid shrinks, in float32.
    What cannot be resampled to `shape`, or has it already, is returned as it is.

    Args:
        name: of the tensor, for the line.
    """
    sides = [_find_side(x) for x in (value.shape, shape)]
    if value.shape == shape or None in sides or value.shape[-1] != shape[-1]:
        return value
    old, new = sides
    value = np.asarray(value, np.float32)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        grid = jax.image.resize(value[0, 1:].reshape(old, old, -1), (new, new, shape[-1]), "cubic")
    if jax.process_index() == 0:
        console.notice_once(f"{name} of {old}x{old} patches is resampled to {new}x{new}, as in timm")
    return np.concatenate([value[:, :1], np.asarray(grid).reshape(1, -1, shape[-1])], axis=1)


def _find_side(shape: tuple[int, ...]) -> int | None:
    """Return n of a shape (1, 1 + n², C); None of another one."""
    if len(shape) != 3 or shape[0] != 1 or shape[1] < 2:
        return None
    side = math.isqrt(shape[1] - 1)
    return side if side**2 == shape[1] - 1 else None
