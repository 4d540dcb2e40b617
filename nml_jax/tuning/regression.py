"""Heads with one output, which predict a number: they are trained on standardised targets, and start from ridge."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nml_jax.console import list_words
from nml_jax.errors import UserError
from nml_jax.tuning import methods, probes
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import Demands, find_further

ALPHA = "alpha"  # the name of the penalty of a ridge probe among the settings of a head
INSTEAD = {"lbfgs": "ridge", "knn": "ridge or mlp"}  # what to use in place of methods that only classify


class Scale(NamedTuple):
    """Mean and standard deviation of training targets."""

    mean: float
    std: float

    def standardize(self, targets: np.ndarray) -> np.ndarray:
        """Return targets with mean 0 and variance 1 over the training rows, float32 [N]."""
        return ((np.asarray(targets, np.float64) - self.mean) / self.std).astype(np.float32)

    def restore(self, head: Any) -> Any:
        """Return a head that predicts targets from one that predicts standardised ones."""
        own = head.params["classifier"]
        kernel, bias = np.float64(own["kernel"]) * self.std, np.float64(own["bias"]) * self.std + self.mean
        classifier = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
        return dataclasses.replace(head, params={**head.params, "classifier": classifier})


def is_regression(num_classes: int) -> bool:
    """Return whether heads with so many outputs predict a number."""
    return num_classes == 1


def measure_scale(targets: np.ndarray) -> Scale:
    """Return the scale of training targets, real [N], of which two differ."""
    targets = np.asarray(targets, np.float64)
    return Scale(float(targets.mean()), float(targets.std()))


def check_targets(targets: Any) -> np.ndarray:
    """Return training targets, floats [N], as float64.

    Raises:
        UserError: one is not finite, or all are equal.
    """
    found = np.asarray(targets, np.float64)
    if not (finite := np.isfinite(found)).all():
        raise UserError(f"row {finite.argmin()} has the target {found[finite.argmin()]}", "repair the row, or drop it")
    if np.ptp(found) == 0:
        raise UserError(f"every training target is {found[0]:g}", "give rows with different targets")
    return found


def check_methods(names: Sequence[str], what: str = "tune.methods") -> None:
    """Raise UserError if a method cannot predict numbers, and say what to use instead."""
    if wrong := [name for name in names if not methods.find(name).regresses]:
        known = [name for name, method in methods.METHODS.items() if method.regresses]
        instead = " and ".join(f"{INSTEAD[name]} instead of {name}" for name in wrong)
        raise UserError(
            f"{list_words(wrong)} predicts classes, and the labels are numbers to be predicted",
            f"use {instead}, as configs/features.py:regression does; {what} may hold {', '.join(known)}",
        )


def choose_probe(
    F: np.ndarray,
    targets: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    *,
    alphas: Sequence[float],
    demands: Demands,
    widen: bool = False,
) -> tuple[probes.Linear, float]:
    """Solve a ridge regression for each α; return the best probe on held-out rows, and its α.

    Args:
        F: float32 [N, D], as the head sees them.
        targets: float32 [N], standardised.
        parts: rows to train on, and rows to validate on. Without the latter the middle of the grid is taken.
        alphas: the grid. Where scores are equal, the lower loss decides.
        demands: what the probe is to be good at.
        widen: also try the α beyond the edge of the grid, if the best one is there.
    """
    train, held_out = parts
    alphas = sorted(alphas)
    if not len(held_out):
        alphas = alphas[len(alphas) // 2 :][:1]

    def solve(grid: Sequence[float]) -> list[probes.Linear]:
        return probes.fit_ridge(F[train], targets[train], grid, num_classes=1)

    found = dict(zip(alphas, solve(alphas), strict=True))

    def pick() -> float:
        return min(found, key=lambda alpha: demands.rank(demands.score(found[alpha](F[held_out]), targets[held_out])))

    if len(found) == 1:
        return found[alphas[0]], alphas[0]
    best = pick()
    if widen and (further := find_further(alphas, best)):
        found[further] = solve([further])[0]
        best = pick()
    return found[best], best


def restore_heads(heads: Sequence[Any], targets: np.ndarray) -> list[Any]:
    """Return heads that predict targets from those of standardised ones; `targets` are those of training."""
    scale = measure_scale(targets)
    return [scale.restore(head) if isinstance(head, TunedHead) else head for head in heads]
