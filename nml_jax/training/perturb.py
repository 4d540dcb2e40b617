"""Two perturbations that regularise: of the weights before tuning, and of the inputs during it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def noisytune(params: Any, key: jax.Array, strength: float | jax.Array) -> Any:
    """Return W + U(−λ/2, λ/2)·std(W) for every weight matrix, once before tuning (NoisyTune, arXiv 2202.12024, eq. 1).

    A weight matrix is an array of two axes or more: kernels, convolutions, embeddings. Biases, scales and other vectors
    do not change, nor does a matrix of equal numbers, whose deviation is 0. (The paper speaks of matrices; published
    code perturbs vectors as well.)

    Args:
        params: nested dicts of float arrays.
        key: PRNG key; each matrix has its own draws.
        strength: λ; the paper uses 0.1 to 0.3. 0 changes nothing.

    Returns:
        The perturbed tree. std is that of the population (ddof 0).
    """
    leaves, form = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))

    def perturb(W: jax.Array, key: jax.Array) -> jax.Array:
        if W.ndim < 2:
            return W
        draw = jax.random.uniform(key, (W.size,), W.dtype, minval=-0.5, maxval=0.5)  # flat: compiles faster
        return W + strength * jnp.std(W) * draw.reshape(W.shape)

    return jax.tree.unflatten(form, [perturb(W, key) for W, key in zip(leaves, keys, strict=True)])


def neftune(
    rows: Sequence[int], dim: int, key: jax.Array, strength: float | jax.Array, *, tokens: int = 1
) -> jax.Array:
    """Draw the noise U(−1, 1)·α/√(L·d) that NEFTune adds to embedded inputs (arXiv 2310.05914, algorithm 1).

    A ViT embeds L tokens of width d; text encoders draw noise of their own, because texts differ in L. A vector of
    features, such as a head's input or the pooled output of a ResNet, counts as one token, L = 1. This is our reading:
    the paper has only sequences.

    Args:
        rows: leading axes, as (B,) for vectors or (B, L) for tokens.
        dim: d.
        key: PRNG key of the step.
        strength: α; the paper uses 5 to 15 for language models.
        tokens: L.

    Returns:
        float32 [*rows, dim], to add to the inputs.
    """
    size = math.prod(rows) * dim
    draw = jax.random.uniform(key, (size,), minval=-1.0, maxval=1.0).reshape(*rows, dim)
    return strength / math.sqrt(tokens * dim) * draw
