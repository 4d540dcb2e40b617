"""The losses of a head, and the arguments of its terms, in a training step (tuning/descent.py)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Step(NamedTuple):
    """B rows with V views each, in one step of training a head.

    F: float32 [B, V, D], the head's input, standardised if that is asked for. It is data and gets no gradient.
    Z: float32 [B, V, D], the head's features.
    logits: float32 [B, V, K].
    labels: int32 [B]; of a regression targets, float32 [B].
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


def compute_losses(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return what a head loses on every row and view, float32 [B, V].

    It is the cross-entropy in nats, and of one output, which is a regression, half the squared error.

    Args:
        outputs: float32 [B, V, K], logits, or predictions for K = 1.
        labels: int32 [B], or float32 [B] targets for K = 1.
    """
    if outputs.shape[-1] == 1:
        return (outputs[..., 0] - labels[:, None]) ** 2 / 2
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels[:, None])


def generalise(losses: jax.Array, q: jax.Array | float) -> jax.Array:
    """Return the generalised cross-entropy (1 − p^q)/q of cross-entropies −log p (Zhang and Sabuncu 2018, eq. 6).

    It is the cross-entropy itself at q = 0, and at q = 1 half the absolute error of the probabilities, 1 − p. Its
    gradient is p^q times that of the cross-entropy, so rows whose label a head finds unlikely hardly count. Value and
    gradient are finite for every finite cross-entropy.

    Args:
        losses: float32, of any shape.
        q: in [0, 1], possibly traced.
    """
    exponent = jnp.where(q > 0, q, 1.0)
    return jnp.where(q > 0, -jnp.expm1(-exponent * losses) / exponent, losses)
