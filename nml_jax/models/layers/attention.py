"""Dot-product attention at the precision of the model."""

import jax
import jax.numpy as jnp


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False, bias: jax.Array | None = None
) -> jax.Array:
    """Compute softmax(q kᵀ / √D + bias) v for q [B, T, H, D] and k, v [B, S, H, D] -> [B, T, H, D].

    The softmax is in float32, or in float64 if q is; JAX's own function only has float32.

    Args:
        bias: float [B or 1, H or 1, T, S]; None for none.
    """
    if q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(q, k, v, bias, is_causal=causal)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    scores = scores if bias is None else scores + bias
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
