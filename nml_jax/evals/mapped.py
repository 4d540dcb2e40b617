"""Scores on test sets whose classes are others than those that were trained on, and on frames of videos."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from nml_jax.errors import UserError
from nml_jax.evals import metrics


def map_logits(logits: Any, class_map: Sequence[Sequence[int]]) -> np.ndarray:
    """The logits of test classes: of each the largest among the training classes that it stands for.

    A test set of a subset of the training classes is the case of one training class each: only their logits compete.

    Args:
        logits: float [M, K], of the training classes.
        class_map: K' tuples of ids in [0, K), none of them empty.

    Returns:
        [M, K'] of the same type.

    Raises:
        UserError: a test class stands for no training class, or for one outside the K.
    """
    logits = np.asarray(logits)
    for test, classes in enumerate(class_map):
        if not len(classes) or not all(0 <= c < logits.shape[1] for c in classes):
            raise UserError(
                f"test class {test} stands for the training classes {tuple(classes)}, of {logits.shape[1]}",
                "train on the classes that the class map is of",
            )
    return take_best(logits, class_map)


def take_best(scores: Any, class_map: Sequence[Sequence[int]]) -> Any:
    """The same of a checked class map, for arrays of NumPy or JAX."""
    widest = max(map(len, class_map))
    columns = np.array([[*ids, *[ids[0]] * (widest - len(ids))] for ids in class_map])  # filled up with the first
    return scores[:, columns].max(-1)


def pm_k(correct: Any, groups: Sequence[Sequence[int]]) -> tuple[float, float]:
    """(pm-0, pm-k): the share of anchor frames that are right, and of anchors right with all frames around them.

    Shankar et al. (arXiv 1906.02168), section 3: pm-k takes the worst of the frames within k of the anchor.

    Args:
        correct: bool [N], of every frame.
        groups: of each anchor the ids of its frames, the anchor's own first.

    Raises:
        UserError: there is no group, or one of no frame.
    """
    if not len(groups) or not all(map(len, groups)):
        raise UserError("there is nothing to score: no anchor frame", "prepare the dataset anew")
    correct = np.asarray(correct, bool)
    return float(np.mean([correct[g[0]] for g in groups])), float(np.mean([correct[list(g)].all() for g in groups]))


class Scorer:
    """Scores of a test split whose logits come in blocks, in the order of its records."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_map: Sequence[Sequence[int]] | None = None,
        frame_labels: Sequence[Collection[int]] | None = None,
        groups: Sequence[Sequence[int]] = (),
    ):
        """
        Args:
            num_classes: K, of the logits.
            class_map: see `mapped`; None: the test classes are the training classes.
            frame_labels: of each of the N frames of videos all classes in it: a prediction is right if it is one.
            groups: of these frames, see `pm_k`.
        """
        self._class_map, self._frame_labels, self._groups = class_map, frame_labels, groups
        self._k = num_classes if class_map is None else len(class_map)
        self._confusion = np.zeros((self._k, self._k), np.int64)
        self._predictions: list[int] = []
        self._correct: list[np.ndarray] = []

    def update(self, labels: Any, logits: Any) -> None:
        """Count a block: int [n] of the test classes, float [n, K] of the training classes."""
        logits = np.asarray(logits) if self._class_map is None else map_logits(logits, self._class_map)
        predictions = logits.argmax(1)
        self._confusion += metrics.confusion(labels, predictions, self._k)
        self._correct.append(predictions == np.asarray(labels))
        if self._frame_labels is not None:
            self._predictions += predictions.tolist()

    @property
    def correct(self) -> np.ndarray:
        """bool [N]: whether each record's prediction is its label, in their order."""
        return np.concatenate(self._correct)

    def scores(self) -> dict[str, float]:
        """accuracy, macro_f1 and mean_per_class by name, of the test classes; with frames also pm0 and pm10.

        Raises:
            UserError: there is no example, or no anchor frame.
        """
        out = metrics.scores(self._confusion)
        if self._frame_labels is not None:
            of_frames = zip(self._predictions, self._frame_labels, strict=True)
            out["pm0"], out["pm10"] = pm_k([prediction in classes for prediction, classes in of_frames], self._groups)
        return out
