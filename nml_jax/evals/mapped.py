"""Scores on test sets with other classes than the training classes, and on frames of videos."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from nml_jax.errors import UserError
from nml_jax.evals import calibration, metrics
from nml_jax.evals.correlations import CORRELATIONS, compute_numbers
from nml_jax.evals.metrics import METRICS, Answers


def map_logits(logits: Any, class_map: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the logits of test classes: for each the largest among the training classes that it stands for.

    If the test set has a subset of the training classes, each stands for one training class, and only their logits
    compete.

    Args:
        logits: float [M, K], of the training classes.
        class_map: K' tuples of ids in [0, K), none of them empty.

    Returns:
        [M, K'] of the same type.

    Raises:
        UserError: a test class stands for no training class, or for one outside [0, K).
    """
    logits = np.asarray(logits)
    for test, classes in enumerate(class_map):
        if not len(classes) or not all(0 <= c < logits.shape[1] for c in classes):
            raise UserError(
                f"test class {test} stands for the training classes {tuple(classes)}, of {logits.shape[1]}",
                "train on the classes that the class map was made for",
            )
    return take_best(logits, class_map)


def take_best(scores: Any, class_map: Sequence[Sequence[int]]) -> Any:
    """Do the same for a checked class map, with arrays of NumPy or JAX."""
    widest = max(map(len, class_map))
    columns = np.array([[*ids, *[ids[0]] * (widest - len(ids))] for ids in class_map])  # filled up with the first
    return scores[:, columns].max(-1)


def pm_k(correct: Any, groups: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Return pm-0, the share of anchor frames that are right, and pm-k, that of anchors right with all their frames.

    Shankar et al. (arXiv 1906.02168), section 3: pm-k takes the worst of the frames within k of the anchor.

    Args:
        correct: bool [N], for every frame.
        groups: for each anchor the ids of its frames, the anchor first.

    Raises:
        UserError: there is no group, or a group has no frame.
    """
    if not len(groups) or not all(map(len, groups)):
        raise UserError("there is nothing to score: no anchor frame", "prepare the dataset again")
    correct = np.asarray(correct, bool)
    return float(np.mean([correct[g[0]] for g in groups])), float(np.mean([correct[list(g)].all() for g in groups]))


BEFORE = "_before"  # ends the name of a score without the head's temperature


class Scorer:
    """A scorer of a test split whose logits come in blocks, in the order of its records."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_map: Sequence[Sequence[int]] | None = None,
        frame_labels: Sequence[Collection[int]] | None = None,
        groups: Sequence[Sequence[int]] = (),
        never: int = 0,
        ordered: bool = False,
        soft: bool = False,
        temperature: float = 1.0,
    ):
        """Make a scorer without records.

        Args:
            num_classes: K, the number of logits.
            class_map: see `map_logits`; None: the test classes are the training classes.
            frame_labels: for each of the N frames of videos all classes in it; a prediction is right if it is one.
            groups: groups of these frames, see `pm_k`.
            never: classes of the test, after the others, that no answer is, such as that of rows without a gold label.
                Losses are not kept then.
            ordered: whether numbers of classes mean more or less, so that they correlate.
            soft: also keep losses and confidences, and score them; scores must be logits.
            temperature: by which these are divided for that.
        """
        self._temperatures = [temperature, *([1.0] if temperature != 1 else [])] if soft and not never else []
        self._labels: list[np.ndarray] = []
        self._answers: list[np.ndarray] = []
        self._soft: list[list[np.ndarray]] = []
        self._class_map, self._frame_labels, self._groups = class_map, frame_labels, groups
        self._k = (num_classes if class_map is None else len(class_map)) + never
        self._ordered = ordered
        self._confusion = np.zeros((self._k, self._k), np.int64)

    def update(self, labels: Any, logits: Any) -> None:
        """Count a block: int [n] of the test classes, float [n, K] of the training classes."""
        logits = np.asarray(logits) if self._class_map is None else map_logits(logits, self._class_map)
        predictions = logits.argmax(1)
        self._confusion += metrics.confusion(labels, predictions, self._k)
        self._labels.append(np.asarray(labels))
        self._answers.append(predictions)
        scaled = [np.asarray(logits, np.float64) / temperature for temperature in self._temperatures]
        self._soft.append([f(z, *more) for z in scaled for f, more in
                           ((metrics.compute_losses, (labels,)), (calibration.compute_confidences, ()))])  # fmt: skip

    @property
    def correct(self) -> np.ndarray:
        """Whether the prediction of each record is its label, bool [N]."""
        answers = self.answers
        return answers.predictions == answers.labels

    @property
    def answers(self) -> Answers:
        """Classes, predictions and, with `soft`, losses of all records."""
        soft = self.soft
        return Answers(np.concatenate(self._labels), np.concatenate(self._answers), soft[0] if soft else None)

    @property
    def soft(self) -> list[np.ndarray]:
        """Losses and confidences, float64 [N] each; then, with a temperature, those without it; [] without `soft`."""
        return [np.concatenate(parts) for parts in zip(*self._soft, strict=True)]

    @property
    def confusion(self) -> np.ndarray:
        """How often each test class was predicted as each, int64 [K', K']."""
        return self._confusion

    def scores(self) -> dict[str, float]:
        """Return what `compute_scores` does of the test classes, by name; with frames also pm0 and pm10.

        With `soft` also log_loss and ece, the calibration error; with a temperature both without it, too.

        Raises:
            UserError: there is no example, or no anchor frame.
        """
        out = metrics.compute_scores(self._confusion)
        if self._ordered:
            out |= compute_numbers(self.answers, CORRELATIONS)
        if self._frame_labels is not None:
            frames = zip(np.concatenate(self._answers).tolist(), self._frame_labels, strict=True)
            out["pm0"], out["pm10"] = pm_k([prediction in classes for prediction, classes in frames], self._groups)
        soft, right = self.soft, self.correct
        for suffix, losses, confidences in zip(("", BEFORE), soft[::2], soft[1::2], strict=False):
            out[f"log_loss{suffix}"] = METRICS["log_loss"].score(losses)
            out[f"ece{suffix}"] = calibration.bin_rows(confidences, right).error
        return out
