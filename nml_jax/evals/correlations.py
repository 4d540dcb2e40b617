"""Scores of predicted numbers: Pearson's and Spearman's correlation, R² and the root mean square error, in float64.

A correlation of constant numbers is 0 / 0, and so is R² of constant targets. Such a score is undefined, which is None.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from nml_jax.errors import UserError
from nml_jax.evals.answers import Answers, Shares, share_values

Array = NDArray[np.float64]
UNDEFINED = "_undefined"  # ends the name of a score that is 1 where the score itself is undefined


def pearson(answers: Answers) -> float | None:
    """Return Pearson's correlation of predictions and targets, in [−1, 1]; None if either is constant.

    Raises:
        UserError: there is no example.
    """
    y, x = _read(answers)
    return None if _is_constant(x, y) else float(np.clip(_center(x) @ _center(y), -1, 1))


def spearman(answers: Answers) -> float | None:
    """Return Spearman's correlation: Pearson's of ranks, where equal numbers share their mean rank.

    Raises:
        UserError: there is no example.
    """
    y, x = _read(answers)
    return pearson(Answers(rankdata(y), rankdata(x)))


def r2(answers: Answers) -> float | None:
    """Return 1 − Σ(y − x)² / Σ(y − mean y)² of predictions x and targets y; None if the targets are constant.

    Raises:
        UserError: there is no example.
    """
    y, x = _read(answers)
    return None if _is_constant(y) else float(1 - ((y - x) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def rmse(answers: Answers) -> float:
    """Return the root of the mean of (y − x)², in the unit of the targets.

    Raises:
        UserError: there is no example.
    """
    y, x = _read(answers)
    return float(np.sqrt(((y - x) ** 2).mean()))


SCORES: dict[str, Callable[[Answers], float | None]] = {
    "pearson": pearson, "spearman": spearman, "r2": r2, "rmse": rmse,
}  # fmt: skip
CORRELATIONS = ("pearson", "spearman")


def compute_numbers(answers: Answers, names: Any = tuple(SCORES)) -> dict[str, float]:
    """Return scores by name; for one that is undefined 1, under its name with UNDEFINED.

    Args:
        names: keys of SCORES.

    Raises:
        UserError: there is no example.
    """
    found = {name: SCORES[name](answers) for name in names}
    return {name + UNDEFINED * (value is None): 1.0 if value is None else value for name, value in found.items()}


def share_pearson(answers: Answers) -> Shares:
    """Return Pearson's correlation as a mean over rows: r + zx·zy − r (zx² + zy²) / 2."""
    y, x = _read(answers)
    if _is_constant(x, y):
        return share_values(np.zeros(len(x)))
    zx, zy = (_center(own) * np.sqrt(len(own)) for own in (x, y))
    r = float(zx @ zy) / len(x)
    return share_values(r + zx * zy - r * (zx**2 + zy**2) / 2)


def share_spearman(answers: Answers) -> Shares:
    """Return Spearman's correlation as a mean over rows, by its derivative in each row.

    A row more also moves the ranks of the others: with ranks u and v as shares of rows, the mean of u·v moves by
    u₀v₀ + E[K(x₀, x) v] + E[K(y₀, y) u] − 3 E[u v], where K(a, b) is 1 if a < b, and 1/2 if they are equal.
    """
    y, x = _read(answers)
    if _is_constant(x, y):
        return share_values(np.zeros(len(x)))
    n = len(x)
    u, v = ((rankdata(own) - 0.5) / n for own in (x, y))  # of each row, the share of rows below it
    both, uu, vv = (u * v).mean(), (u * u).mean(), (v * v).mean()
    moved = u * v + _average_above(x, v) + _average_above(y, u) - 3 * both
    moved_u = u * u + 2 * _average_above(x, u) - 3 * uu
    moved_v = v * v + 2 * _average_above(y, v) - 3 * vv
    variances = uu - 0.25, vv - 0.25
    scale = np.sqrt(variances[0] * variances[1])
    r = (both - 0.25) / scale
    return share_values(r + moved / scale - r * (moved_u / variances[0] + moved_v / variances[1]) / 2)


def _average_above(x: Array, values: Array) -> Array:
    """Return for each row the mean over all rows of K(its x, their x) · their value, with K of `share_spearman`."""
    _, of = np.unique(x, return_inverse=True)
    sums = np.bincount(of, values)
    above = np.cumsum(sums[::-1])[::-1] - sums
    return (above + sums / 2)[of] / len(x)


def share_r2(answers: Answers) -> Shares:
    """Return R² = 1 − l as a mean over rows: R² − (e² − l·d²) / s², with errors e, and targets d from their mean."""
    y, x = _read(answers)
    if _is_constant(y):
        return share_values(np.zeros(len(y)))
    error, spread = (y - x) ** 2, (y - y.mean()) ** 2
    lost = error.mean() / spread.mean()
    return share_values(1 - lost - (error - lost * spread) / spread.mean())


def share_rmse(answers: Answers) -> Shares:
    """Return the root mean square error as a mean over rows."""
    y, x = _read(answers)
    error, root = (y - x) ** 2, rmse(answers)
    return share_values(root + (error - root**2) / (2 * root) if root else np.zeros(len(y)))


def _read(answers: Answers) -> tuple[Array, Array]:
    """Return targets and predictions in float64."""
    y, x = (np.asarray(own, np.float64) for own in (answers.labels, answers.predictions))
    if not len(y):
        raise UserError("there is nothing to score: the split is empty", "choose a split with examples")
    return y, x


def _is_constant(*several: ArrayLike) -> bool:
    return any(np.ptp(own) == 0 for own in several)


def _center(x: Array) -> Array:
    """Return numbers less their mean, over their norm."""
    x = x - x.mean()
    x = x / np.abs(x).max()  # squares of very small or large numbers leave float64
    return x / np.linalg.norm(x)
