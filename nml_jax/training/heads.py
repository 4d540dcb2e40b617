"""The one head trainer: choose hyper-parameters, then train on all rows.

Hyper-parameters are chosen on a stratified part of the training rows; then the head is trained anew on all of them. The
test splits are no business of this file, so that none can be looked at before the end. Every method gets the same
splits, views and epochs, and as many settings as its grid has: by default six each.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from nml_jax.errors import UserError
from nml_jax.log import say
from nml_jax.models.heads import Form, Tree
from nml_jax.objectives import terms
from nml_jax.training import head_runs, methods, probes
from nml_jax.training.head_runs import Bank, Setting, Spec
from nml_jax.training.tuned import TunedHead


class Predictor(Protocol):
    """A tuned head, or what stands for one where a method has no weights (k-NN)."""

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Z float32 [M, D] and logits float32 [M, K] of features [M, D]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadResult:
    """What came of one method and seed.

    head: what predicts; a `TunedHead`, which can be saved, but for k-NN.
    preset: name of the loss's preset ("code/1view" where `code` had one view); None where the method has none.
    hyper: the chosen values by name, as {"lr": 0.01, "weight_decay": 0.0} or {"C": 0.1}.
    validation: for each setting of the grid its values by name, "accuracy" and "loss", the last two over all views of
        the validation rows, the loss in nats. Empty where nothing is chosen.
    n_train: rows of the final training.
    unvalidated: whether there was a choice and no row to make it by; `hyper` is then the middle of the grid.
    """

    head: Predictor
    preset: str | None
    hyper: dict[str, float]
    validation: list[dict[str, float]]
    n_train: int
    unvalidated: bool = False

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Z float32 [M, D] (of a linear head its standardised input) and logits float32 [M, K] of features [M, D]."""
        return self.head.outputs(features)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    method: str,
    preset: str | None = None,
    num_classes: int,
    config: Any,
    seed: int,
) -> HeadResult:
    """`fit_seeds` with one seed."""
    (result,) = fit_seeds(
        features, labels, method=method, preset=preset, num_classes=num_classes, config=config, seeds=(seed,)
    )
    return result


def fit_seeds(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    method: str,
    preset: str | None = None,
    num_classes: int,
    config: Any,
    seeds: Sequence[int],
) -> list[HeadResult]:
    """Choose hyper-parameters and train on all training rows; one head per seed.

    A seed decides the validation part, the initialisation and the order. Chosen is the setting of highest accuracy on
    the validation part; of several such the one of lowest loss, or, where scores are no logits (ridge, k-NN), the one
    of the largest value: the strongest regularisation. Where the grid has one setting nothing is held out; where each
    class has one row nothing can be, and the middle of the grid is taken.

    Args:
        features: float32 [N, D], or [N, V, D] for V views: the training rows.
        labels: int [N] in [0, num_classes).
        method: a key of `methods.METHODS`.
        preset: of nmtune: paper | code.
        num_classes: K.
        config: the section `tune` of configs/common.py. Its `batch` is at most the rows left to train on beside the
            validation part.
        seeds: whole numbers.

    Raises:
        UserError: an unknown method or preset, a value that is not finite, a label out of range, fewer than two
            classes, no rows, or nothing to hold out; Diverged, if training does at every rate, or on all rows.
    """
    features, labels = checked(features, labels, num_classes)
    trainer = make_trainer(features, labels, method=method, preset=preset, num_classes=num_classes, config=config)
    hypers, validation = choose(trainer, features, labels, config=config, seeds=seeds)
    everything = np.arange(len(labels))
    jobs = [Job(everything, hyper, seed) for hyper, seed in zip(hypers, seeds, strict=True)]
    return [
        HeadResult(head=head, preset=trainer.preset, hyper=job.hyper, validation=each, n_train=len(labels),
                   unvalidated=unvalidated(trainer, each))
        for job, each, head in zip(jobs, validation, converged(method, trainer.train(jobs, len(labels))), strict=True)
    ]  # fmt: skip


def choose(
    trainer: "Trainer", features: np.ndarray, labels: np.ndarray, *, config: Any, seeds: Sequence[int]
) -> tuple[list[dict[str, float]], list[list[dict[str, float]]]]:
    """The chosen hyper-parameters of each seed, and what was seen of the whole grid (`HeadResult.validation`)."""
    if len(trainer.grid) == 1:
        return trainer.grid * len(seeds), [[] for _ in seeds]
    if np.bincount(labels).max() < 2:
        middle = {name: statistics.median_high({v[name] for v in trainer.grid}) for name in trainer.grid[0]}
        say(f"one row of each class leaves none to choose a setting on: the middle of the grid is taken, {middle}")
        return [middle] * len(seeds), [[] for _ in seeds]
    parts = [hold_out(labels, config.validation, seed) for seed in seeds]
    n = len(parts[0][0])  # the class counts decide it, not the seed
    of = [i for i in range(len(seeds)) for _ in trainer.grid]
    jobs = [Job(np.concatenate(parts[i]), hyper, seeds[i]) for i in range(len(seeds)) for hyper in trainer.grid]
    validation: list[list[dict[str, float]]] = [[] for _ in seeds]
    for i, job, head in zip(of, jobs, trainer.train(jobs, n), strict=True):
        held_out = parts[i][1]
        accuracy, loss = _validate(head, features[held_out], labels[held_out])
        validation[i].append({**job.hyper, "accuracy": accuracy, "loss": loss})
    best = [min(each, key=lambda v: (-v["accuracy"], trainer.tie(v))) for each in validation]
    return [{name: v[name] for name in trainer.grid[0]} for v in best], validation


def unvalidated(trainer: "Trainer", seen: Sequence[Any]) -> bool:
    """Whether there were settings to choose from and none was tried, as `seen` (`HeadResult.validation`) says."""
    return len(trainer.grid) > 1 and not seen


class Job(NamedTuple):
    """One head to be trained."""

    rows: np.ndarray  # int [N], a permutation of all rows: those that are trained on come first
    hyper: dict[str, float]
    seed: int


class Trainer(Protocol):
    """How the heads of one method are trained on one set of features.

    grid: the settings to choose from.
    preset: see `HeadResult`.
    train: one head per job, on the first n of its rows.
    tie: of settings of one accuracy the lowest wins; of what `HeadResult.validation` has of a setting.
    """

    grid: list[dict[str, float]]
    preset: str | None

    def train(self, jobs: Sequence[Job], n: int) -> Sequence[Predictor]: ...
    def tie(self, seen: Mapping[str, float]) -> float: ...


def make_trainer(
    features: np.ndarray, labels: np.ndarray, *, method: str, preset: str | None, num_classes: int, config: Any
) -> Trainer:
    """The trainer of a method for features [N, V, D] that are `checked`."""
    kind = ByProbe if methods.find(method).probe else ByGradient
    return kind(features, labels, method=method, preset=preset, num_classes=num_classes, config=config)


class ByGradient:
    """Heads that are trained step by step, as in head_runs.py."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        *,
        method: str,
        preset: str | None,
        num_classes: int,
        config: Any,
    ):
        weights, self.preset = methods.weights(method, preset, config, features.shape[1])
        self.num_classes, self.config = num_classes, config
        self.form = methods.form(methods.find(method), config)
        self.terms, self.numbers = terms.split(methods.find(method).terms, weights) if weights else (None, {})
        self.grid = _grid(config, {"lr": "lrs", "weight_decay": "weight_decays"})
        self.bank = jax.device_put(Bank(features, labels, np.ones(len(labels), np.float32)))

    def train(self, jobs: Sequence[Job], n: int) -> list[TunedHead]:
        settings = [self.setting(job) for job in jobs]
        epochs = self.epochs(len(self.bank.labels))
        trained = head_runs.train(self.spec(n), self.bank, settings, n, epochs=epochs)
        return [TunedHead(self.form, params, state) for params, state in trained]

    def tie(self, seen: Mapping[str, float]) -> float:
        return seen["loss"]

    def epochs(self, n: int) -> int:
        """Passes over n rows."""
        config = self.config
        return methods.epochs(n, batch=config.batch, epochs=config.epochs, steps=config.steps)[0]

    def spec(self, n: int) -> Spec:
        """For n rows to train on."""
        config, batch = self.config, min(self.config.batch, n)
        perturbed = bool(config.noisytune), bool(config.neftune)
        return Spec(self.form, self.terms, self.num_classes, batch, config.standardize, *perturbed)

    def setting(self, job: Job) -> Setting:
        config, (rows, hyper, seed) = self.config, job
        numbers = self.numbers, config.noisytune, config.neftune
        return Setting(rows, hyper["lr"], hyper["weight_decay"], seed, *numbers)


class ByProbe:
    """Heads that are solved, as in probes.py, on all views of the rows."""

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        *,
        method: str,
        preset: str | None,
        num_classes: int,
        config: Any,
    ):
        _, self.preset = methods.weights(method, preset, config, features.shape[1])
        self.method, self.num_classes, self.config = methods.find(method), num_classes, config
        self.features, self.labels = features, labels
        self.grid = _grid(config, {self.method.value: self.method.grid})

    def train(self, jobs: Sequence[Job], n: int) -> list[Predictor]:
        out: list[Predictor] = []
        views, dim = self.features.shape[1:]
        for _, of_seed in itertools.groupby(jobs, key=lambda job: job.seed):  # these share their rows
            several = list(of_seed)
            rows = several[0].rows[:n]
            F, labels = self.features[rows].reshape(-1, dim), np.repeat(self.labels[rows], views)
            standard = head_runs.standard(F[:, None]) if self.config.standardize else None
            if standard:
                F = (F - standard["mean"]) / standard["scale"]
            values = [job.hyper[self.method.value] for job in several]
            for probe in self.method.probe(F, labels, values, num_classes=self.num_classes):
                if isinstance(probe, probes.Linear):
                    params = {"classifier": {"kernel": probe.kernel, "bias": probe.bias}}
                    out.append(TunedHead(Form(mlp=False), params, {"input": standard} if standard else {}))
                else:
                    out.append(Probed(probe, standard))
        return out

    def tie(self, seen: Mapping[str, float]) -> float:
        return seen["loss"] if self.method.logits else -seen[self.method.value]


@dataclasses.dataclass(frozen=True)
class Probed:
    """A probe that has no weights, as a predictor."""

    probe: probes.Probe
    standard: Tree | None  # {"mean", "scale"} of its input

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Z, the (standardised) features, and the scores."""
        Z = np.asarray(features, np.float32)
        Z = (Z - self.standard["mean"]) / self.standard["scale"] if self.standard else Z
        return Z, self.probe(Z)


def _grid(config: Any, names: Mapping[str, str]) -> list[dict[str, float]]:
    """All combinations of the values under the keys `names`, by the names of one value."""
    for key in names.values():
        if not getattr(config, key):
            raise UserError(f"tune.{key} is empty", "give it at least one value")
    values = itertools.product(*(getattr(config, key) for key in names.values()))
    return [dict(zip(names, each, strict=True)) for each in values]


def check_choices(share: float, choices: Mapping[str, Sequence[float]]) -> None:
    """Raise UserError if nothing is held out (`share`) to choose one of several values by; `choices` by config key."""
    keys = [key for key, values in choices.items() if len(values) > 1]
    if keys and not share:
        raise UserError(
            f"tune.validation=0 leaves no rows to choose {' and '.join(keys)} by",
            f"set tune.validation above 0, or give {'each of them' if len(keys) > 1 else keys[0]} one value",
        )


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random, class by class: round(share·N) are held out, at least one, but never all of a class.

    Each class gives by the largest remainder of share·(its count), and keeps one. Which of equal remainders give is
    drawn, too: else the first classes alone would be tested where rows are few.

    Args:
        labels: int [N].
        share: in (0, 1).
        seed: of the draw.

    Returns:
        Rows to train on and rows held out, int64.

    Raises:
        UserError: nothing can be held out.
    """
    classes, counts = np.unique(labels, return_counts=True)
    total = max(1, round(share * len(labels)))
    held = np.minimum(np.floor(share * counts).astype(int), counts - 1)
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    for c in np.lexsort((rng.random(len(classes)), np.round(held - share * counts, 9))):
        held[c] += held.sum() < total and held[c] < counts[c] - 1
    if not (0 < share < 1 and held.any()):
        raise UserError(
            f"nothing can be held out: tune.validation={share}, {counts.max()} row(s) in the largest class",
            "set tune.validation above 0 and give more rows; or one value each of tune.lrs and tune.weight_decays",
        )
    kept = [r[k:] for r, k in zip(rows, held, strict=True)]
    return np.concatenate(kept), np.concatenate([r[:k] for r, k in zip(rows, held, strict=True)])


def _validate(head: Predictor, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy and mean cross-entropy (nats) over all views of features [M, V, D]; 0 and inf if training diverged."""
    labels = np.repeat(labels, features.shape[1])
    _, logits = head.outputs(features.reshape(len(labels), -1))
    if not np.isfinite(logits).all():
        return 0.0, math.inf
    return float((logits.argmax(1) == labels).mean()), cross_entropy(logits, labels)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """(Weighted) mean of −log softmax(logits)[label], in nats, of finite logits [M, K]."""
    shifted = np.float64(logits) - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weights))


class Diverged(UserError):
    """Training left a weight or a logit that is not finite."""


def converged(method: str, trained: Sequence[Predictor]) -> Sequence[Predictor]:
    """The heads. Raises Diverged if a weight is not finite."""
    for head in trained:
        if isinstance(head, TunedHead):
            require_finite(method, *jax.tree.leaves((head.params, head.state)))
    return trained


def require_finite(method: str, *arrays: np.ndarray) -> None:
    """Raises Diverged if a weight or logit is not finite."""
    if not all(np.isfinite(x).all() for x in arrays):
        cure = "lower tune.lrs, or set tune.standardize for large features"
        raise Diverged(f"training of the {method} head diverged", cure)


def checked(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Training rows as float32 [N, V, D] and int32 [N].

    Raises:
        UserError: they do not fit each other, there are none, a value is not finite, a label is out of range, or there
            is only one class.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    features = features[:, None] if features.ndim == 2 else features
    if num_classes < 2:
        raise UserError(f"num_classes={num_classes}: nothing is to be told apart", "give two classes or more")
    if features.ndim != 3 or labels.shape != features.shape[:1]:
        raise UserError(
            f"features {features.shape} and labels {labels.shape} do not fit",
            "give features [N, D] or [N, views, D], and labels [N]",
        )
    if not features.size:
        raise UserError(f"features {features.shape}: there is no example", "choose a split with examples")
    finite = np.isfinite(features).all((1, 2))
    if not finite.all():
        raise UserError(f"row {finite.argmin()} of the features holds a value that is not finite", "repair or drop it")
    wrong = (labels < 0) | (labels >= num_classes) | (labels != np.floor(labels))
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"row {row} has label {labels[row]}", f"give whole numbers from 0 to {num_classes - 1}")
    if len(np.unique(labels)) < 2:
        raise UserError(f"every training label is {labels[0]}", "give examples of at least two classes")
    return features, labels.astype(np.int32)
