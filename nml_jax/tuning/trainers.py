"""How heads of one method are trained on one set of features: step by step (head_runs.py) or solved (probes.py)."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form, Tree, standardize
from nml_jax.objectives import terms
from nml_jax.tuning import descent, methods, probes
from nml_jax.tuning.descent import Setting, Spec, TrainingSet
from nml_jax.tuning.head_file import TunedHead


class Predictor(Protocol):
    """A tuned head, or what stands for one where a method has no weights (k-NN)."""

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Z float32 [M, D] and logits float32 [M, K] of features [M, D]."""
        ...


class HeadFit(NamedTuple):
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

    def train(self, jobs: Sequence[HeadFit], n: int) -> Sequence[Predictor]: ...
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
        weights, self.preset = methods.choose_weights(method, preset, config, features.shape[1])
        self.num_classes, self.config = num_classes, config
        self.form = methods.build_form(methods.find(method), config)
        self.terms, self.numbers = terms.split(methods.find(method).terms, weights) if weights else (None, {})
        self.grid = _grid(config, {"lr": "lrs", "weight_decay": "weight_decays"})
        self.bank = jax.device_put(TrainingSet(features, labels, np.ones(len(labels), np.float32)))

    def train(self, jobs: Sequence[HeadFit], n: int) -> list[TunedHead]:
        settings = [self.setting(job) for job in jobs]
        epochs = self.epochs(len(self.bank.labels))
        trained = descent.train(self.spec(n), self.bank, settings, n, epochs=epochs)
        return [TunedHead(self.form, params, state) for params, state in trained]

    def tie(self, seen: Mapping[str, float]) -> float:
        return seen["loss"]

    def epochs(self, n: int) -> int:
        """Passes over n rows."""
        config = self.config
        return methods.count_epochs(n, batch=config.batch, epochs=config.epochs, steps=config.steps)[0]

    def spec(self, n: int) -> Spec:
        """For n rows to train on."""
        config, batch = self.config, min(self.config.batch, n)
        perturbed = bool(config.noisytune), bool(config.neftune)
        return Spec(self.form, self.terms, self.num_classes, batch, config.standardize, *perturbed)

    def setting(self, job: HeadFit) -> Setting:
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
        _, self.preset = methods.choose_weights(method, preset, config, features.shape[1])
        self.method, self.num_classes, self.config = methods.find(method), num_classes, config
        self.features, self.labels = features, labels
        self.grid = _grid(config, {self.method.value: self.method.grid})

    def train(self, jobs: Sequence[HeadFit], n: int) -> list[Predictor]:
        out: list[Predictor] = []
        views, dim = self.features.shape[1:]
        for _, of_seed in itertools.groupby(jobs, key=lambda job: job.seed):  # these share their rows
            several = list(of_seed)
            rows = several[0].rows[:n]
            F, labels = self.features[rows].reshape(-1, dim), np.repeat(self.labels[rows], views)
            standard = descent.get_standard(F[:, None]) if self.config.standardize else None
            if standard:
                F = standardize(F, standard)
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
        Z = standardize(Z, self.standard) if self.standard else Z
        return Z, self.probe(Z)


def _grid(config: Any, names: Mapping[str, str]) -> list[dict[str, float]]:
    """All combinations of the values under the keys `names`, by the names of one value."""
    for key in names.values():
        if not getattr(config, key):
            raise UserError(f"tune.{key} is empty", "give it at least one value")
    values = itertools.product(*(getattr(config, key) for key in names.values()))
    return [dict(zip(names, each, strict=True)) for each in values]
