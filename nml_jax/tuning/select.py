"""The one head trainer: choose hyper-parameters, then train on all rows.

Hyper-parameters are chosen on a stratified part of the training rows; then the head is trained anew on all of them. The
test splits are no business of this file, so that none can be looked at before the end. Every method gets the same
splits, views and epochs, and as many settings as its grid has: by default six each.
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
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import score_held_out
from nml_jax.tuning.trainers import HeadFit, Predictor, Trainer, make_trainer


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
    features, labels = check_features(features, labels, num_classes)
    trainer = make_trainer(features, labels, method=method, preset=preset, num_classes=num_classes, config=config)
    hypers, validation = choose(trainer, features, labels, config=config, seeds=seeds)
    everything = np.arange(len(labels))
    jobs = [HeadFit(everything, hyper, seed) for hyper, seed in zip(hypers, seeds, strict=True)]
    trained = require_converged(method, trainer.train(jobs, len(labels)))
    return [
        HeadResult(head=head, preset=trainer.preset, hyper=job.hyper, validation=each, n_train=len(labels),
                   unvalidated=cannot_validate(trainer, each))
        for job, each, head in zip(jobs, validation, trained, strict=True)
    ]  # fmt: skip


def choose(
    trainer: Trainer, features: np.ndarray, labels: np.ndarray, *, config: Any, seeds: Sequence[int]
) -> tuple[list[dict[str, float]], list[list[dict[str, float]]]]:
    """The chosen hyper-parameters of each seed, and what was seen of the whole grid (`HeadResult.validation`)."""
    if len(trainer.grid) == 1:
        return trainer.grid * len(seeds), [[] for _ in seeds]
    if np.bincount(labels).max() < 2:
        middle = {name: statistics.median_high({v[name] for v in trainer.grid}) for name in trainer.grid[0]}
        notice(f"one row of each class leaves none to choose a setting on: the middle of the grid is taken, {middle}")
        return [middle] * len(seeds), [[] for _ in seeds]
    parts = [hold_out(labels, config.validation, seed) for seed in seeds]
    n = len(parts[0][0])  # the class counts decide it, not the seed
    of = [i for i in range(len(seeds)) for _ in trainer.grid]
    jobs = [HeadFit(np.concatenate(parts[i]), hyper, seeds[i]) for i in range(len(seeds)) for hyper in trainer.grid]
    validation: list[list[dict[str, float]]] = [[] for _ in seeds]
    for i, job, head in zip(of, jobs, trainer.train(jobs, n), strict=True):
        held_out = parts[i][1]
        accuracy, loss = score_held_out(head, features[held_out], labels[held_out])
        validation[i].append({**job.hyper, "accuracy": accuracy, "loss": loss})
    best = [min(each, key=lambda v: (-v["accuracy"], trainer.tie(v))) for each in validation]
    return [{name: v[name] for name in trainer.grid[0]} for v in best], validation


def cannot_validate(trainer: Trainer, seen: Sequence[Any]) -> bool:
    """Whether there were settings to choose from and none was tried, as `seen` (`HeadResult.validation`) says."""
    return len(trainer.grid) > 1 and not seen


class Diverged(UserError):
    """Training left a weight or a logit that is not finite."""


def require_converged(method: str, trained: Sequence[Predictor]) -> Sequence[Predictor]:
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


def check_features(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
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
