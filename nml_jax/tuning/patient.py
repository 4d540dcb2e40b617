"""Train a head from a solved probe, and stop when the validation loss no longer falls.

A head with a residual starts where it equals the probe: the classifier has its weights, and the scale of the MLP is 0.
Its gradient is not 0, so the MLP joins in with the first step. The classifier keeps the probe's penalty.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from nml_jax.data.stratify import hold_out
from nml_jax.models.heads.mlp import Form
from nml_jax.tuning import descent, spread
from nml_jax.tuning.descent import Carry, Setting, Spec, TrainingSet
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import PLAIN, Demands, find_further, multiply
from nml_jax.tuning.probes import Linear, fit_lbfgs, solve_once

CS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # inverse strengths of the probe's L2 penalty, as scikit-learn's C
HELD_OUT = 0.2  # share of the rows by which a penalty is chosen
ENOUGH, MOST = 2000, 5  # held-out rows that are enough to choose a penalty by; and draws of them
CLOSE = 1e-4  # tolerance of probes that only tell which penalty is best


def choose_probe(
    F: np.ndarray,
    labels: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    cs: Sequence[float] = CS,
    weights: np.ndarray | None = None,
    demands: Demands = PLAIN,
    once: bool = False,
    widen: bool = False,
) -> tuple[Linear, float]:
    """Solve a logistic regression for each C, and return the best probe on held-out rows, and its C.

    The best is the most accurate one, or that of the best `demands.metric`. A tie goes to the strongest penalty. On
    features of other domains this rule is better than the lowest loss, which prefers weak penalties where classes are
    far apart (docs/benchmarks.md).

    Args:
        F: float32 [N, D], as the head sees them.
        labels: int [N].
        parts: rows to train on, and rows to validate on. Without the latter the middle of the grid is taken.
        num_classes: K.
        cs: the grid.
        weights: of the rows in the loss, [N]; None: 1 each. They are scaled to 1 on average, those of classes are not.
        demands: what the probe is to be good at.
        once: take probes that were solved before (`probes.solve_once`).
        widen: also try the C beyond the edge of the grid, if the best one is there.
    """
    train, held_out = parts
    cs = sorted(cs)
    if not len(held_out):
        cs = cs[(len(cs) - 1) // 2 :][:1]
    own = None if weights is None else weights[train] / weights[train].mean()
    own = multiply(own, demands.weigh(labels[train]))
    solve = partial(solve_once if once else fit_lbfgs, F[train], labels[train], num_classes=num_classes, weights=own)
    if len(cs) == 1:
        return solve(cs)[0], cs[0]
    held = None if weights is None else weights[held_out]

    def judge(values: Sequence[float]) -> list[tuple[float, float, Linear]]:
        """Return −score, C and probe of each; the smallest is the best, and of a tie the strongest penalty."""
        solved = solve(values)
        scores = _score(solved, F[held_out], labels[held_out], held, demands)
        return [(-float(score), c, probe) for score, c, probe in zip(scores, values, solved, strict=True)]

    best = min(judge(cs), key=lambda found: found[:2])
    if widen and (further := find_further(cs, best[1])):
        best = min(best, *judge([further]), key=lambda found: found[0])  # of a tie, the one in the grid
    return best[2], best[1]


def choose_penalty(
    F: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    seed: int,
    cs: Sequence[float] = CS,
    weights: np.ndarray | None = None,
    demands: Demands = PLAIN,
) -> float:
    """Return the C of the most accurate probe on held-out rows, drawn until they are ENOUGH; of a tie the smallest.

    One draw of few rows would often miss the best penalty by a factor of ten. Arguments are those of `choose_probe`,
    and `seed` is that of the draws. Rows of which none can be held out give the middle of the grid.
    """
    cs = sorted(cs)
    if np.bincount(labels).max() < 2:
        return cs[(len(cs) - 1) // 2]
    hits, seen = np.zeros(len(cs)), 0
    for i in range(MOST):
        train, held_out = hold_out(labels, HELD_OUT, seed + i)
        own = None if weights is None else weights[train] / weights[train].mean()
        own = multiply(own, demands.weigh(labels[train]))
        probes = fit_lbfgs(F[train], labels[train], cs, num_classes=num_classes, weights=own, tol=CLOSE)
        held = None if weights is None else weights[held_out]
        hits += _score(probes, F[held_out], labels[held_out], held, demands)
        seen += len(held_out)
        if seen >= ENOUGH:
            break
    return cs[int(np.argmax(hits))]


def _score(
    probes: Sequence[Linear], F: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, demands: Demands
) -> np.ndarray:
    """Return the metric of every probe, larger for better ones, rounded so that the order of a sum breaks no tie.

    An accuracy that is only the default is weighted by rows and classes, as the loss is.
    """
    if demands.metric:
        scores = [-demands.rank(demands.score(probe(F), labels))[0] for probe in probes]
    else:
        own = multiply(weights, demands.weigh(labels))
        scores = [np.average(probe(F).argmax(1) == labels, weights=own) for probe in probes]
    return np.round(scores, 9)


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
        score: returns a key by which heads are sorted, the best first, whose last is the validation loss in nats; None:
            there is no validation.
        tell: called with the number of every epoch, from 1, and its loss.
        started: the start is a head of its own, so that it may be the best.

    Attributes:
        losses: validation loss of every epoch, in nats.
        lowest, best: the key of the best head, and the epochs after which it was reached; 0: the start.
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
        score: Callable[[TunedHead], tuple[float, ...]] | None = None,
        tell: Callable[[int, float], None] = lambda i, loss: None,
        started: bool = False,
    ):
        self.spec, self.carry, self.bank, self.setting, self.n = spec, carry, bank, setting, np.int32(n)
        self.total, self.score, self.tell = np.int32(horizon * -(-n // spec.batch)), score, tell
        self.losses: list[float] = []
        self.done = self.best = 0
        self.trees: tuple[Any, Any] | None = None  # parameters and state, if a group trains it
        self.kept = self._fetch() if started and score else None
        self.lowest = score(self.kept) if score and self.kept else (math.inf,)

    def run(self, until: int, patience: float = math.inf) -> TunedHead:
        """Train up to that number of epochs, or until no head was better for `patience` epochs.

        Returns:
            The best head by validation; without validation, the last one.
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
            self._judge(self.score)
        self.tell(self.done, self.losses[-1] if self.losses else math.nan)

    def _judge(self, score: Callable[[TunedHead], tuple[float, ...]]) -> None:
        head = self._fetch()
        key = score(head)
        self.losses.append(key[-1])
        if key < self.lowest or self.kept is None:
            self.kept, self.lowest, self.best = head, key, self.done

    def _fetch(self) -> TunedHead:
        trees = self.trees or jax.device_get((self.carry.params, self.carry.state))
        return TunedHead(self.spec.form, *trees)


class Cohort:
    """Trainings that advance together in one program, where `spread.is_spread`, or else one after another; a context.

    Those whose batches differ in size, as of fewer rows than a batch, are one program for each size.

    Args:
        runs: trainings on one bank.
        patience: the epochs of each after which it stops, if no head was better in them.
    """

    def __init__(self, runs: Sequence[Training], patience: Sequence[float]):
        self.runs, self.patience = runs, patience
        self._groups: list[tuple[list[int], spread.Group]] = []
        for spec in dict.fromkeys(run.spec for run in runs) if spread.is_spread() else ():
            which = [i for i, run in enumerate(runs) if run.spec == spec]
            own = [runs[i] for i in which]
            carries, settings = [run.carry for run in own], [run.setting for run in own]
            sizes = [int(run.n) for run in own], [int(run.total) for run in own]
            self._groups.append((which, spread.Group(spec, carries, own[0].bank, settings, *sizes)))

    def __enter__(self) -> "Cohort":
        return self

    def __exit__(self, *error: object) -> None:
        for _, group in self._groups if error[0] is None else ():  # after an error nobody takes orders
            group.close()

    def run(self, until: Sequence[int]) -> None:
        """Train each up to its number of epochs, or until it has stopped; 0 leaves it as it is."""
        if not self._groups:
            for run, end, patience in zip(self.runs, until, self.patience, strict=True):
                run.run(end, patience)
        for which, group in self._groups:
            while any(active := [self.runs[i].is_wanted(until[i], self.patience[i]) for i in which]):
                trees = group.advance(active, [self.runs[i].done for i in which])
                for i, is_active, own in zip(which, active, trees, strict=True):
                    if is_active:
                        self.runs[i].note(own)
