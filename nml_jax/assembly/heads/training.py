"""Train the heads of a run on the features of one task, as its config says."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nml_jax import console, settings
from nml_jax.assembly.feature_sets import fit_in_memory
from nml_jax.data.class_weights import find_class_weights
from nml_jax.data.features.sets import FeatureSet, Subset
from nml_jax.errors import UserError
from nml_jax.evals.metrics import REGRESSION, check_classes, check_number, find_metric
from nml_jax.processes import forecast
from nml_jax.tasks import catalogue
from nml_jax.tuning import methods, regression, select, streamed
from nml_jax.tuning.holdout import Demands
from nml_jax.tuning.trainers import make_trainer
from nml_jax.tuning.trainers.trainer import Problem

KEPT = 64  # results that runs of a process share
SOLVED = 4  # heads in closed form need eight times the memory of their rows, so their limit is divided by this


class Training:
    """Training of heads on the features of one task: in memory, or streamed if they do not fit."""

    def __init__(self, config: ConfigDict, found: FeatureSet, seeds: Sequence[int]):
        self.config, self.found, self.seeds = config, found, seeds
        self.shard = fit_in_memory(config.features.memory, found.train.features, 2 * config.tune.batch)

    @functools.cached_property
    def whole(self) -> np.ndarray:
        """Read all training features into memory, once."""
        return self.found.train.features.read()

    def fit(self, chosen: np.ndarray, labels: np.ndarray, method: str, preset: str | None) -> list[select.HeadResult]:
        """Train a head per seed on the chosen rows."""
        how: dict[str, Any] = {"method": method, "preset": preset, "num_classes": len(self.found.classes),
                               "config": self.config.tune, "seeds": self.seeds,
                               "demands": self.find_demands(chosen, labels)}  # fmt: skip
        rows = self.found.train.features
        solved = bool(methods.find(method).probe)
        if len(rows) <= self.shard and not (solved and len(chosen) > self.shard // SOLVED):
            everything = len(chosen) == len(rows)  # then no copy is needed
            part = self.whole if everything else self.whole[chosen]
            return _fit_shared(part, labels, how) if self.config.tune.shared else select.fit_seeds(part, labels, **how)
        part = Subset(rows, chosen)
        return streamed.fit_seeds(part, labels, shard=self.shard // (SOLVED if solved else 2), **how)

    def find_demands(self, chosen: np.ndarray, labels: np.ndarray) -> Demands:
        """Return what heads on the chosen rows with these labels are to be good at."""
        groups = self.found.train.groups
        weights = weigh_classes(self.config, self.found, labels)
        return Demands(choose_metric(self.config, self.found), weights, None if groups is None else groups[chosen])


def choose_metric(config: ConfigDict, found: FeatureSet) -> str:
    """Return the metric that decides; "" for accuracy that is only the task's own. Say which class F1 is about.

    Raises:
        UserError: it is not one of so many classes.
    """
    metric = find_metric(config.tune.metric, catalogue.find_metric(found.task))
    if found.is_scored:
        return check_number(metric or REGRESSION)
    check_classes(metric, len(found.classes), ordered=bool(found.tests[0].scoring.get("ordered")))
    if metric == "f1":
        console.notice_once(f"F1 is that of {found.classes[1]!r}, not of {found.classes[0]!r} (features.positive)")
    return metric


def list_own_methods(config: ConfigDict, found: FeatureSet) -> list[tuple[str, str | None]]:
    """List the methods of the section `tune` that suit the labels, as (method, preset). Print which do not.

    Raises:
        UserError: none does, or another key is for classes alone.
    """
    pairs = list(methods.list_methods(config.tune))
    if not found.is_scored:
        return pairs
    check_scored(config, found)
    own = [(name, preset) for name, preset in pairs if methods.find(name).regresses]
    if not own:
        regression.check_methods(config.tune.methods)
    if left := [name for name, _ in pairs if not methods.find(name).regresses]:
        console.notice_once(
            f"{found.task} is a regression: {console.list_words(left)} predicts classes, and is left out"
        )
    return own


def check_scored(config: ConfigDict, found: FeatureSet) -> None:
    """Raise UserError if a key of the section `tune` is for classes, and the labels are scores."""
    tune = config.tune
    choose_metric(config, found)
    for key, default in (("class_weight", ()), ("suspects", "keep"), ("noises", (0.0,))):
        if tune[key] != default:
            raise UserError(
                f"tune.{key}={tune[key]} is for classes, and the labels of {found.task} are scores",
                f'leave it out, as in --config.tune.{key}="{default}"',
            )


def weigh_classes(config: ConfigDict, found: FeatureSet, labels: np.ndarray) -> np.ndarray | None:
    """Return the weights of the classes, float64 [K]; None if all are 1, and for scores.

    Raises:
        UserError: `tune.class_weight` does not fit the classes.
    """
    if found.is_scored:
        return None
    return find_class_weights(config.tune.class_weight, labels, found.classes, what="tune.class_weight")


_shared: dict[str, Any] = {}  # what the runs of this process share: by rows, method and settings


def _fit_shared(features: np.ndarray, labels: np.ndarray, how: dict[str, Any]) -> list[select.HeadResult]:
    """Train heads whose settings are chosen once, on the split of seed 0, for all runs with these training rows."""
    config, seeds = how["config"], how["seeds"]
    rows = hashlib.blake2b(np.ascontiguousarray(features).data).hexdigest()
    asked = {**settings.to_json(config), "seeds": 0}
    demands = [None if x is None else np.asarray(x).tolist() for x in how["demands"]]
    key = settings.hash_json([rows, labels.tolist(), how["method"], how["preset"], how["num_classes"], asked, demands])
    if key not in _shared:
        if len(_shared) >= KEPT:
            _shared.pop(next(iter(_shared)))
        X, y = select.check_features(features, labels, how["num_classes"])
        problem = Problem(X, y, how["method"], how["preset"], how["num_classes"], config, how["demands"])
        trainer = make_trainer(problem)
        hypers, validation = select.choose(trainer, X, y, config=config, seeds=(0,))
        _shared[key] = hypers[0], validation[0]
        forecast.mark()  # the other runs do what follows
    if not methods.find(how["method"]).probe or not config.refit:
        return select.fit_seeds(features, labels, **how, chosen=_shared[key])
    solved = f"{key} solved"  # no seed decides anything about it
    if solved not in _shared:
        (_shared[solved],) = select.fit_seeds(features, labels, **{**how, "seeds": (0,)}, chosen=_shared[key])
        forecast.mark()
    return [_shared[solved]] * len(seeds)
