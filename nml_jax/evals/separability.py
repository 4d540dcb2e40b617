"""Class separability of features, in float64 and without a fit: scatter ratio, nearest-class-mean accuracy."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nml_jax.errors import UserError

BLOCK = 4096  # rows that are converted to float64 at a time
EPS = float(np.finfo(np.float64).eps)


def measure_separability(F: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Return two measures of class separability, which shifts, rotations and a common scale do not change.

    fisher_ratio: tr S_b / tr S_w, the scatter between classes over that within them (Fukunaga 1990, ch. 10): Σ n_c
        ‖μ_c − μ‖² over Σ ‖x − μ_y‖². It is 0 if all class means are equal, and at most 1/ε, for classes of one point.
    class_mean_accuracy: leave-one-out accuracy of the nearest class mean (Euclidean): each row is left out of the mean
        of its own class. A tie, and a row that is alone in its class, is wrong.

    Args:
        F: [N, D] of any real dtype, NumPy or memory-mapped. It is read three times, in blocks of 4096 rows.
        labels: [N] of any dtype, two classes or more.

    Raises:
        UserError: shapes do not fit, features are not finite, or there are fewer than two classes.
    """
    F, labels = np.asarray(F), np.asarray(labels)
    if F.ndim != 2 or not F.size or labels.shape != F.shape[:1]:
        raise UserError(f"features {F.shape} and labels {labels.shape} do not fit", "give [N, D], N and D ≥ 1, and [N]")
    classes, y, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise UserError(f"all rows are of class {classes[0]!r}", "give rows of two classes or more")

    starts = range(0, len(F), BLOCK)
    sums = np.zeros((len(classes), F.shape[1]))
    for start in starts:
        np.add.at(sums, y[start : start + BLOCK], _read_rows(F, start))
    means = sums / counts[:, None]
    centre = counts @ means / len(F)
    means -= centre
    between = float(counts @ (means**2).sum(axis=1))

    within, right = 0.0, 0
    for start in starts:
        x, own = _read_rows(F, start) - centre, y[start : start + BLOCK]
        within += float(((x - means[own]) ** 2).sum())
        distance = (x**2).sum(axis=1, keepdims=True) - 2 * x @ means.T + (means**2).sum(axis=1)
        every = np.arange(len(x))
        with np.errstate(divide="ignore"):
            # Without x, the mean of its class moves away from x: x - (nμ - x)/(n - 1) = (x - μ) n/(n - 1).
            away = np.where(counts[own] > 1, (counts[own] / (counts[own] - 1)) ** 2, np.inf)
        mine = away * np.maximum(((x - means[own]) ** 2).sum(axis=1), np.finfo(np.float64).tiny)
        distance[every, own] = np.inf
        right += int((mine < distance.min(axis=1)).sum())
    total = between + within
    ratio = between / max(within, EPS * total) if total else 0.0
    return {"fisher_ratio": ratio, "class_mean_accuracy": right / len(F)}


def _read_rows(F: np.ndarray, start: int) -> Any:
    """Return a block of rows in float64, less the first row of all, so that constant features become exact zeros."""
    rows = np.asarray(F[start : start + BLOCK], np.float64)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise UserError(f"row {start + finite.argmin()} of the features is not finite", "leave such rows out")
    return rows - np.asarray(F[0], np.float64)
