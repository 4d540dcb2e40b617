"""Choose the hyper-parameters of a head, then train it on all rows.

Hyper-parameters are chosen on a stratified part of the training rows. Then the head is trained again, on all of them.
This module never sees a test split, so none can be used before the end. Every method gets the same splits, views and
epochs, and all settings of its grid: by default six each.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from nml_jax.console import notice
from nml_jax.data.stratify import bin_scores
from nml_jax.errors import UserError
from nml_jax.evals.calibration import find_temperature
from nml_jax.tuning import methods, regression
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import PLAIN, SCORES, Demands, Predictor, list_further
from nml_jax.tuning.trainers import make_trainer
from nml_jax.tuning.trainers.gradient import ByGradient
from nml_jax.tuning.trainers.search import Search
from nml_jax.tuning.trainers.trainer import HeadFit, Problem, Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadResult:
    """The result of one method and seed.

    head: the predictor; a `TunedHead`, which can be saved, except for k-NN.
    preset: name of the loss's preset ("code/1view" if `code` had one view); None if the method has none.
    hyper: the chosen values by name, such as {"lr": 0.01, "weight_decay": 0.0} or {"C": 0.1}; with `tune.calibrate`
        also "temperature".
    validation: for each setting of the grid its values by name, "accuracy", "loss" (nats) and the deciding metric, over
        all views of the validation rows. Empty if nothing was chosen.
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
    demands: Demands = PLAIN,
) -> HeadResult:
    """Run `fit_seeds` with one seed."""
    how: dict[str, Any] = {"method": method, "preset": preset, "num_classes": num_classes, "demands": demands}
    (result,) = fit_seeds(features, labels, **how, config=config, seeds=(seed,))
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
    demands: Demands = PLAIN,
) -> list[HeadResult]:
    """Choose hyper-parameters and train on all training rows; one head per seed.

    A seed sets the validation part, the initialisation and the order. The setting of highest accuracy, or of the best
    `demands.metric`, on the validation part is chosen. A tie goes to the lowest loss, or, if scores are not logits
    (ridge, k-NN), to the largest value, which is the strongest regularisation; with `tune.start=probe`, among
    penalties of L-BFGS as `patient.pick_penalty` says. With `config.widen`, a value at the edge
    of its grid is compared with the one beyond it. If the grid has one setting, nothing is held out. If each class has
    one row, nothing can be held out, and the middle of the grid is taken. Without `config.refit`, heads are trained
    without the validation part.

    Args:
        features: float32 [N, D], or [N, V, D] for V views: the training rows.
        labels: int [N] in [0, num_classes); of a regression targets, real [N].
        method: a key of `methods.METHODS`.
        preset: of nmtune: paper | code.
        num_classes: K; 1: a regression, whose heads predict the targets, and whose one logit is the prediction.
        config: the section `tune` of configs/common.py. `batch` is reduced to the rows that are left for training.
        seeds: integers.
        chosen: settings for all seeds, and the scores of the grid, as `choose` returns them for a seed. None: choose.
        demands: what heads are to be good at.

    Raises:
        UserError: an unknown method or preset, a value that is not finite, a label out of range, fewer than two
            classes, no rows, or nothing to hold out.
        Diverged: training diverged at every rate, or on all rows.
    """
    features, labels = check_features(features, targets := labels, num_classes)
    trainer = make_trainer(Problem(features, labels, method, preset, num_classes, config, demands))
    if chosen:
        hypers, validation = [chosen[0]] * len(seeds), [chosen[1]] * len(seeds)
    else:
        hypers, validation = choose(trainer, features, labels, config=config, seeds=seeds)
    if any(validation) and not config.refit:
        divided = [divide_rows(demands, labels, config, seed) for seed in seeds]
    else:
        divided = [(np.arange(len(labels)), len(labels))] * len(seeds)
    fits = [HeadFit(rows, hyper, seed) for (rows, _), hyper, seed in zip(divided, hypers, seeds, strict=True)]
    heads = require_converged(method, train_fits(trainer, fits, [n for _, n in divided]))
    if regression.is_regression(num_classes):
        heads = regression.restore_heads(heads, targets)
    return [
        HeadResult(head=set_temperature(head, fit.hyper), preset=trainer.preset, hyper=fit.hyper, validation=each,
                   n_train=n, unvalidated=cannot_validate(trainer, each))
        for fit, (_, n), each, head in zip(fits, divided, validation, heads, strict=True)
    ]  # fmt: skip


def choose(
    trainer: Trainer, features: np.ndarray, labels: np.ndarray, *, config: Any, seeds: Sequence[int]
) -> tuple[list[dict[str, float]], list[list[dict[str, float]]]]:
    """Return the chosen hyper-parameters of each seed, and the scores of the whole grid (`HeadResult.validation`).

    With `tune.calibrate` and methods whose scores are logits, the former have the "temperature" of a head that is
    trained with them on the rows that are not held out, by those that are.
    """
    hypers, validation = _choose_setting(trainer, features, labels, config=config, seeds=seeds)
    calibrates = config.calibrate and trainer.method.logits and labels.dtype.kind != "f"
    if not calibrates or not can_hold_out(labels):
        return hypers, validation
    out = []
    divided = [divide_rows(trainer.demands, labels, config, seed) for seed in seeds]
    fits = [HeadFit(rows, hyper, seed) for (rows, _), hyper, seed in zip(divided, hypers, seeds, strict=True)]
    heads = train_fits(trainer, fits, [n for _, n in divided])
    for head, hyper, (rows, n) in zip(heads, hypers, divided, strict=True):
        held_out = rows[n:]
        first = features[held_out, 0]  # as in tests
        _, logits = head.outputs(first)
        require_finite(trainer.method.title, logits)
        out.append({**hyper, "temperature": find_temperature(logits, labels[held_out])})
    return out, validation


def set_temperature(head: Predictor, hyper: Mapping[str, float]) -> Predictor:
    """Return a head with the temperature among its settings, if there is one."""
    if not isinstance(head, TunedHead) or "temperature" not in hyper:
        return head
    return dataclasses.replace(head, temperature=hyper["temperature"])


def _choose_setting(
    trainer: Trainer, features: np.ndarray, labels: np.ndarray, *, config: Any, seeds: Sequence[int]
) -> tuple[list[dict[str, float]], list[list[dict[str, float]]]]:
    patient = isinstance(trainer, ByGradient) and methods.is_patient(config)
    if len(trainer.grid) == 1 and not patient:
        return trainer.grid * len(seeds), [[] for _ in seeds]
    if not can_hold_out(labels):
        middle = {name: statistics.median_high({v[name] for v in trainer.grid}) for name in trainer.grid[0]}
        notice(f"one row of each class leaves none to choose a setting by; taking the middle of the grid, {middle}")
        return [middle] * len(seeds), [[] for _ in seeds]
    divided = [divide_rows(trainer.demands, labels, config, seed) for seed in seeds]
    if isinstance(trainer, ByGradient) and patient:
        validation = Search(trainer).run(divided, seeds)
        best = [each[trainer.pick(each)] for each in validation]
    else:
        validation, best = _search_grids(trainer, features, labels, divided=divided, seeds=seeds, widen=config.widen)
    if patient:
        require_finite(trainer.method.title, np.array([each["loss"] for each in best]))
    return [{name: v for name, v in each.items() if name not in SCORES} for each in best], validation


def _search_grids(
    trainer: Trainer,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    divided: Sequence[tuple[np.ndarray, int]],
    seeds: Sequence[int],
    widen: bool,
) -> tuple[list[list[dict[str, float]]], list[dict[str, float]]]:
    """Return the scores of all settings on the validation part of each seed, and the best of them."""
    score = partial(_score_grids, trainer, features, labels, divided, seeds)
    held_out = [np.repeat(labels[rows[n:]], features.shape[1]) for rows, n in divided]
    scored = score([trainer.grid] * len(seeds))

    def pick() -> list[dict[str, float]]:
        own = [zip(*each, strict=True) for each in scored]
        chosen = [trainer.pick(*each, labels=y) for each, y in zip(own, held_out, strict=True)]
        return [each[i][0] for each, i in zip(scored, chosen, strict=True)]

    best = pick()
    further = [list_further(trainer.grid, each) for each in best] if widen else []
    if any(further):
        scored = [each + more for each, more in zip(scored, score(further), strict=True)]
        best = pick()
    return [[scores for scores, _ in each] for each in scored], best


def _score_grids(
    trainer: Trainer,
    features: np.ndarray,
    labels: np.ndarray,
    divided: Sequence[tuple[np.ndarray, int]],
    seeds: Sequence[int],
    grids: Sequence[Sequence[dict[str, float]]],
) -> list[list[tuple[dict[str, float], np.ndarray]]]:
    """Train the settings of each seed. Return their scores and their logits on its validation part, all views."""
    which = [i for i, grid in enumerate(grids) for _ in grid]
    hypers = [hyper for grid in grids for hyper in grid]
    fits = [HeadFit(divided[i][0], hyper, seeds[i]) for i, hyper in zip(which, hypers, strict=True)]
    scored: list[list[tuple[dict[str, float], np.ndarray]]] = [[] for _ in seeds]
    heads = train_fits(trainer, fits, [divided[i][1] for i in which])
    for i, fit, head in zip(which, fits, heads, strict=True):
        held_out = fit.rows[divided[i][1] :]
        logits = head.outputs(features[held_out].reshape(-1, features.shape[2]))[1]
        scores = trainer.demands.score(logits, np.repeat(labels[held_out], features.shape[1]))
        scored[i].append(({**fit.hyper, **scores}, logits))
    return scored


def train_fits(trainer: Trainer, fits: Sequence[HeadFit], sizes: Sequence[int]) -> list[Predictor]:
    """Train heads on the first rows of each, as many as `sizes` says: together those of as many rows."""
    heads: list[Predictor] = []
    for n, several in itertools.groupby(range(len(fits)), key=lambda i: sizes[i]):  # groups of rows differ in size
        heads += trainer.train([fits[i] for i in several], n)
    return heads


def divide_rows(demands: Demands, labels: np.ndarray, config: Any, seed: int) -> tuple[np.ndarray, int]:
    """Return all rows, those of the validation part last, and the number of the others."""
    train, held_out = demands.hold_out(labels, config.validation, seed)
    return np.concatenate([train, held_out]), len(train)


def can_hold_out(labels: np.ndarray) -> bool:
    """Return whether a row can be held out: some class, or bin of scores, has two."""
    return bool(np.bincount(bin_scores(labels)).max() > 1)


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
    """Return training rows as float32 [N, V, D] and int32 [N], or standardised targets, float32 [N], of a regression.

    Raises:
        UserError: features and labels do not fit each other, there are none, a value is not finite, a label is out of
            range, or there is only one class.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    features = features[:, None] if features.ndim == 2 else features
    if num_classes < 2 and not (num_classes == 1 and labels.dtype.kind == "f"):
        cure = "give two classes or more; a regression has one output, and targets that are floats"
        raise UserError(f"num_classes={num_classes} is less than 2", cure)
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
    if regression.is_regression(num_classes):
        targets = regression.check_targets(labels)
        return features, regression.measure_scale(targets).standardize(targets)
    wrong = (labels < 0) | (labels >= num_classes) | (labels != np.floor(labels))
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"row {row} has label {labels[row]}", f"give integers from 0 to {num_classes - 1}")
    if len(np.unique(labels)) < 2:
        raise UserError(f"every training label is {labels[0]}", "give examples of at least two classes")
    return features, labels.astype(np.int32)
