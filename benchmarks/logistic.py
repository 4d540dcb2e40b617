"""Measure logistic regression over a grid of C against scikit-learn's L-BFGS.

    python benchmarks/logistic.py [--small] [--repeats=1] [--write]

Ours is `probes.fit_lbfgs` on the whole grid, with compilation. The opponent is LogisticRegression(C=c, max_iter=1000)
for one C after another, with defaults otherwise. Both get the same standardised float32 features and take turns. The
grid is that of Kornblith et al. 2019 (45 values, eleven decades). Features are class means in 32 dimensions plus
correlated noise, with a spectrum that falls like i^-0.6. The classes overlap, and each has few rows. For each C it
compares the accuracy on test rows and the objective in float64: scikit-learn stops by the largest gradient, which at
the ends of the grid is far from the minimum. C is chosen on validation rows.

On a busy machine idle BLAS threads cost the opponent most of its time. OPENBLAS_NUM_THREADS=1 makes it fair.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import jax
import jaxlib
import numpy as np
import scipy
import sklearn
from common import print_head, write_results
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import nml_jax
from nml_jax.tuning import probes

RESULTS = Path(__file__).parent / "results" / "logistic.json"
CLASSES, HELD_OUT = 100, 10_000
Weights = tuple[np.ndarray, np.ndarray]  # kernel [D, K], bias [K]


def draw_splits(rows: int, dim: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw features and labels for training, validation and test."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((CLASSES, 32)) @ rng.standard_normal((32, dim)) / 32**0.5
    labels = rng.integers(0, CLASSES, rows + 2 * HELD_OUT)
    noise = rng.standard_normal((len(labels), dim), np.float32)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    x = (0.28 * means[labels] + noise) * np.arange(1, dim + 1) ** -0.6 @ rotation
    x = ((x - x[:rows].mean(0)) / x[:rows].std(0)).astype(np.float32)
    parts = [slice(0, rows), slice(rows, rows + HELD_OUT), slice(rows + HELD_OUT, None)]
    return [(x[part], labels[part]) for part in parts]


def fit_sklearn(x: np.ndarray, labels: np.ndarray, cs: np.ndarray) -> tuple[list[Weights], list[float]]:
    """Return scikit-learn's weights and seconds for each C."""
    fitted, seconds = [], []
    for c in cs:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator = LogisticRegression(C=float(c), max_iter=1000).fit(x, labels)
        seconds.append(time.perf_counter() - start)
        fitted.append((estimator.coef_.T, estimator.intercept_))
        print(f"scikit-learn, C={c:.1e}: {seconds[-1]:.1f} s, {estimator.n_iter_[0]} iterations", flush=True)
    return fitted, seconds


def score(weights: Weights, split: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the accuracy in percent."""
    return 100 * float(((split[0] @ weights[0] + weights[1]).argmax(1) == split[1]).mean())


def compute_objective(weights: Weights, split: tuple[np.ndarray, np.ndarray], c: float) -> float:
    """Return the mean cross-entropy plus the penalty per row, in float64."""
    kernel, bias = (np.asarray(part, np.float64) for part in weights)
    logits = np.asarray(split[0] @ kernel + bias)
    ce = np.asarray(logsumexp(logits, axis=1)) - logits[np.arange(len(logits)), split[1]]
    return float(ce.mean() + (kernel**2).sum() / (2 * c * len(logits)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="5,000 × 256, 9 values of C")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    args = parser.parse_args()
    rows, dim, values = (5_000, 256, 9) if args.small else (20_000, 512, 45)
    cs = np.logspace(-6, 5, values)
    size = f"{rows} × {dim}, {CLASSES} classes, {values} values of C"
    head = print_head(nml_jax, jax, jaxlib, np, scipy, sklearn, size=size, repeats=args.repeats)

    train, validation, test = draw_splits(rows, dim)
    seconds, fits, single = [], (), []
    for _ in range(args.repeats):
        jax.clear_caches()
        start = time.perf_counter()
        ours = probes.fit_lbfgs(*train, cs.tolist(), num_classes=CLASSES)
        a = time.perf_counter() - start
        print(f"ours, all C: {a:.1f} s", flush=True)
        opponent, single = fit_sklearn(*train, cs)
        seconds.append((a, sum(single)))
        fits = ours, opponent
    scored = [[(score(w, validation), score(w, test)) for w in fitted] for fitted in fits]
    objectives = [[compute_objective(w, train, c) for w, c in zip(fitted, cs, strict=True)] for fitted in fits]

    print(f"\n{'C':>8} {'test %':>7} {'theirs':>7} {'objective':>11} {'theirs':>11} {'their s':>8}")
    for i, c in enumerate(cs):
        accuracies, reached = [s[i][1] for s in scored], [o[i] for o in objectives]
        print(
            f"{c:8.1e} {accuracies[0]:7.2f} {accuracies[1]:7.2f} {reached[0]:11.6f} {reached[1]:11.6f} {single[i]:8.1f}"
        )
    chosen = [int(np.argmax([v for v, _ in s])) for s in scored]
    results = {
        "seconds": [a for a, _ in seconds],
        "sklearn_seconds": [b for _, b in seconds],
        "ratio": statistics.median(b / a for a, b in seconds),
        "chosen_c": [float(cs[i]) for i in chosen],
        "test_accuracy_at_chosen": [s[i][1] for s, i in zip(scored, chosen, strict=True)],
        "largest_loss_of_accuracy": max(b[1] - a[1] for a, b in zip(*scored, strict=True)),
        "largest_difference_of_accuracy": max(abs(b[1] - a[1]) for a, b in zip(*scored, strict=True)),
        "largest_excess_of_objective": max(a / b - 1 for a, b in zip(*objectives, strict=True)),
        "cs": cs.tolist(),
        "test_accuracy": [[t for _, t in s] for s in scored],
        "objective": objectives,
    }
    print(*(f"{key}: {results[key]}" for key in list(results)[:8]), sep="\n")
    if not all(np.isfinite(results["test_accuracy_at_chosen"])):
        sys.exit("a fit is not finite")
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
