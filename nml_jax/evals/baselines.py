"""What a test set gives for nothing: guessing by chance, and always answering the most frequent class."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nml_jax.evals.metrics import METRICS, compute_scores, f1


class Baselines(NamedTuple):
    """Scores of answers that need no features, by metric.

    chance: of a uniform guess among the classes; of a metric that is not a mean over rows, that of the expected counts.
        For F1 it is that of the best guess, which is always class 1.
    majority: of always giving the answer `answer`; for the log loss, of the shares of the classes as probabilities.
    answer: the number of the most frequent class.
    """

    chance: dict[str, float]
    majority: dict[str, float]
    answer: int

    def best(self, metric: str) -> float:
        """Return the score that a method must exceed (or stay below, where smaller is better)."""
        better = max if METRICS[metric].way > 0 else min
        return better(self.chance[metric], self.majority[metric])


def find_baselines(counts: ArrayLike) -> Baselines:
    """Return the baselines of a test.

    Args:
        counts: rows of each class, int [K]; at least one row.
    """
    counts = np.asarray(counts, np.float64)
    k, answer = len(counts), int(np.argmax(counts))
    guesses, always = np.tile(counts[:, None] / k, k), np.zeros((k, k))
    always[:, answer] = counts
    shares = counts[counts > 0] / counts.sum()
    chance = compute_scores(guesses) | {"mcc": 0.0, "log_loss": float(np.log(k))}
    if k == 2:
        chance["f1"] = f1(np.stack([np.zeros(2), counts], 1))
    return Baselines(chance, compute_scores(always) | {"log_loss": float(-(shares * np.log(shares)).sum())}, answer)
