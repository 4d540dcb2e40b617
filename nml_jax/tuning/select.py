"""Choose the hyper-parameters of a head, then train it on all rows.

Hyper-parameters are chosen on a stratified part of the training rows. Then the head is trained again, on all of them.
This module never sees a test split, so none can be used before the end. Every method gets the same splits, views and
epochs, and all settings of its grid: by default six each.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nml_jax.console import notice
from nml_jax.data.stratify import hold_out
from nml_jax.errors import UserError
from nml_jax.tuning import methods
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import Predictor, score_held_out
from nml_jax.tuning.trainers import ByGradient, HeadFit, Trainer, make_trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadResult:
    """The result of one method and seed.

    head: the predictor; a `TunedHead`, which can be saved, except for k-NN.
    preset: name of the loss's preset ("code/1view" if `code` had one view); None if the method has none.
    hyper: the chosen values by name, such as {"lr": 0.01, "weight_decay": 0.0} or {"C": 0.1}.
    validation: for each setting of the grid its values by name, "accuracy" and "loss" (nats), the last two over all
        views of the validation rows. Empty if nothing was chosen.
    n_train: rows of the final training.
    unvalidated: whether there was a choice but no row to hold out; `hyper` is then the middle of the grid.
    """

    head: Predictor
    preset: str | None
    hyper: dict[str, float]
    validation: list[dict[str, float]]
    n_train: int
    unvalidated: bool = False

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Z float32 [M, D] (for a linear head its standardised input) and logits float32 [M, K]."""
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
    """Run `fit_seeds` with one seed."""
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
    chosen: tuple[dict[str, float], list[dict[str, float]]] | None = None,
) -> list[HeadResult]:
    """Choose hyper-parameters and train on all training rows; one head per seed.

    A seed sets the validation part, the initialisation and the order. The setting of highest accuracy on the validation
    part is chosen. A tie goes to the lowest loss, or, if scores are not logits (ridge, k-NN), to the largest value,
    which is the strongest regularisation. If the grid has one setting, nothing is held out. If each class has one row,
    nothing can be held out, and the middle of the grid is taken.

    Args:
        features: float32 [N, D], or [N, V, D] for V views: the training rows.
        labels: int [N] in [0, num_classes).
        method: a key of `methods.METHODS`.
        preset: of nmtune: paper | code.
        num_classes: K.
        config: the section `tune` of configs/common.py. `batch` is reduced to the rows that are left for training.
        seeds: integers.
        chosen: settings for all seeds, and the scores of the grid, as `choose` returns them for a seed. None: choose.

    Raises:
        UserError: an unknown method or preset, a value that is not finite, a label out of range, fewer than two
            classes, no rows, or nothing to hold out.
        Diverged: training diverged at every rate, or on all rows.
    """
    features, labels = check_features(features, labels, num_classes)
    trainer = make_trainer(features, labels, method=method, preset=preset, num_classes=num_classes, config=config)
    if chosen:
        hypers, validation = [chosen[0]] * len(seeds), [chosen[1]] * len(seeds)
    else:
        hypers, validation = choose(trainer, features, labels, config=config, seeds=seeds)
    everything = np.arange(len(labels))
    fits = [HeadFit(everything, hyper, seed) for hyper, seed in zip(hypers, seeds, strict=True)]
    heads = require_converged(method, trainer.train(fits, len(labels)))
    return [
        HeadResult(head=head, preset=trainer.preset, hyper=fit.hyper, validation=each, n_train=len(labels),
                   unvalidated=cannot_validate(trainer, each))
        for fit, each, head in zip(fits, validation, heads, strict=True)
    ]  # fmt: skip


def choose(
    trainer: Trainer, features: np.ndarray, labels: np.ndarray, *, config: Any, seeds: Sequence[int]
) -> tuple[list[dict[str, float]], list[list[dict[str, float]]]]:
    """Return the chosen hyper-parameters of each seed, and the scores of the whole grid (`HeadResult.validation`)."""
    patient = isinstance(trainer, ByGradient) and methods.is_patient(config)
    if len(trainer.grid) == 1 and not patient:
        return trainer.grid * len(seeds), [[] for _ in seeds]
    if np.bincount(labels).max() < 2:
        middle = {name: statistics.median_high({v[name] for v in trainer.grid}) for name in trainer.grid[0]}
        notice(f"one row of each class leaves none to choose a setting by; taking the middle of the grid, {middle}")
        return [middle] * len(seeds), [[] for _ in seeds]
    parts = [hold_out(labels, config.validation, seed) for seed in seeds]
    n = len(parts[0][0])  # the same for all seeds
    if isinstance(trainer, ByGradient) and patient:
        found = trainer.search([np.concatenate(part) for part in parts], n, seeds)
        best = [min(each, key=lambda v: (-v["accuracy"], trainer.tie(v))) for each in found]
        require_finite(trainer.method.title, np.array([each["loss"] for each in best]))
        return [{k: v for k, v in each.items() if k not in ("accuracy", "loss")} for each in best], found
    which = [i for i in range(len(seeds)) for _ in trainer.grid]
    fits = [HeadFit(np.concatenate(parts[i]), hyper, seeds[i]) for i in range(len(seeds)) for hyper in trainer.grid]
    validation: list[list[dict[str, float]]] = [[] for _ in seeds]
    for i, fit, head in zip(which, fits, trainer.train(fits, n), strict=True):
        held_out = parts[i][1]
        accuracy, loss = score_held_out(head, features[held_out], labels[held_out])
        validation[i].append({**fit.hyper, "accuracy": accuracy, "loss": loss})
    best = [min(each, key=lambda v: (-v["accuracy"], trainer.tie(v))) for each in validation]
    return [{name: v[name] for name in trainer.grid[0]} for v in best], validation


def cannot_validate(trainer: Trainer, validation: Sequence[Any]) -> bool:
    """Return whether the grid has several settings but `validation` (see `HeadResult`) scored none."""
    return len(trainer.grid) > 1 and not validation


class Diverged(UserError):
    """A weight or a logit is not finite after training."""


def require_converged(method: str, heads: Sequence[Predictor]) -> Sequence[Predictor]:
    """Return the heads. Raise Diverged if a weight is not finite."""
    for head in heads:
        if isinstance(head, TunedHead):
            require_finite(method, *jax.tree.leaves((head.params, head.state)))
    return heads


def require_finite(method: str, *arrays: np.ndarray) -> None:
    """Raise Diverged if a weight or logit is not finite."""
    if not all(np.isfinite(x).all() for x in arrays):
        cure = "lower tune.lrs, or set tune.standardize for large features"
        raise Diverged(f"training of the {method} head diverged", cure)


def check_features(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return training rows as float32 [N, V, D] and int32 [N].

    Raises:
        UserError: features and labels do not fit each other, there are none, a value is not finite, a label is out of
            range, or there is only one class.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    features = features[:, None] if features.ndim == 2 else features
    if num_classes < 2:
        raise UserError(f"num_classes={num_classes} is less than 2", "give two classes or more")
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
        raise UserError(f"row {row} has label {labels[row]}", f"give integers from 0 to {num_classes - 1}")
    if len(np.unique(labels)) < 2:
        raise UserError(f"every training label is {labels[0]}", "give examples of at least two classes")
    return features, labels.astype(np.int32)
