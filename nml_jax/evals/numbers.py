"""Scores of a regression on a test split."""

from typing import Any

import numpy as np

from nml_jax.evals.answers import Answers
from nml_jax.evals.correlations import compute_numbers


class NumberScorer:
    """A scorer of a test split whose predictions come in blocks, in the order of its records."""

    def __init__(self) -> None:
        self._targets: list[np.ndarray] = []
        self._predictions: list[np.ndarray] = []

    def update(self, targets: Any, outputs: Any) -> None:
        """Add a block: real [n], and float [n, 1] of a head with one output."""
        self._targets.append(np.asarray(targets))
        self._predictions.append(np.asarray(outputs)[:, 0])

    @property
    def answers(self) -> Answers:
        """Targets and predictions of all records."""
        return Answers(np.concatenate(self._targets), np.concatenate(self._predictions))

    def scores(self) -> dict[str, float]:
        """Return Pearson's and Spearman's correlation, R² and the root mean square error; see `compute_numbers`.

        Raises:
            UserError: there is no example.
        """
        return compute_numbers(self.answers)
