"""Hold out training rows and score heads on them, to choose hyper-parameters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from nml_jax.console import list_words
from nml_jax.data.stratify import bin_scores, hold_out, hold_out_groups
from nml_jax.errors import UserError
from nml_jax.evals import metrics
from nml_jax.evals.metrics import METRICS, Answers, compute_losses


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


class Demands(NamedTuple):
    """What heads of one set of rows are to be good at.

    metric: a key of METRICS, which decides the settings, the probe's penalty and when training stops; equal heads are
        told apart by the loss. "": accuracy decides the settings, and the loss all else.
    class_weights: of the classes in the cross-entropy, float64 [K]; None: 1 each. Terms of NMTune are not weighted:
        they are about features, not about classes.
    groups: [N]; rows of one value are all trained on or all held out. None: each row is its own.
    q: of the generalised cross-entropy, where heads minimise that: it is their loss on held-out rows, too. 0: they
        minimise the cross-entropy.
    """

    metric: str = ""
    class_weights: np.ndarray | None = None
    groups: np.ndarray | None = None
    q: float = 0.0

    def hold_out(self, labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Hold out a share of the rows; see `stratify.hold_out` and `hold_out_groups`. Scores are stratified, too."""
        labels = bin_scores(labels)
        if self.groups is None:
            return hold_out(labels, share, seed)
        return hold_out_groups(labels, self.groups, share, seed)

    def weigh(self, labels: np.ndarray) -> np.ndarray | None:
        """Return the weight of each row, float64 [N]; None if all are 1."""
        return None if self.class_weights is None else self.class_weights[labels]

    def compute_losses(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return what a head loses on every row, float64 [M], for finite logits [M, K]; see `step.generalise`."""
        losses = compute_losses(logits, labels)
        return -np.expm1(-self.q * losses) / self.q if self.q else losses

    def score(self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return "accuracy", "loss" and the metric of logits [M, K]; the worst if they are not finite.

        The loss is the cross-entropy in nats for q = 0.
        Of a regression (K = 1) the loss is half the mean squared error, and there is no accuracy.

        Args:
            weights: of the rows in "loss", [M], besides those of their classes.
        """
        if not np.isfinite(logits).all():
            own = {self.metric: -METRICS[self.metric].way * math.inf} if self.metric else {}
            return {"accuracy": 0.0, "loss": math.inf} | own
        if logits.shape[1] == 1:
            return self._score_numbers(logits[:, 0], labels)
        predictions = logits.argmax(1)
        out = {
            "accuracy": float((predictions == labels).mean()),
            "loss": float(
                np.average(self.compute_losses(logits, labels), weights=multiply(weights, self.weigh(labels)))
            ),
        }
        if self.metric and self.metric != "accuracy":
            own = METRICS[self.metric]
            needed: Any = compute_losses(logits, labels)
            if own.needs == "confusion":
                needed = metrics.confusion(labels, predictions, logits.shape[1])
            elif own.needs == "numbers":
                needed = Answers(labels, predictions)
            value = own.score(needed)
            out[self.metric] = -own.way * math.inf if value is None else value
        return out

    def _score_numbers(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        errors = np.float64(predictions) - targets
        out = {"loss": float((errors**2).mean() / 2)}
        value = METRICS[self.metric].score(Answers(targets, predictions)) if self.metric else -out["loss"]
        return out | {self.metric or "accuracy": -METRICS[self.metric].way * math.inf if value is None else value}

    def rank(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """Return a key by which heads are sorted while they are trained, the best first; its last is the loss."""
        own = (-METRICS[self.metric].way * scores[self.metric],) if self.metric else ()
        return (*own, scores["loss"])

    def rank_setting(self, scores: Mapping[str, float], tie: float) -> tuple[float, float]:
        """Return a key by which settings are sorted, the best first."""
        metric = self.metric or "accuracy"
        return -METRICS[metric].way * scores[metric], tie


def multiply(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    """Return the product of weights, each None if all are 1."""
    return b if a is None else a if b is None else a * b


PLAIN = Demands()
SCORES = {"accuracy", "loss", *METRICS}  # names in `HeadResult.validation` that are not hyper-parameters


def score_held_out(
    head: Predictor, features: np.ndarray, labels: np.ndarray, demands: Demands = PLAIN
) -> dict[str, float]:
    """Return the scores of a head over all views of features [M, V, D], see `Demands.score`."""
    labels = np.repeat(labels, features.shape[1])
    _, logits = head.outputs(features.reshape(len(labels), -1))
    return demands.score(logits, labels)
