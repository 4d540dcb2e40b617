"""The arguments of a head's terms in a training step (tuning/descent.py)."""

from collections.abc import Callable
from typing import NamedTuple

import jax


class Step(NamedTuple):
    """B rows with V views each, in one step of training a head.

    F: float32 [B, V, D], the head's input, standardised if that is asked for. It is data and gets no gradient.
    Z: float32 [B, V, D], the head's features.
    logits: float32 [B, V, K].
    labels: int32 [B].
    head: the head of this step, `F' [B, V, D] -> (Z', logits')`, in training mode. BatchNorm uses the statistics of F'
        and leaves its running statistics unchanged.
    key: typed PRNG key of this step, for terms that draw.
    """

    F: jax.Array
    Z: jax.Array
    logits: jax.Array
    labels: jax.Array
    head: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    key: jax.Array
