"""Train a head from a solved probe, and stop when the validation loss no longer falls.

A head with a residual starts where it equals the probe: the classifier has its weights, and the scale of the MLP is 0.
Its gradient is not 0, so the MLP joins in with the first step. The classifier keeps the probe's penalty.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import numpy as np

from nml_jax.models.heads.mlp import Form
from nml_jax.tuning import descent
from nml_jax.tuning.descent import Carry, Setting, Spec, TrainingSet
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import cross_entropy, find_further
from nml_jax.tuning.probes import Linear, fit_lbfgs

CS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # inverse strengths of the probe's L2 penalty, as scikit-learn's C


def choose_probe(
    F: np.ndarray,
    labels: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    cs: Sequence[float] = CS,
    weights: np.ndarray | None = None,
    widen: bool = False,
) -> tuple[Linear, float]:
    """Solve a logistic regression for each C, and return the probe of the lowest validation loss and its C.

    Args:
        F: float32 [N, D], as the head sees them.
        labels: int [N].
        parts: rows to train on, and rows to validate on. Without the latter the middle of the grid is taken.
        num_classes: K.
        cs: the grid.
        weights: of the rows in the loss, [N]; None: 1 each.
        widen: also try the C beyond the edge of the grid, if the best one is there.
    """
    train, held_out = parts
    cs = sorted(cs)
    if not len(held_out):
        cs = cs[(len(cs) - 1) // 2 :][:1]
    own = None if weights is None else weights[train] / weights[train].mean()
    solve = partial(fit_lbfgs, F[train], labels[train], num_classes=num_classes, weights=own)
    if len(cs) == 1:
        return solve(cs)[0], cs[0]
    held = None if weights is None else weights[held_out]

    def judge(values: Sequence[float]) -> list[tuple[float, Linear, float]]:
        return [(cross_entropy(probe(F[held_out]), labels[held_out], held), probe, c)
                for probe, c in zip(solve(values), values, strict=True)]  # fmt: skip

    best = min(judge(cs), key=itemgetter(0))
    if widen and (further := find_further(cs, best[2])):
        best = min(best, *judge([further]), key=itemgetter(0))
    return best[1:]


def make_linear(probe: Linear, state: Any) -> TunedHead:
    """Return a probe as a linear head; `state` holds the standardisation of its input, or nothing."""
    return TunedHead(Form(mlp=False), {"classifier": {"kernel": probe.kernel, "bias": probe.bias}}, state)


def compute_penalty(c: float, n: int, num_classes: int) -> float:
    """Return the penalty of the kernel in a mean loss that is C's of `fit_lbfgs` on n rows."""
    return (2 if num_classes == 2 else 1) / (c * n)


def start_at(carry: Carry, probe: Linear) -> Carry:
    """Return a start that computes what the probe does; see the module."""
    params = {**carry.params, "classifier": {"kernel": probe.kernel, "bias": probe.bias}}
    if "scale" in params:
        params["scale"] = np.zeros_like(params["scale"])
    return carry._replace(params=jax.device_put(params))


class Training:
    """A training that can be interrupted, looked at and continued.

    Args:
        spec: static arguments.
        carry: where to start; it is used up.
        bank, setting: on the device, as `descent.advance` takes them.
        n: rows to train on.
        horizon: passes over them after which the cosine reaches 0.
        score: returns the validation loss of a head, in nats; None: there is no validation.
        tell: called with the number of every epoch, from 1, and its loss.
        started: the start is a head of its own, so that it may be the best.

    Attributes:
        losses: validation loss of every epoch, in nats.
        lowest, best: the lowest loss, and the epochs after which it was reached; 0: the start.
        done: epochs.
    """

    def __init__(
        self,
        spec: Spec,
        carry: Carry,
        bank: TrainingSet,
        setting: Setting,
        n: int,
        *,
        horizon: int,
        score: Callable[[TunedHead], float] | None = None,
        tell: Callable[[int, float], None] = lambda i, loss: None,
        started: bool = False,
    ):
        self.spec, self.carry, self.bank, self.setting, self.n = spec, carry, bank, setting, np.int32(n)
        self.total, self.score, self.tell = np.int32(horizon * -(-n // spec.batch)), score, tell
        self.losses: list[float] = []
        self.done = self.best = 0
        self.kept = self._fetch() if started and score else None
        self.lowest = score(self.kept) if score and self.kept else math.inf

    def run(self, until: int, patience: float = math.inf) -> TunedHead:
        """Train up to that number of epochs, or until the loss has not fallen for `patience` epochs.

        Returns:
            The head of the lowest validation loss; without validation, the last one.
        """
        while self.done < until and not (self.score and self.done - self.best >= patience):
            self.carry = descent.advance(
                self.spec, self.carry, self.bank, self.setting, self.n, np.int32(self.done), self.total
            )
            self.done += 1
            if self.score:
                self._judge(self.score)
            else:
                jax.block_until_ready(self.carry.params)
            self.tell(self.done, self.losses[-1] if self.losses else math.nan)
        return self.kept or self._fetch()

    def _judge(self, score: Callable[[TunedHead], float]) -> None:
        head = self._fetch()
        self.losses.append(score(head))
        if self.losses[-1] < self.lowest or self.kept is None:
            self.kept, self.lowest, self.best = head, self.losses[-1], self.done

    def _fetch(self) -> TunedHead:
        return TunedHead(self.spec.form, *jax.device_get((self.carry.params, self.carry.state)))
