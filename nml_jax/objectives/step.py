"""What the terms of a head's loss see of a training step (tuning/descent.py)."""

from collections.abc import Callable
from typing import NamedTuple

import jax


class Step(NamedTuple):
    """B rows with V views each, in one step of training a head.

    F: float32 [B, V, D], the head's input, standardised where that is asked for. It is data: no gradient goes into it.
    Z: float32 [B, V, D], the head's features.
    logits: float32 [B, V, K].
    labels: int32 [B].
    head: the head as it is in this step, `F' [B, V, D] -> (Z', logits')`, in training mode: BatchNorm takes the
        statistics of what it is given, and its running statistics do not see it.
    key: typed PRNG key of this step, for the terms that draw.
    """

    F: jax.Array
    Z: jax.Array
    logits: jax.Array
    labels: jax.Array
    head: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    key: jax.Array
