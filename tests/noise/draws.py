"""What the tests of noise share: sizes and rates, clean labels, hashes and a test of evenness."""

import hashlib

import numpy as np
from scipy import stats

SIZES = [0, 1, 2, 3, 4, 5, 7, 10, 64, 100, 999, 1000, 1001, 5003]
RATES = [0.0, 0.01, 0.05, 0.1, 0.25, 0.3, 0.5, 0.999, 1.0]


def draw_labels(n: int, num_classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_classes, n)


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()


def is_even(counts: np.ndarray) -> bool:
    """Test by chi-square at 0.1 % whether these can be counts of equally likely cells. The seeds are fixed."""
    return bool(stats.chisquare(counts.ravel()).pvalue > 0.001)
