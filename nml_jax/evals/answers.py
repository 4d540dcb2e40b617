"""Describe what a head answered to a test, and a score of that as a mean over rows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Answers(NamedTuple):
    """The answers of a head to the rows of a test.

    labels, predictions: int [N], numbers of classes; or of a regression the targets and their predictions, float [N].
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


def share_values(values: np.ndarray) -> Shares:
    """Return a score whose rows have no classes, as the mean of values [N]."""
    return Shares(np.asarray(values, np.float64), np.zeros(0), np.zeros(0))
