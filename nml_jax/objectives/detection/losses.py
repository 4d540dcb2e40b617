"""Losses of detectors, element by element, in float32 or wider."""

import jax
import jax.numpy as jnp


def focal(logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Return the focal loss of logits against targets of 0 or 1 (arXiv 1708.02002, eq. 5), in their shape."""
    p = jax.nn.sigmoid(logits)
    cross_entropy = binary_cross_entropy(logits, targets)
    wrong = p * (1 - targets) + (1 - p) * targets
    return (alpha * targets + (1 - alpha) * (1 - targets)) * wrong**gamma * cross_entropy


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return −t log σ(x) − (1 − t) log(1 − σ(x)), in the shape of the logits."""
    return jax.nn.softplus(logits) - logits * targets


def smooth_l1(difference: jax.Array, beta: float) -> jax.Array:
    """Return |d| − β/2, and d²/2β where |d| < β (arXiv 1504.08083, eq. 3 for β = 1); |d| for β = 0."""
    size = jnp.abs(difference)
    return size if beta == 0 else jnp.where(size < beta, size**2 / (2 * beta), size - beta / 2)
