"""The one head trainer: choose hyper-parameters, train on a feature bank, score.

Learning rate and weight decay are chosen on a stratified part of the training rows; then the head is trained anew on
all of them, and the test splits are scored once. Every method gets the same grid, epochs, views and splits.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from nml_jax.errors import UserError
from nml_jax.evals import metrics
from nml_jax.models.heads import METHODS, Tree
from nml_jax.objectives import nmtune
from nml_jax.training.head_runs import Setting, Spec, outputs, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadResult:
    """A trained head.

    params, state: nested dicts of float32 NumPy arrays, for the `apply` of models/heads.py.
    spec: what it was compiled for.
    preset: name of the loss's preset ("code/1view" where `code` had one view); None for linear and mlp.
    hyper: the chosen {"lr", "weight_decay"}.
    validation: for each setting of the grid {"lr", "weight_decay", "accuracy", "loss"}, the last two over all views of
        the validation rows, the loss in nats. Empty where the grid has one setting: nothing is to be chosen.
    scores: test split -> {"accuracy", "macro_f1", "mean_per_class"}.
    n_train: rows of the final training.
    """

    params: Tree
    state: Tree
    spec: Spec
    preset: str | None
    hyper: dict[str, float]
    validation: list[dict[str, float]]
    scores: dict[str, dict[str, float]]
    n_train: int

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Z float32 [M, D] and logits float32 [M, K] of features [M, D]."""
        return outputs(self.spec, self.params, self.state, features)

    def transform(self, features: np.ndarray) -> np.ndarray:
        """Z float32 [M, D] of features [M, D]; of the linear head, its (standardised) input."""
        return self.outputs(features)[0]


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    tests: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    method: str,
    preset: str | nmtune.Weights | None = None,
    num_classes: int,
    config: Any,
    seed: int,
) -> HeadResult:
    """`fit_seeds` with one seed."""
    (result,) = fit_seeds(
        features, labels, tests, method=method, preset=preset, num_classes=num_classes, config=config, seeds=(seed,)
    )
    return result


def fit_seeds(
    features: np.ndarray,
    labels: np.ndarray,
    tests: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    method: str,
    preset: str | nmtune.Weights | None = None,
    num_classes: int,
    config: Any,
    seeds: Sequence[int],
) -> list[HeadResult]:
    """Choose hyper-parameters, train on all training rows, score; one head per seed.

    A seed decides the validation part, the initialisation and the order. Chosen is the setting of highest accuracy on
    the validation part, of several such the one of lowest loss. Where the grid has one setting nothing is held out.

    Args:
        features: float32 [N, D], or [N, V, D] for V views: the training rows.
        labels: int [N] in [0, num_classes).
        tests: name -> (features [M, D], labels [M]); scored with the final head only.
        method: linear | mlp | nmtune.
        preset: of nmtune: paper | code, or free weights.
        num_classes: K.
        config: the section `tune` of configs/common.py; used are epochs, batch (at most the rows left to train on
            beside the validation part), lrs, weight_decays, validation, standardize and width.
        seeds: whole numbers.

    Raises:
        UserError: an unknown method or preset, a value that is not finite, a label out of range, fewer than two
            classes, an empty split, splits of different width, nothing to hold out, or training that diverges.
    """
    features, labels = _checked("train", features, labels, num_classes)
    tests = {name: _checked(name, *test, num_classes, dim=features.shape[-1]) for name, test in tests.items()}
    if len(np.unique(labels)) < 2:
        raise UserError(f"every training label is {labels[0]}", "give examples of at least two classes")
    weights, preset_name = loss_of(method, preset, views=features.shape[1])
    grid = [(lr, weight_decay) for lr in config.lrs for weight_decay in config.weight_decays]
    if not grid:
        raise UserError("tune.lrs or tune.weight_decays is empty", "give each at least one value")
    everything = np.arange(len(labels))
    search = len(grid) > 1
    parts = [hold_out(labels, config.validation, seed) if search else (everything, everything[:0]) for seed in seeds]
    n = len(parts[0][0])  # the class counts decide it, not the seed
    spec = Spec(method, weights, num_classes, config.width, min(config.batch, n), config.standardize)
    run = partial(train, spec, *jax.device_put((features, labels)), epochs=config.epochs)

    validation: list[list[dict[str, float]]] = [[] for _ in seeds]
    if search:
        jobs = [(i, hyper) for i in range(len(seeds)) for hyper in grid]
        settings = [Setting(np.concatenate(parts[i]), *hyper, seeds[i]) for i, hyper in jobs]
        for (i, (lr, weight_decay)), trained in zip(jobs, run(settings, n), strict=True):
            held_out = parts[i][1]
            accuracy, loss = _validate(spec, *trained, features[held_out], labels[held_out])
            validation[i].append({"lr": lr, "weight_decay": weight_decay, "accuracy": accuracy, "loss": loss})
    best = [min(each, key=lambda v: (-v["accuracy"], v["loss"])) for each in validation if each]
    hypers = [(v["lr"], v["weight_decay"]) for v in best] if search else grid * len(seeds)

    settings = [Setting(everything, *hyper, seed) for hyper, seed in zip(hypers, seeds, strict=True)]
    final = run(settings, len(labels))
    _require_finite(method, final)
    return [
        HeadResult(
            params=params,
            state=state,
            spec=spec,
            preset=preset_name,
            hyper={"lr": setting.lr, "weight_decay": setting.weight_decay},
            validation=each,
            scores={name: _score(spec, params, state, *test) for name, test in tests.items()},
            n_train=len(labels),
        )
        for setting, each, (params, state) in zip(settings, validation, final, strict=True)
    ]


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random, class by class: round(share·N) are held out, at least one, but never all of a class.

    Each class gives by the largest remainder of share·(its count), and keeps one.

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
    for c in np.argsort(held - share * counts, kind="stable"):
        held[c] += held.sum() < total and held[c] < counts[c] - 1
    if not (0 < share < 1 and held.any()):
        raise UserError(
            f"nothing can be held out: tune.validation={share}, {counts.max()} row(s) in the largest class",
            "set tune.validation above 0 and give more rows; or one value each of tune.lrs and tune.weight_decays",
        )
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    kept = [r[k:] for r, k in zip(rows, held, strict=True)]
    return np.concatenate(kept), np.concatenate([r[:k] for r, k in zip(rows, held, strict=True)])


def _validate(spec: Spec, params: Tree, state: Tree, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy and mean cross-entropy (nats) over all views of features [M, V, D]; 0 and inf if training diverged."""
    labels = np.repeat(labels, features.shape[1])
    _, logits = outputs(spec, params, state, features.reshape(len(labels), -1))
    if not np.isfinite(logits).all():
        return 0.0, math.inf
    shifted = np.float64(logits) - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return float((logits.argmax(1) == labels).mean()), float(losses.mean())


def _score(spec: Spec, params: Tree, state: Tree, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    _, logits = outputs(spec, params, state, features[:, 0])
    _require_finite(spec.method, logits)
    return metrics.scores(metrics.confusion(labels, logits.argmax(1), spec.num_classes))


def _require_finite(method: str, tree: Any) -> None:
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(tree)):
        raise UserError(
            f"training of the {method} head diverged", "lower tune.lrs, or set tune.standardize for large features"
        )


def loss_of(method: str, preset: str | nmtune.Weights | None, views: int) -> tuple[nmtune.Weights, str | None]:
    """The loss of a method, and the name of its preset; linear and mlp are trained with cross-entropy alone."""
    if method not in METHODS:
        raise UserError(f"there is no head {method!r}", f"choose one of {', '.join(METHODS)}")
    if method == "nmtune":
        return nmtune.weights(preset, views)
    if preset is not None:
        raise UserError(f"preset {preset!r} is given for the head {method!r}", "presets are for nmtune only")
    return nmtune.Weights(), None


def _checked(
    split: str, features: np.ndarray, labels: np.ndarray, num_classes: int, dim: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, V, D] and int32 [N], or a UserError that names the split; `dim` asks for one view of that width."""
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    features = features[:, None] if features.ndim == 2 else features
    if num_classes < 2:
        raise UserError(f"num_classes={num_classes}: nothing is to be told apart", "give two classes or more")
    if features.ndim != 3 or labels.shape != features.shape[:1] or (dim and features.shape[1:] != (1, dim)):
        raise UserError(
            f"{split}: features {features.shape} and labels {labels.shape} do not fit" + (f" D={dim}" if dim else ""),
            "give features [N, D], for training also [N, views, D], labels [N], and one D for all splits",
        )
    if not features.size:
        raise UserError(f"{split}: there is no example", "choose a split with examples")
    finite = np.isfinite(features).all((1, 2))
    if not finite.all():
        raise UserError(f"{split}: row {finite.argmin()} holds a value that is not finite", "extract the features anew")
    wrong = (labels < 0) | (labels >= num_classes) | (labels != np.floor(labels))
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{split}: row {row} has label {labels[row]}", f"give whole numbers from 0 to {num_classes - 1}"
        )
    return features, labels.astype(np.int32)
