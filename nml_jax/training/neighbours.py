"""k-NN on frozen features: `fit_knn` gives probes as those of probes.py, without kernel and bias, that share one bank.

`scores` asks several probes at once. Distances and the nearest rows are found block by block on the device.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from nml_jax.errors import UserError
from nml_jax.training.probes import Array, check_grid, checked

BLOCK = 8192  # rows at a time
DISTANCES = ("cosine", "euclidean")


class Bank(NamedTuple):
    """Rows to be found by `Neighbours`, moved and scaled so that distance decides as it does between features."""

    rows: np.ndarray  # float32 [N, D]
    labels: np.ndarray  # int [N]
    num_classes: int
    distance: str
    mean: Array  # [D], zero for cosine
    scale: float

    def prepare(self, features: np.ndarray) -> np.ndarray:
        """float32 [M, D]: of unit length for cosine (a row of zeros stays one), else centred and scaled."""
        x = (np.asarray(features, np.float64) - self.mean) / self.scale
        if self.distance == "cosine":
            x /= np.maximum(np.abs(x).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
            x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)  # at least its peak, 1; of zeros 0
        return x.astype(np.float32)

    def votes(self, features: np.ndarray, ks: Sequence[int]) -> Iterator[np.ndarray]:
        """float32 [M, K] for each k: votes of the k nearest rows, and less than one more for the rank of the first."""
        labels = np.concatenate([self.labels[i] for i in self._nearest(features, max(ks))])
        every = np.arange(len(labels))
        first = np.full((len(labels), self.num_classes), max(ks))  # rank of the nearest row of each class
        for rank in reversed(range(max(ks))):
            first[every, labels[:, rank]] = rank
        cells = every[:, None] * self.num_classes + labels
        for k in ks:
            votes = np.bincount(cells[:, :k].ravel(), minlength=first.size).reshape(first.shape)
            yield (votes + np.maximum(k - first, 0) / (k + 1)).astype(np.float32)

    def _nearest(self, features: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """int [B, k] per block of features: the nearest rows, nearest first; of equally near ones the first."""
        squares = (self.rows**2).sum(1) if self.distance == "euclidean" else np.zeros(len(self.rows), np.float32)
        blocks = []
        for start in range(0, len(self.rows), BLOCK):
            rows, square = self.rows[start : start + BLOCK], squares[start : start + BLOCK]
            filler = min(BLOCK, len(self.rows)) - len(rows)
            rows, square = np.pad(rows, ((0, filler), (0, 0))), np.pad(square, (0, filler), constant_values=np.inf)
            blocks.append((*jax.device_put((rows, square)), start))
        for start in range(0, len(features), BLOCK // 8):
            queries = self.prepare(features[start : start + BLOCK // 8])
            size = len(queries)
            queries = np.pad(queries, ((0, min(BLOCK // 8, len(features)) - size), (0, 0)))
            best = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
            for block in blocks:
                best = _nearer(*best, queries, *block)
            yield np.asarray(best[1])[:size]


class Neighbours(NamedTuple):
    """Majority vote of the k rows of the bank that are nearest."""

    bank: Bank
    k: int

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return next(self.bank.votes(features, (self.k,)))


def fit_knn(
    features: ArrayLike,
    labels: ArrayLike,
    ks: Sequence[int],
    *,
    num_classes: int,
    distance: str = "cosine",
    sample_weight: None = None,
) -> list[Neighbours]:
    """k-NN for each k, by cosine or Euclidean distance. Of classes with as many votes, that of the nearest row wins.

    A score is the number of votes and, as tie-break, less than one more. Of equally near rows the first counts. A k
    above N is N.

    Raises:
        UserError: as for `probes.fit_lbfgs`; an unknown distance, k < 1, sample weights.
    """
    X, y, _ = checked(features, labels, num_classes, None)
    check_grid("k", ks, lambda k: k >= 1 and k == int(k))
    if distance not in DISTANCES:
        raise UserError(f"distance {distance!r} is unknown", f"use one of {', '.join(DISTANCES)}")
    if sample_weight is not None:
        raise UserError("k-NN was given sample weights", "leave them out: each of its neighbours has one vote")
    mean, scale = np.zeros(X.shape[1]), 1.0
    if distance == "euclidean":  # so that float32 keeps its digits for differences
        mean = X.mean(axis=0, dtype=np.float64)
        scale = float(np.abs(X - mean).max()) or 1.0
    bank = Bank(np.empty((0, 0), np.float32), y, num_classes, distance, mean, scale)
    bank = bank._replace(rows=bank.prepare(X))
    return [Neighbours(bank, min(int(k), len(X))) for k in ks]


@jax.jit
def _nearer(
    keys: jax.Array, ids: jax.Array, queries: jax.Array, rows: jax.Array, squares: jax.Array, start: int
) -> tuple[jax.Array, jax.Array]:
    """The best of those found so far (keys, falling, and ids [B, k]) and a further block of rows."""
    found = 2 * jnp.matmul(queries, rows.T, precision="highest") - squares
    keys = jnp.concatenate([keys, found], axis=1)
    ids = jnp.concatenate([ids, jnp.broadcast_to(start + jnp.arange(len(rows)), found.shape)], axis=1)
    keys, order = jax.lax.top_k(keys, len(keys[0]) - len(rows))  # stable: of equal keys the first
    return keys, jnp.take_along_axis(ids, order, axis=1)
