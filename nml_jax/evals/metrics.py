"""The table of metrics that may decide between heads, and what they say of a single row; all in float64.

A metric of another kind of task, such as a correlation, is a further line of METRICS with its own `needs`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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


def log_loss(losses: Any) -> float:
    """Return the mean of the cross-entropies −log p(class) of examples, [N], in nats.

    Raises:
        UserError: there is no example.
    """
    losses = np.asarray(losses, np.float64)
    if not losses.size:
        raise UserError("there is nothing to score: the split is empty", "choose a split with examples")
    return float(losses.mean())


def compute_losses(logits: Any, labels: Any) -> NDArray[np.float64]:
    """Return the cross-entropy −log softmax(logits)[label] of every row in nats, [N], for finite logits [N, K]."""
    logits = np.asarray(logits)
    shifted = np.float64(logits) - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


def _check_counts(confusion: Any) -> np.ndarray:
    """Return the confusion matrix in float64."""
    counts = np.asarray(confusion, np.float64)
    if not counts.sum():
        raise UserError("there is nothing to score: the split is empty", "choose a split with examples")
    return counts


class Answers(NamedTuple):
    """The answers of a head to the rows of a test.

    labels, predictions: int [N], numbers of classes.
    losses: cross-entropies in nats, [N]; None where the scores are not logits.
    """

    labels: np.ndarray
    predictions: np.ndarray
    losses: np.ndarray | None = None


class Shares(NamedTuple):
    """A score as a mean over rows.

    values: float64 [N]; their mean is the score, and their spread what other rows of the same source would change
        (the infinitesimal jackknife; exact for means).
    flips: what a row more that is right instead of wrong would add to the sum, for each class with rows; [] if unknown.
    counts: rows of these classes; of an accuracy all rows, as of one class.
    """

    values: NDArray[np.float64]
    flips: NDArray[np.float64]
    counts: NDArray[np.float64]


class Metric(NamedTuple):
    """A metric that may decide.

    title: in a sentence.
    needs: what `score` takes: "confusion", a matrix [K, K], or "losses", [N].
    score: what it takes -> the score.
    share: answers -> the score as a mean over rows.
    way: 1: larger is better; −1: smaller.
    """

    title: str
    needs: str
    score: Callable[[Any], float]
    share: Callable[[Answers], Shares]
    way: int = 1


def _share_accuracy(answers: Answers) -> Shares:
    return share_right(answers.predictions == answers.labels)


def share_right(right: np.ndarray) -> Shares:
    """Return the accuracy of rows, bool [N], as a mean over them."""
    return Shares(right.astype(np.float64), np.ones(1), np.full(1, float(len(right))))


def _share_mean_per_class(answers: Answers) -> Shares:
    n, counts = len(answers.labels), np.bincount(answers.labels)
    weight = n / (np.count_nonzero(counts) * np.maximum(counts, 1))  # of a row of each class
    right = answers.predictions == answers.labels
    recall = np.bincount(answers.labels, right, len(counts)) / np.maximum(counts, 1)
    score = recall[counts > 0].mean()
    values = score + (right - recall[answers.labels]) * weight[answers.labels]
    return Shares(values, weight[counts > 0], counts[counts > 0].astype(np.float64))


def _share_macro_f1(answers: Answers) -> Shares:
    k = 1 + max(answers.labels.max(), answers.predictions.max())
    true, predicted = (np.bincount(x, minlength=k) for x in (answers.labels, answers.predictions))
    right = answers.predictions == answers.labels
    either = np.maximum(true + predicted, 1)
    f1 = 2 * np.bincount(answers.labels, right, k) / either
    present = (true + predicted) > 0
    weight = len(answers.labels) / (present.sum() * either)
    # With TP, true and predicted as means over rows, the derivative of 2 TP / (true + predicted) in each row.
    moved = -(f1 * weight)[answers.labels] - (f1 * weight)[answers.predictions] + 2 * right * weight[answers.labels]
    return Shares(f1[present].mean() + moved, 2 * weight[true > 0], true[true > 0].astype(np.float64))


def _share_log_loss(answers: Answers) -> Shares:
    return Shares(np.asarray(answers.losses, np.float64), np.zeros(0), np.zeros(0))


METRICS = {
    "accuracy": Metric("accuracy", "confusion", accuracy, _share_accuracy),
    "macro_f1": Metric("macro-F1", "confusion", macro_f1, _share_macro_f1),
    "mean_per_class": Metric("the mean per class", "confusion", mean_per_class, _share_mean_per_class),
    "log_loss": Metric("the log loss", "losses", log_loss, _share_log_loss, -1),
}
TASK = "task"  # the task's own metric


def find_metric(asked: str, own: str) -> str:
    """Return the metric that decides, for `tune.metric` and a task's own; "" for accuracy that is only the task's own.

    Then training goes by the loss, and only settings by accuracy.
    """
    return asked if asked != TASK else own if own != "accuracy" else ""


def check_name(name: str) -> None:
    """Raise UserError if `tune.metric` has no such value."""
    if name not in (TASK, *METRICS):
        raise UserError(f"tune.metric={name!r}", f"choose one of {', '.join((TASK, *METRICS))}")
