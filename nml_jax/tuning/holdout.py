"""Hold out training rows and score heads on them, to choose hyper-parameters."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nml_jax.errors import UserError
from nml_jax.tuning.trainers import Predictor


def check_choices(share: float, choices: Mapping[str, Sequence[float]]) -> None:
    """Raise UserError if a config key of `choices` has several values but `share` holds out nothing to choose by."""
    keys = [key for key, values in choices.items() if len(values) > 1]
    if keys and not share:
        raise UserError(
            f"tune.validation=0 leaves no rows to choose {' and '.join(keys)} by",
            f"set tune.validation above 0, or give {'each of them' if len(keys) > 1 else keys[0]} one value",
        )


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random, class by class: hold out round(share·N) rows, at least one, but never all of a class.

    The number per class is by the largest remainder of share·(its count). Equal remainders are put in random order:
    otherwise, with few rows, only the first classes would be tested.

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


def score_held_out(head: Predictor, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy (nats) over all views of features [M, V, D]; (0, inf) if it diverged."""
    labels = np.repeat(labels, features.shape[1])
    _, logits = head.outputs(features.reshape(len(labels), -1))
    if not np.isfinite(logits).all():
        return 0.0, math.inf
    return float((logits.argmax(1) == labels).mean()), cross_entropy(logits, labels)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the (weighted) mean of −log softmax(logits)[label] in nats, for finite logits [M, K]."""
    shifted = np.float64(logits) - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weights))
