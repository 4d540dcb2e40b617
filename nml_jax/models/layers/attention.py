"""Dot-product attention at the precision of the model."""

import jax
import jax.numpy as jnp


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False) -> jax.Array:
    """Compute softmax(q kᵀ / √D) v for q [B, T, H, D] and k, v [B, S, H, D] -> [B, T, H, D].

    The softmax is in float32, or in float64 if q is; JAX's own function only has float32.
    """
    if q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
