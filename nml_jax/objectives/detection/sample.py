"""Draw fixed numbers of anchors or regions to learn from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nml_jax.objectives.detection.assign import NEGATIVE


class Sample(NamedTuple):
    """What was drawn: positions int32 [S], the positive ones first, and which of them count, bool [S]."""

    ids: jax.Array
    valid: jax.Array


def count_slots(available: int, number: int, share: float) -> tuple[int, int]:
    """Return the most positions that are drawn from so many, and the most positive ones among them."""
    return min(number, available), min(int(number * share), available)


def draw_sample(key: jax.Array, index: jax.Array, number: int, share: float) -> Sample:
    """Draw `number` of the matched positions, at most a `share` of which are positive, without replacement.

    Negative ones fill up what positive ones leave. If there are too few of both, the rest of the sample is not valid.

    Args:
        key: typed PRNG key of this image.
        index: int32 [N] from `match_objects`.
    """
    total, most = count_slots(len(index), number, share)
    u = jax.random.uniform(key, index.shape)
    positive = index >= 0
    best, ids = jax.lax.top_k(jnp.where(positive, u, -1), most)
    chosen = jnp.zeros(index.shape, bool).at[ids].set(best >= 0)
    rank = jnp.where(chosen, u + 1, jnp.where(index == NEGATIVE, u, -1))
    best, ids = jax.lax.top_k(rank, total)
    return Sample(ids.astype(jnp.int32), best >= 0)
