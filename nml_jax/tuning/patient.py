"""Train a head from a solved probe, and stop when the validation loss no longer falls.

A head with a residual starts where it equals the probe: the classifier has its weights, and the scale of the MLP is 0.
Its gradient is not 0, so the MLP joins in with the first step. The classifier keeps the probe's penalty.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nml_jax.models.heads.mlp import Form
from nml_jax.tuning import descent, spread
from nml_jax.tuning.descent import Carry, Setting, Spec, TrainingSet
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import cross_entropy
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
) -> tuple[Linear, float]:
    """Solve a logistic regression for each C, and return the probe of the lowest validation loss and its C.

    Args:
        F: float32 [N, D], as the head sees them.
        labels: int [N].
        parts: rows to train on, and rows to validate on. Without the latter the middle of the grid is taken.
        num_classes: K.
        cs: the grid.
        weights: of the rows in the loss, [N]; None: 1 each.
    """
    train, held_out = parts
    cs = sorted(cs)
    if not len(held_out):
        cs = cs[(len(cs) - 1) // 2 :][:1]
    own = None if weights is None else weights[train] / weights[train].mean()
    probes = fit_lbfgs(F[train], labels[train], cs, num_classes=num_classes, weights=own)
    if len(cs) == 1:
        return probes[0], cs[0]
    held = None if weights is None else weights[held_out]
    losses = [cross_entropy(probe(F[held_out]), labels[held_out], held) for probe in probes]
    best = int(np.argmin(losses))
    return probes[best], cs[best]


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
        self.trees: tuple[Any, Any] | None = None  # parameters and state, if a group trains it
        self.kept = self._fetch() if started and score else None
        self.lowest = score(self.kept) if score and self.kept else math.inf

    def run(self, until: int, patience: float = math.inf) -> TunedHead:
        """Train up to that number of epochs, or until the loss has not fallen for `patience` epochs.

        Returns:
            The head of the lowest validation loss; without validation, the last one.
        """
        while self.is_wanted(until, patience):
            self.carry = descent.advance(
                self.spec, self.carry, self.bank, self.setting, self.n, np.int32(self.done), self.total
            )
            if not self.score:
                jax.block_until_ready(self.carry.params)
            self.note(None)
        return self.kept or self._fetch()

    def is_wanted(self, until: int, patience: float) -> bool:
        """Return whether `run` would go on."""
        return self.done < until and not (self.score and self.done - self.best >= patience)

    def note(self, trees: tuple[Any, Any] | None) -> None:
        """Note that an epoch is done; `trees` are the parameters and state of now, if another program trains it."""
        self.done += 1
        self.trees = trees
        if self.score:
            head = self._fetch()
            self.losses.append(self.score(head))
            if self.losses[-1] < self.lowest or self.kept is None:
                self.kept, self.lowest, self.best = head, self.losses[-1], self.done
        self.tell(self.done, self.losses[-1] if self.losses else math.nan)

    def _fetch(self) -> TunedHead:
        trees = self.trees or jax.device_get((self.carry.params, self.carry.state))
        return TunedHead(self.spec.form, *trees)


def run_all(
    runs: Sequence[Training], until: Sequence[int], patience: float = math.inf, group: spread.Group | None = None
) -> None:
    """Train each up to its number of epochs, or until its loss has not fallen for `patience` epochs.

    Args:
        runs: all those of `group`, in its order.
        until: of each; 0 leaves it as it is.
        group: trains them together. None: one after another.
    """
    if group is None:
        for run, end in zip(runs, until, strict=True):
            run.run(end, patience)
        return
    while any(active := [run.is_wanted(end, patience) for run, end in zip(runs, until, strict=True)]):
        for run, is_active, trees in zip(runs, active, group.advance(active, [run.done for run in runs]), strict=True):
            if is_active:
                run.note(trees)


def make_group(runs: Sequence[Training]) -> spread.Group | None:
    """Make the group of trainings of one program, where `spread.is_spread`; None: they train one after another."""
    if not runs or not spread.is_spread():
        return None
    first = runs[0]
    carries, settings = [run.carry for run in runs], [run.setting for run in runs]
    return spread.Group(first.spec, carries, first.bank, settings, int(first.n), int(first.total))
