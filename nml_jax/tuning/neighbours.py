"""k-NN on frozen features: `fit_knn` returns probes as in probes.py, but without kernel and bias.

They share one copy of the rows. The nearest rows are found block by block on the device.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from nml_jax.arithmetic.bits import in_32_bits
from nml_jax.tuning.probes import check_grid, check_values

BLOCK = 8192  # rows at a time


class Neighbourhood(NamedTuple):
    """The rows among which `Neighbours` searches."""

    rows: np.ndarray  # float32 [N, D], of unit length
    labels: np.ndarray  # int [N]
    num_classes: int

    def count_votes(self, features: np.ndarray, k: int) -> np.ndarray:
        """Return float32 [M, K]: the votes of the k nearest rows, plus less than one for the rank of the nearest."""
        labels = np.concatenate([self.labels[i] for i in self._find_nearest(features, k)])
        every = np.arange(len(labels))
        first = np.full((len(labels), self.num_classes), k)  # rank of the nearest row of each class
        for rank in reversed(range(k)):
            first[every, labels[:, rank]] = rank
        cells = (every[:, None] * self.num_classes + labels).ravel()
        votes = np.bincount(cells, minlength=first.size).reshape(first.shape)
        return (votes + (k - first) / (k + 1)).astype(np.float32)

    def _find_nearest(self, features: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """Yield int [B, k] per block of features: the nearest rows, nearest first; if equally near, in their order."""
        blocks = []
        for start in range(0, len(self.rows), BLOCK):
            rows = self.rows[start : start + BLOCK]
            penalty = np.zeros(min(BLOCK, len(self.rows)), np.float32)
            penalty[len(rows) :] = np.inf  # so that the padding of the last block is never found
            rows = np.pad(rows, ((0, len(penalty) - len(rows)), (0, 0)))
            blocks.append((*jax.device_put((rows, penalty)), start))
        for start in range(0, len(features), BLOCK // 8):
            queries = normalise(features[start : start + BLOCK // 8])
            size = len(queries)
            queries = np.pad(queries, ((0, min(BLOCK // 8, len(features)) - size), (0, 0)))
            best = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
            for block in blocks:
                best = _merge_block(*best, queries, *block)
            yield np.asarray(best[1])[:size]


def normalise(features: ArrayLike) -> np.ndarray:
    """Scale rows to unit length, float32 [M, D]; a row of zeros stays zero."""
    x = np.asarray(features, np.float64)
    x = x / np.maximum(np.abs(x).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)  # the norm is at least the peak, 1, or 0
    return x.astype(np.float32)


class Neighbours(NamedTuple):
    """A probe that takes the majority vote of the k nearest rows."""

    bank: Neighbourhood
    k: int

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return self.bank.count_votes(features, self.k)


def fit_knn(features: ArrayLike, labels: ArrayLike, ks: Sequence[int], *, num_classes: int) -> list[Neighbours]:
    """Fit k-NN by cosine distance for each k. If classes have equally many votes, that of the nearest row wins.

    A score is the number of votes, plus less than one as tie-break. If rows are equally near, the first counts. A k
    above N is N.

    Raises:
        UserError: as for `probes.fit_lbfgs`; k < 1.
    """
    X, y = check_values(features, labels, num_classes)
    check_grid("k", ks, lambda k: k >= 1 and k == int(k))
    bank = Neighbourhood(normalise(X), y, num_classes)
    return [Neighbours(bank, min(int(k), len(X))) for k in ks]


@in_32_bits
@jax.jit
def _merge_block(
    keys: jax.Array, ids: jax.Array, queries: jax.Array, rows: jax.Array, penalty: jax.Array, start: int
) -> tuple[jax.Array, jax.Array]:
    """Merge the best rows so far (descending keys and ids [B, k]) with a further block of rows."""
    new = jnp.matmul(queries, rows.T, precision="highest") - penalty
    keys = jnp.concatenate([keys, new], axis=1)
    ids = jnp.concatenate([ids, jnp.broadcast_to(start + jnp.arange(len(rows)), new.shape)], axis=1)
    keys, order = jax.lax.top_k(keys, len(keys[0]) - len(rows))  # stable: the first of equal keys stays first
    return keys, jnp.take_along_axis(ids, order, axis=1)
