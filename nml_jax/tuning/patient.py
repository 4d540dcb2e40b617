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
from numpy.typing import ArrayLike

from nml_jax.data.stratify import hold_out
from nml_jax.evals.calibration import find_temperature
from nml_jax.evals.metrics import compute_losses
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
    """Solve a logistic regression for each C; return the best probe on held-out rows, and its C, by `pick_penalty`.

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
    held = multiply(None if weights is None else weights[held_out], demands.weigh(labels[held_out]))

    def pick(solved: Sequence[Linear]) -> int:
        logits = [probe(F[held_out]) for probe in solved]
        return pick_penalty(_score(logits, labels[held_out], held, demands), logits, labels[held_out], held)

    found = solve(cs)
    best = pick(found)
    if widen and (further := find_further(cs, cs[best])):
        both = sorted([*zip(cs, found, strict=True), (further, solve([further])[0])], key=lambda each: each[0])
        cs, found = [c for c, _ in both], [probe for _, probe in both]
        best = pick(found)
    return found[best], cs[best]


def choose_penalty(
    F: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    seed: int,
    cs: Sequence[float] = CS,
    weights: np.ndarray | None = None,
    demands: Demands = PLAIN,
) -> tuple[float, float | None]:
    """Return the C of the best probe on held-out rows, drawn until they are ENOUGH, and its temperature on them.

    One draw of few rows would often miss the best penalty by a factor of ten. If the best C is at the edge of its grid,
    the one beyond it is tried, too. Arguments are those of `choose_probe`, and `seed` is that of the draws. Rows of
    which none can be held out give the middle of the grid, and no temperature. See `pick_penalty`.
    """
    cs = sorted(cs)
    if np.bincount(labels).max() < 2:
        return cs[(len(cs) - 1) // 2], None
    draws = _Draws(F, labels, weights, demands, num_classes, seed)
    best = draws.pick(cs)
    if further := find_further(cs, cs[best]):
        cs = sorted([*cs, further])
        best = draws.pick(cs)
    return cs[best], find_temperature(draws.find_logits(cs[best]), draws.labels)


class _Draws:
    """Held-out parts of the rows, drawn until they are ENOUGH, and the logits of probes on them.

    Attributes:
        parts: rows to train on, and held-out rows, of each draw.
        labels: of all held-out rows, [M].
    """

    def __init__(
        self,
        F: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None,
        demands: Demands,
        num_classes: int,
        seed: int,
    ):
        self.F, self.of, self.weights, self.demands, self.num_classes = F, labels, weights, demands, num_classes
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []
        while len(self.parts) < MOST and sum(len(held) for _, held in self.parts) < ENOUGH:
            self.parts.append(hold_out(labels, HELD_OUT, seed + len(self.parts)))
        self.labels = np.concatenate([labels[held] for _, held in self.parts])
        self._logits: dict[float, list[np.ndarray]] = {}  # by C, of each draw

    def find_logits(self, c: float) -> np.ndarray:
        """Return the logits of all held-out rows, [M, K]."""
        return np.concatenate(self._logits[c])

    def pick(self, cs: Sequence[float]) -> int:
        """Return the number of the best of ascending C. Probes that were solved before are not solved again."""
        if new := [c for c in cs if c not in self._logits]:
            solved = [self._solve(train, held, new) for train, held in self.parts]
            self._logits |= dict(zip(new, map(list, zip(*solved, strict=True)), strict=True))
        total, weights = np.zeros(len(cs)), []
        for i, (_, held) in enumerate(self.parts):
            own = self._weigh(held, self.weights)
            total += _score([self._logits[c][i] for c in cs], self.of[held], own, self.demands)
            weights.append(np.ones(len(held)) if own is None else own)
        return pick_penalty(total, [self.find_logits(c) for c in cs], self.labels, np.concatenate(weights))

    def _weigh(self, rows: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        """Return the weights of rows in the loss, times those of their classes."""
        return multiply(None if weights is None else weights[rows], self.demands.weigh(self.of[rows]))

    def _solve(self, train: np.ndarray, held: np.ndarray, cs: Sequence[float]) -> list[np.ndarray]:
        """Return the logits of each C on the held-out rows."""
        own = self._weigh(train, None if self.weights is None else self.weights / self.weights[train].mean())
        how: dict[str, Any] = {"num_classes": self.num_classes, "weights": own, "tol": CLOSE}
        return [probe(self.F[held]) for probe in fit_lbfgs(self.F[train], self.of[train], cs, **how)]


def pick_penalty(
    scores: ArrayLike, logits: Sequence[np.ndarray] | np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> int:
    """Return the number of the best penalty: the highest score, and of a tie the strongest that costs no likelihood.

    Among probes of equal score it is the strongest penalty whose mean loss is within one standard error of the lowest
    among them; the error is that of the mean difference over rows (the rule of one standard error, Breiman et al.
    1984). Losses are those of logits at their best temperature, so that only their direction counts: a strong penalty
    shrinks logits, and calibration undoes that. Without the temperature this rule, and still more the lowest loss,
    prefers weak penalties where classes are far apart, which cost accuracy in other domains (docs/benchmarks.md).

    Args:
        scores: [C], the strongest penalty first; larger is better.
        logits: finite [C, M, K], of the held-out rows.
        labels: int [M].
        weights: of these rows in the loss, [M]; None: 1 each.
    """
    rounded = np.asarray(scores, np.float64).round(9)  # so that the order of a sum breaks no tie
    tied: list[int] = np.flatnonzero(rounded == rounded.max()).tolist()
    if len(tied) == 1:
        return tied[0]
    losses = np.array([compute_losses(logits[i] / find_temperature(logits[i], labels), labels) for i in tied])
    means = np.average(losses, axis=1, weights=weights)
    best = means.argmin()
    within = [means[i] - means[best] <= compute_error(losses[i] - losses[best], weights) for i in range(len(tied))]
    return tied[int(np.argmax(within))]


def compute_error(values: np.ndarray, weights: np.ndarray | None) -> float:
    """Return the standard error of the (weighted) mean of values [M]."""
    shares = np.full(len(values), 1 / len(values)) if weights is None else weights / weights.sum()
    return float(np.sqrt((shares**2 * (values - shares @ values) ** 2).sum()))


def _score(
    logits: Sequence[np.ndarray], labels: np.ndarray, weights: np.ndarray | None, demands: Demands
) -> np.ndarray:
    """Return the metric of every probe, [C], larger for better ones.

    An accuracy that is only the default is weighted by rows and classes, as the loss is.
    """
    if demands.metric:
        return np.array([-demands.rank(demands.score(each, labels))[0] for each in logits])
    return np.array([np.average(each.argmax(1) == labels, weights=weights) for each in logits])


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
