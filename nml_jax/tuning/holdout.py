"""Hold out training rows and score heads on them, to choose hyper-parameters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from nml_jax.console import list_words
from nml_jax.errors import UserError


class Predictor(Protocol):
    """A tuned head, or a probe without weights (k-NN)."""

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Z float32 [M, D] and logits float32 [M, K] of features [M, D]."""
        ...


def check_choices(share: float, choices: Mapping[str, Sequence[float]]) -> None:
    """Raise UserError if a config key of `choices` has several values but `share` holds out nothing to choose by."""
    keys = [key for key, values in choices.items() if len(values) > 1]
    if keys and not share:
        raise UserError(
            f"tune.validation=0 leaves no rows to choose {list_words(keys)} by",
            f"set tune.validation above 0, or give {'each of them' if len(keys) > 1 else keys[0]} one value",
        )


def find_further(values: Iterable[float], best: float) -> float | None:
    """Return the value beyond the edge of a grid at which the best one lies, by the grid's own ratio.

    Returns:
        An integer where all values are. None if the best value lies inside, if the grid has one value, or if it has no
        ratio at that edge, as between 0 and 1e-4, or below 1 for integers.
    """
    grid = sorted(set(values))
    if len(grid) < 2 or best not in (grid[0], grid[-1]):
        return None
    edge, inner = grid[:2] if best == grid[0] else grid[:-3:-1]
    if not edge or not inner:
        return None
    if all(isinstance(value, int) for value in grid):
        return round(edge * edge / inner) or None
    return float(f"{edge * edge / inner:.6g}")


def list_further(grid: Sequence[Mapping[str, float]], best: Mapping[str, float]) -> list[dict[str, float]]:
    """Return a setting for each value of the best one at the edge of the grid: that value is one step further."""
    found = {name: find_further((setting[name] for setting in grid), best[name]) for name in grid[0]}
    own = {name: best[name] for name in grid[0]}
    return [{**own, name: value} for name, value in found.items() if value is not None]


def score_held_out(head: Predictor, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy (nats) over all views of features [M, V, D]; (0, inf) if it diverged."""
    labels = np.repeat(labels, features.shape[1])
    _, logits = head.outputs(features.reshape(len(labels), -1))
    if not np.isfinite(logits).all():
        return 0.0, math.inf
    return float((logits.argmax(1) == labels).mean()), cross_entropy(logits, labels)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the (weighted) mean of −log softmax(logits)[label] in nats, for finite logits [M, K]."""
    shifted = np.float64(logits) - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weights))
