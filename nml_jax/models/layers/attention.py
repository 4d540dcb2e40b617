"""Dot-product attention at the precision of the model."""

import jax
import jax.numpy as jnp


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    bias: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """Compute softmax(q kᵀ / √D + bias) v for q [B, T, H, D] and k, v [B, S, H, D] -> [B, T, H, D].

    The softmax is in float32, or in float64 if q is. Heads come before tokens in the products, for which q, k and v are
    copied once: with strided ones, XLA takes half as long again on a CPU.

    Args:
        causal: query i sees only keys 0..i.
        bias: float [B or 1, H or 1, T, S]; None for none.
        lengths: int32 [B], at least 1; row b has that many keys, and the others are not seen. None: all are.
    """
    dtype, exact = q.dtype, jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=exact) / q.shape[-1] ** 0.5
    scores = scores if bias is None else scores + bias
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    if lengths is not None:
        scores = jnp.where(jnp.arange(scores.shape[-1]) < lengths[:, None, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(dtype)
    return jnp.moveaxis(jnp.einsum("bhts,bhsd->bhtd", weights, v), 1, 2)
