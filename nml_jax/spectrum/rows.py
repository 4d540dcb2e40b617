"""The preparation of features for their spectrum: modes, checks, normalising and centring of rows."""

import sys
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nml_jax.errors import UserError

LARGEST = 1e140  # squares of larger values could overflow in a sum over rows


class Mode(TypedDict):
    """The preparation of features, as keywords of `singular_values` and `SpectrumMeter`."""

    normalize: str | None
    center: str | None


# The papers' formulas have neither step; the released code has both.
PRESETS: dict[str, Mode] = {
    "paper": {"normalize": None, "center": None},
    "code": {"normalize": "rows", "center": "samples"},
}


class Kind(NamedTuple):
    """What a meter, or a reduction on devices, makes of features."""

    normalize: str | None
    center: str | None
    exact: bool  # a QR factor in place of the Gram matrix


def is_on_device(F: Any) -> bool:
    """Return whether F is a JAX array of an accelerator, or of several devices; one CPU device is the host itself."""
    jax = sys.modules.get("jax")  # who has such an array has imported it
    if jax is None or not isinstance(F, jax.Array):
        return False
    return len(F.sharding.device_set) > 1 or find_platform(F) != "cpu"


def find_platform(F: Any) -> str:
    """Return the platform of a JAX array, such as "cpu" or "tpu"."""
    return next(iter(F.sharding.device_set)).platform


def find_preset(name: str) -> Mode:
    """Return the mode of that name in `PRESETS`.

    Raises:
        UserError: there is no such mode.
    """
    if name not in PRESETS:
        raise UserError(f"spectrum mode {name!r} is unknown", f"use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def check_mode(normalize: str | None, center: str | None) -> None:
    """Raise a UserError unless both are known."""
    if normalize not in (None, "rows"):
        raise UserError(f"normalize={normalize!r} is unknown", "use None or 'rows'")
    if center not in (None, "features", "samples"):
        raise UserError(f"center={center!r} is unknown", "use None, 'features' or 'samples'")


def check_mask(mask: ArrayLike | None, n: int) -> None:
    """Raise a UserError unless the mask has one value for each of n rows; None is every row."""
    if mask is not None and np.shape(mask) != (n,):
        raise UserError(f"a mask of shape {np.shape(mask)} does not fit", f"pass one value per row, {n}")


def count_directions(n: int, dim: int, center: str | None) -> int:
    """Return how many singular values can differ from zero: centring takes one dimension, from the rows or columns."""
    return min(n - (center == "features"), dim - (center == "samples"))


def make_row_error(row: Any, value: Any) -> UserError:
    """Make the error of a row that holds NaN, infinity or too large a value."""
    return UserError(
        f"row {row} of the features holds {value}",
        f"features must be finite and at most {LARGEST:g}: look at what made this row",
    )


def prepare(rows: np.ndarray, normalize: str | None, center: str | None, ids: np.ndarray) -> NDArray[np.float64]:
    """Return rows [B, D] in float64, checked, normalised and centred over D. Errors name rows by `ids`."""
    if not np.can_cast(np.asarray(rows).dtype, np.float64, "same_kind"):  # a complex number would lose a part
        raise UserError(f"features of dtype {np.asarray(rows).dtype} are not real numbers", "pass floats or integers")
    rows = np.ascontiguousarray(rows, np.float64)
    peak = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    bad = np.flatnonzero(~(peak <= LARGEST))  # also NaN
    if bad.size:
        raise make_row_error(ids[bad[0]], peak[bad[0]])
    if normalize == "rows":
        rows = rows / np.where(peak > 0, peak, 1)[:, None]  # first, so that no square underflows
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)  # at least its peak, 1, or 0 for zeros
    if center == "samples":
        rows = rows - rows.mean(axis=1, keepdims=True)
    return rows
