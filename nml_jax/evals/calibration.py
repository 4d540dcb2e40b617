"""Whether the probabilities of a classifier are as often right as they say, and the temperature that makes them so.

Temperature scaling (Guo et al. 2017, arXiv 1706.04599): logits are divided by one number T > 0, which changes no
prediction. T minimises the cross-entropy of logits on rows that the head was not trained on; in 1/T that is convex.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

COLDEST, HOTTEST = 0.05, 20.0  # bounds of T; reached where all rows are right, or scores say nothing
BINS = 15  # of the calibration error
FEWEST = 10  # rows in a bin; of fewer rows there are fewer bins


def find_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T in [0.05, 20] for which the mean cross-entropy of logits / T is lowest.

    Args:
        logits: finite [N, K], of rows that the head was not trained on.
        labels: int [N].
    """
    z = np.float64(logits) - np.float64(logits).max(1, keepdims=True)
    own = z[np.arange(len(labels)), labels]

    def differentiate(beta: float) -> float:
        """Return the derivative of the loss in β = 1/T, which rises with β: the mean of E_p[z] − z_label."""
        p = np.exp(beta * z)
        return float(((p * z).sum(1) / p.sum(1) - own).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if differentiate(low) >= 0:
        return HOTTEST
    if differentiate(high) <= 0:
        return COLDEST
    return 1 / float(brentq(differentiate, low, high, xtol=1e-12, rtol=1e-12))  # type: ignore[arg-type]


def compute_confidences(logits: np.ndarray) -> NDArray[np.float64]:
    """Return the probability of the predicted class, float64 [N], for finite logits [N, K]."""
    z = np.float64(logits) - np.float64(logits).max(1, keepdims=True)
    return 1 / np.exp(z).sum(1)


class Reliability(NamedTuple):
    """Bins of equally many rows (up to one) in the order of confidence; float64 [B] each.

    confidence, accuracy: means of a bin. share: of the rows; the sum is 1.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    share: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Return the calibration error (ECE): the mean over rows of |accuracy − confidence| of their bins."""
        return float((self.share * abs(self.accuracy - self.confidence)).sum())


def bin_rows(confidences: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Sort rows into bins by confidence. Rows of equal confidence count as right as often as they are on average.

    Args:
        confidences: [N], N at least 1. right: bool [N].
        bins: at most; fewer than 10 rows are not a bin, but for a single one.
    """
    _, of, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    accuracy = (np.bincount(of, right) / counts)[of]  # so that the order of ties means nothing
    order = np.argsort(confidences, kind="stable")
    parts = np.array_split(order, max(1, min(bins, len(order) // FEWEST)))
    share = np.array([len(part) for part in parts]) / len(order)
    means = [np.array([x[part].mean() for part in parts]) for x in (confidences, accuracy)]
    return Reliability(means[0], means[1], share)
