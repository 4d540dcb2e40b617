"""The table of metrics that may decide between heads, and what they say of a single row; all in float64.

Those of predicted numbers are in correlations.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nml_jax.errors import UserError
from nml_jax.evals import correlations
from nml_jax.evals.answers import Answers, Shares, share_values

__all__ = ["METRICS", "Answers", "Metric", "Shares"]


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
    """Return accuracy, macro_f1, mean_per_class and mcc by name, and f1 if there are two classes.

    Raises:
        UserError: there is no example.
    """
    scores = (accuracy, macro_f1, mean_per_class, mcc, *((f1,) if len(confusion) == 2 else ()))
    return {score.__name__: score(confusion) for score in scores}


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


def f1(confusion: Any) -> float:
    """Return the F1 = 2 TP / (examples + predictions) of class 1 of two, scikit-learn's `f1_score`.

    It is 0, as there, where class 1 has neither examples nor predictions.

    Raises:
        UserError: there is no example, or there are not two classes.
    """
    counts = _check_counts(confusion)
    check_classes("f1", len(counts))
    return float(2 * counts[1, 1] / max(counts[1].sum() + counts[:, 1].sum(), 1))


def mcc(confusion: Any) -> float:
    """Return Matthews' correlation coefficient of any number of classes (Gorodkin 2004), in [−1, 1].

    With one class among the examples or the predictions it is 0 / 0; it is 0 then, as scikit-learn's
    `matthews_corrcoef` is.

    Raises:
        UserError: there is no example.
    """
    counts = _check_counts(confusion)
    true, predicted, n = counts.sum(1), counts.sum(0), counts.sum()
    return float(_correlate(np.trace(counts), true @ predicted, true @ true, predicted @ predicted, n))


def _correlate(right: Any, both: Any, true: Any, predicted: Any, n: float) -> Any:
    """Return Matthews' coefficient from the sums over classes of t·p, t² and p², where t and p are counts of n rows."""
    spread = np.sqrt((n * n - true) * (n * n - predicted))
    return np.where(spread > 0, (right * n - both) / np.where(spread > 0, spread, 1), 0.0)


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


class Metric(NamedTuple):
    """A metric that may decide.

    title: in a sentence.
    needs: what `score` takes: "confusion", a matrix [K, K]; "losses", [N]; or "numbers", `Answers`.
    score: what it takes -> the score; None where it is undefined.
    share: answers -> the score as a mean over rows.
    way: 1: larger is better; −1: smaller.
    """

    title: str
    needs: str
    score: Callable[[Any], Any]
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


def _share_f1(answers: Answers) -> Shares:
    true, predicted = answers.labels == 1, answers.predictions == 1
    either, n = max(true.sum() + predicted.sum(), 1), len(true)
    score = 2 * (true & predicted).sum() / either
    # The derivative of 2 TP / (true + predicted) in each row; a right row of class 0 more is one prediction of 1 less.
    values = score + (2 * (true & predicted) - score * (1.0 * true + predicted)) * n / either
    counts = np.bincount(answers.labels, minlength=2)[:2]
    return Shares(values, (np.array([1.0, 2.0]) * n / either)[counts > 0], counts[counts > 0].astype(np.float64))


def _share_mcc(answers: Answers) -> Shares:
    k, n = 1 + max(answers.labels.max(), answers.predictions.max()), len(answers.labels)
    counts = confusion(answers.labels, answers.predictions, k)
    true, predicted = counts.sum(1) / n, counts.sum(0) / n
    score, flips = mcc(counts), _flip_mcc(counts)[true > 0]
    moved = np.zeros(n)
    rest = 1 - true @ true, 1 - predicted @ predicted
    if min(rest) > 0:  # else its derivative does not exist, and the flips alone say how unsure it is
        right, t, p = answers.predictions == answers.labels, true[answers.labels], predicted[answers.predictions]
        crossed = predicted[answers.labels] + true[answers.predictions]
        moved = (right - right.mean() - crossed + 2 * true @ predicted) / np.sqrt(rest[0] * rest[1])
        moved += score * ((t - true @ true) / rest[0] + (p - predicted @ predicted) / rest[1])
    return Shares(score + moved, flips, counts.sum(1)[true > 0].astype(np.float64))


def _flip_mcc(counts: np.ndarray) -> NDArray[np.float64]:
    """Return N times what Matthews' coefficient changes by if one row of each class becomes right, [K].

    It is the row of its most frequent wrong prediction; of a class without one, a row that becomes wrong.
    """
    counts, n, every = counts.astype(np.float64), counts.sum(), np.arange(len(counts))
    true, predicted = counts.sum(1), counts.sum(0)
    wrong = np.where(np.eye(len(counts)) > 0, -1.0, counts)
    other = wrong.argmax(1)
    step = np.where(wrong[every, other] > 0, 1.0, -1.0)  # right rows that are added
    both = true @ predicted + step * (true - true[other])
    squares = predicted @ predicted + 2 * step * (predicted - predicted[other]) + 2
    new = _correlate(np.trace(counts) + step, both, true @ true, squares, float(n))
    return n * np.abs(new - mcc(counts))


def _share_log_loss(answers: Answers) -> Shares:
    return share_values(np.asarray(answers.losses))


METRICS = {
    "accuracy": Metric("accuracy", "confusion", accuracy, _share_accuracy),
    "macro_f1": Metric("macro-F1", "confusion", macro_f1, _share_macro_f1),
    "mean_per_class": Metric("the mean per class", "confusion", mean_per_class, _share_mean_per_class),
    "mcc": Metric("the Matthews correlation", "confusion", mcc, _share_mcc),
    "f1": Metric("F1", "confusion", f1, _share_f1),
    "log_loss": Metric("the log loss", "losses", log_loss, _share_log_loss, -1),
    "pearson": Metric("Pearson's correlation", "numbers", correlations.pearson, correlations.share_pearson),
    "spearman": Metric("Spearman's correlation", "numbers", correlations.spearman, correlations.share_spearman),
    "r2": Metric("R²", "numbers", correlations.r2, correlations.share_r2),
    "rmse": Metric("the root mean square error", "numbers", correlations.rmse, correlations.share_rmse, -1),
}
TASK = "task"  # the task's own metric
REGRESSION = "r2"  # decides on a regression whose task has no metric of its own


def find_metric(asked: str, own: str) -> str:
    """Return the metric that decides, for `tune.metric` and a task's own; "" for accuracy that is only the task's own.

    Then training goes by the loss, and only settings by accuracy.
    """
    return asked if asked != TASK else own if own != "accuracy" else ""


def check_name(name: str) -> None:
    """Raise UserError if `tune.metric` has no such value."""
    if name not in (TASK, *METRICS):
        raise UserError(f"tune.metric={name!r}", f"choose one of {', '.join((TASK, *METRICS))}")


def check_number(metric: str) -> str:
    """Return a metric. Raise UserError unless it is one of predicted numbers."""
    if METRICS[metric].needs != "numbers":
        raise UserError(
            f"tune.metric={metric} is of classes, and the labels are numbers to be predicted",
            f"choose {', '.join(correlations.SCORES)}",
        )
    return metric


def check_classes(metric: str, classes: int, *, ordered: bool = False) -> None:
    """Raise UserError if a metric does not suit `classes` classes; `ordered` ones are like numbers."""
    if metric in METRICS and METRICS[metric].needs == "numbers" and not ordered:
        raise UserError(
            f"tune.metric={metric} is of numbers, and the labels are classes",
            "choose accuracy, macro_f1, mean_per_class, mcc or log_loss",
        )
    if metric == "f1" and classes != 2:
        raise UserError(
            f"tune.metric=f1 is the F1 of one of two classes, and there are {classes}",
            "choose macro_f1, the mean over the classes, or mcc",
        )
