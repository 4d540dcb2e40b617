"""k-NN on frozen features: `fit_knn` gives probes as those of probes.py, without kernel and bias, that share one bank.

The nearest rows are found block by block on the device.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from nml_jax.tuning.probes import check_grid, check_values

BLOCK = 8192  # rows at a time


class Neighbourhood(NamedTuple):
    """Rows to be found by `Neighbours`."""

    rows: np.ndarray  # float32 [N, D], of unit length
    labels: np.ndarray  # int [N]
    num_classes: int

    def votes(self, features: np.ndarray, k: int) -> np.ndarray:
        """float32 [M, K]: votes of the k nearest rows, and less than one more for the rank of the first."""
        labels = np.concatenate([self.labels[i] for i in self._nearest(features, k)])
        every = np.arange(len(labels))
        first = np.full((len(labels), self.num_classes), k)  # rank of the nearest row of each class
        for rank in reversed(range(k)):
            first[every, labels[:, rank]] = rank
        cells = (every[:, None] * self.num_classes + labels).ravel()
        votes = np.bincount(cells, minlength=first.size).reshape(first.shape)
        return (votes + (k - first) / (k + 1)).astype(np.float32)

    def _nearest(self, features: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """int [B, k] per block of features: the nearest rows, nearest first; of equally near ones the first."""
        blocks = []
        for start in range(0, len(self.rows), BLOCK):
            rows = self.rows[start : start + BLOCK]
            away = np.zeros(min(BLOCK, len(self.rows)), np.float32)
            away[len(rows) :] = np.inf  # what fills the last block is never found
            rows = np.pad(rows, ((0, len(away) - len(rows)), (0, 0)))
            blocks.append((*jax.device_put((rows, away)), start))
        for start in range(0, len(features), BLOCK // 8):
            queries = prepare(features[start : start + BLOCK // 8])
            size = len(queries)
            queries = np.pad(queries, ((0, min(BLOCK // 8, len(features)) - size), (0, 0)))
            best = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
            for block in blocks:
                best = _nearer(*best, queries, *block)
            yield np.asarray(best[1])[:size]


def prepare(features: ArrayLike) -> np.ndarray:
    """float32 [M, D], of unit length; a row of zeros stays one."""
    x = np.asarray(features, np.float64)
    x = x / np.maximum(np.abs(x).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)  # at least its peak, 1; of zeros 0
    return x.astype(np.float32)


class Neighbours(NamedTuple):
    """Majority vote of the k rows of the bank that are nearest."""

    bank: Neighbourhood
    k: int

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return self.bank.votes(features, self.k)


def fit_knn(features: ArrayLike, labels: ArrayLike, ks: Sequence[int], *, num_classes: int) -> list[Neighbours]:
    """k-NN for each k, by cosine distance. Of classes with as many votes, that of the nearest row wins.

    A score is the number of votes and, as tie-break, less than one more. Of equally near rows the first counts. A k
    above N is N.

    Raises:
        UserError: as for `probes.fit_lbfgs`; k < 1.
    """
    X, y = check_values(features, labels, num_classes)
    check_grid("k", ks, lambda k: k >= 1 and k == int(k))
    bank = Neighbourhood(prepare(X), y, num_classes)
    return [Neighbours(bank, min(int(k), len(X))) for k in ks]


@jax.jit
def _nearer(
    keys: jax.Array, ids: jax.Array, queries: jax.Array, rows: jax.Array, away: jax.Array, start: int
) -> tuple[jax.Array, jax.Array]:
    """The best of those found so far (keys, falling, and ids [B, k]) and a further block of rows."""
    found = jnp.matmul(queries, rows.T, precision="highest") - away
    keys = jnp.concatenate([keys, found], axis=1)
    ids = jnp.concatenate([ids, jnp.broadcast_to(start + jnp.arange(len(rows)), found.shape)], axis=1)
    keys, order = jax.lax.top_k(keys, len(keys[0]) - len(rows))  # stable: of equal keys the first
    return keys, jnp.take_along_axis(ids, order, axis=1)
