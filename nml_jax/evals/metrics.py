"""Accuracy, macro-F1 and mean-per-class accuracy, in float64 from a confusion matrix."""

from typing import Any

import numpy as np

from nml_jax.errors import UserError


def confusion(labels: Any, predictions: Any, num_classes: int) -> np.ndarray:
    """Count how often class i was predicted as class j.

    Args:
        labels: int [N], the true classes, in [0, num_classes).
        predictions: int [N], likewise.
        num_classes: K.

    Returns:
        int64 [K, K], true class by predicted class. The matrix of the whole is the sum over its parts.
    """
    cells = np.asarray(labels, np.int64) * num_classes + np.asarray(predictions, np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def compute_scores(confusion: Any) -> dict[str, float]:
    """Return accuracy, macro_f1 and mean_per_class by name.

    Raises:
        UserError: there is no example.
    """
    return {score.__name__: score(confusion) for score in (accuracy, macro_f1, mean_per_class)}


def accuracy(confusion: Any) -> float:
    """Return the share of examples whose class is predicted, from a confusion matrix [K, K].

    Raises:
        UserError: there is no example.
    """
    counts = _check_counts(confusion)
    return float(np.trace(counts) / counts.sum())


def mean_per_class(confusion: Any) -> float:
    """Return the mean over classes of the share of examples that are right; classes without examples do not count.

    Raises:
        UserError: there is no example.
    """
    counts = _check_counts(confusion)
    support = counts.sum(1)
    present = support > 0
    return float((np.diag(counts)[present] / support[present]).mean())


def macro_f1(confusion: Any) -> float:
    """Return the mean over classes of F1 = 2 TP / (examples + predictions), scikit-learn's `f1_score(average="macro")`.

    Classes with neither examples nor predictions do not count; a class with predictions only counts as 0.

    Raises:
        UserError: there is no example.
    """
    counts = _check_counts(confusion)
    either = counts.sum(0) + counts.sum(1)
    present = either > 0
    return float((2 * np.diag(counts)[present] / either[present]).mean())


def _check_counts(confusion: Any) -> np.ndarray:
    """Return the confusion matrix in float64."""
    counts = np.asarray(confusion, np.float64)
    if not counts.sum():
        raise UserError("there is nothing to score: the split is empty", "choose a split with examples")
    return counts
