"""Train heads of one method on one set of features: by gradient (descent.py) or by solving (probes.py)."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form, Tree
from nml_jax.objectives import terms
from nml_jax.tuning import descent, methods, probes
from nml_jax.tuning.descent import Setting, Spec, TrainingSet
from nml_jax.tuning.head_file import TunedHead


class Predictor(Protocol):
    """A tuned head, or a probe without weights (k-NN)."""

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Z float32 [M, D] and logits float32 [M, K] of features [M, D]."""
        ...


class HeadFit(NamedTuple):
    """One head to train."""

    rows: np.ndarray  # int [N], a permutation of all rows, those to train on first
    hyper: dict[str, float]
    seed: int


class Trainer(Protocol):
    """A trainer for heads of one method on one set of features.

    grid: the settings to choose from.
    preset: see `HeadResult`.
    """

    grid: list[dict[str, float]]
    preset: str | None

    def train(self, fits: Sequence[HeadFit], n: int) -> Sequence[Predictor]:
        """Train one head per fit, on the first n of its rows."""
        ...

    def tie(self, scores: Mapping[str, float]) -> float:
        """Return a number from a setting's `HeadResult.validation`; among equal accuracies the lowest wins."""
        ...


def make_trainer(
    features: np.ndarray, labels: np.ndarray, *, method: str, preset: str | None, num_classes: int, config: Any
) -> Trainer:
    """Make the trainer of a method for features [N, V, D] from `select.check_features`."""
    kind = ByProbe if methods.find(method).probe else ByGradient
    return kind(features, labels, method=method, preset=preset, num_classes=num_classes, config=config)


class ByGradient:
    """A trainer by gradient, see descent.py."""

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
        self.grid = _make_grid(config, {"lr": "lrs", "weight_decay": "weight_decays"})
        self.bank = jax.device_put(TrainingSet(features, labels, np.ones(len(labels), np.float32)))

    def train(self, fits: Sequence[HeadFit], n: int) -> list[TunedHead]:
        settings = [self.make_setting(fit) for fit in fits]
        epochs = self.count_epochs(len(self.bank.labels))
        trees = descent.train(self.make_spec(n), self.bank, settings, n, epochs=epochs)
        return [TunedHead(self.form, params, state) for params, state in trees]

    def tie(self, scores: Mapping[str, float]) -> float:
        return scores["loss"]

    def count_epochs(self, n: int) -> int:
        """Return the number of passes over n rows."""
        config = self.config
        return methods.count_epochs(n, batch=config.batch, epochs=config.epochs, steps=config.steps)[0]

    def make_spec(self, n: int) -> Spec:
        """Make the static arguments for n training rows."""
        config, batch = self.config, min(self.config.batch, n)
        perturbed = bool(config.noisytune), bool(config.neftune)
        return Spec(self.form, self.terms, self.num_classes, batch, config.standardize, *perturbed)

    def make_setting(self, fit: HeadFit) -> Setting:
        config, (rows, hyper, seed) = self.config, fit
        numbers = self.numbers, config.noisytune, config.neftune
        return Setting(rows, hyper["lr"], hyper["weight_decay"], seed, *numbers)


class ByProbe:
    """A trainer by solving, see probes.py; it uses all views of the rows."""

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
        self.grid = _make_grid(config, {self.method.value: self.method.grid})

    def train(self, fits: Sequence[HeadFit], n: int) -> list[Predictor]:
        out: list[Predictor] = []
        views, dim = self.features.shape[1:]
        for _, group in itertools.groupby(fits, key=lambda fit: fit.seed):  # fits of one seed share their rows
            several = list(group)
            rows = several[0].rows[:n]
            F, labels = self.features[rows].reshape(-1, dim), np.repeat(self.labels[rows], views)
            standard = descent.get_standard(F[:, None]) if self.config.standardize else None
            if standard:
                F = (F - standard["mean"]) / standard["scale"]
            values = [fit.hyper[self.method.value] for fit in several]
            for probe in self.method.probe(F, labels, values, num_classes=self.num_classes):
                if isinstance(probe, probes.Linear):
                    params = {"classifier": {"kernel": probe.kernel, "bias": probe.bias}}
                    out.append(TunedHead(Form(mlp=False), params, {"input": standard} if standard else {}))
                else:
                    out.append(ProbePredictor(probe, standard))
        return out

    def tie(self, scores: Mapping[str, float]) -> float:
        return scores["loss"] if self.method.logits else -scores[self.method.value]


@dataclasses.dataclass(frozen=True)
class ProbePredictor:
    """A predictor from a probe without weights."""

    probe: probes.Probe
    standard: Tree | None  # {"mean", "scale"} of its input

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Z, which is the (standardised) features, and the scores."""
        Z = np.asarray(features, np.float32)
        Z = (Z - self.standard["mean"]) / self.standard["scale"] if self.standard else Z
        return Z, self.probe(Z)


def _make_grid(config: Any, names: Mapping[str, str]) -> list[dict[str, float]]:
    """Return all combinations of the values of config keys, where `names` maps the name of a value to its key."""
    for key in names.values():
        if not getattr(config, key):
            raise UserError(f"tune.{key} is empty", "give it at least one value")
    values = itertools.product(*(getattr(config, key) for key in names.values()))
    return [dict(zip(names, each, strict=True)) for each in values]
