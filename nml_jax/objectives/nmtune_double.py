"""NMTune's terms and their gradients in float64: for devices that have it, which are CPUs and GPUs.

Every function takes Z [..., B, D] and returns (value [...], gradient by Z [..., B, D]). All of it is float64 and must
run in a context with 64-bit types. The gradients are exact to about 1e-6 of their largest entry, at any rank and scale.
"""

from functools import partial

import jax
import jax.numpy as jnp

# Shares of σ₁. A float64 Gram matrix has σ² to 1e-16·σ₁²: for σ above GRAM, value and gradient are accurate to 1e-6.
# Below GRAM they come from an SVD, which has the direction of σ to 1e-16·σ₁/σ. Below ZERO, this is too inaccurate.
GRAM, ZERO = 1e-5, 1e-12

_matmul = partial(jnp.matmul, precision="highest")


def consistency(divisor: int, Z: jax.Array, F: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the mean over rows of ‖Z/‖Z‖ − F/‖F‖‖², divided by `divisor`; rows of zeros stay zeros."""

    def inverse_norm(x: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return jnp.where(norm == 0, 0, 1 / jnp.where(norm == 0, 1, norm))

    inverse = inverse_norm(Z)
    unit = Z * inverse
    away = unit - F * inverse_norm(F)
    scale = divisor * Z.shape[-2]
    along = (away * unit).sum(-1, keepdims=True)  # the length of Z has no effect
    return (away**2).sum((-2, -1)) / scale, 2 * (away - along * unit) * inverse / scale


def covariance(Z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute (1/D) Σ_{i≠j} C(Z)²_ij."""
    return covariance_of_centred(Z - Z.mean(-2, keepdims=True))


def covariance_of_centred(Z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the same for columns that sum to zero, in Z's own dtype."""
    rows, dim = Z.shape[-2:]
    if rows < dim:
        gram, diagonal = _matmul(Z, Z.mT), (Z * Z).sum(-2, keepdims=True)
        total = (gram * gram).sum((-2, -1)) - (diagonal * diagonal).sum((-2, -1))
        gradient = _matmul(gram, Z) - Z * diagonal
    else:
        off = _matmul(Z.mT, Z) * (1 - jnp.eye(dim))
        total, gradient = (off * off).sum((-2, -1)), _matmul(Z, off)
    scale = dim * max(rows - 1, 1) ** 2
    return total / scale, 4 * gradient / scale


def singular(top: int, Z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute −(mean of the `top` largest σᵢ) / Σσ; directions with σ/σ₁ below ZERO get no gradient."""
    wide = Z.shape[-2] < Z.shape[-1]

    def use_gram(_: None) -> tuple[jax.Array, jax.Array]:
        return sigma, q

    def use_svd(_: None) -> tuple[jax.Array, jax.Array]:
        u, s, vt = jnp.linalg.svd(Z, full_matrices=False)
        return s[..., ::-1], (u if wide else vt.mT)[..., ::-1]

    gram = _matmul(Z, Z.mT) if wide else _matmul(Z.mT, Z)
    eigenvalues, q = jnp.linalg.eigh(gram, symmetrize_input=False)  # ascending
    sigma = jnp.sqrt(jnp.maximum(eigenvalues, 0))
    steep = (sigma[..., 0] < GRAM * sigma[..., -1]).any()  # in a batch of Z, one decides for all; false for NaN
    sigma, q = jax.lax.cond(steep, use_svd, use_gram, None)

    return finish(top, Z, sigma, q, ZERO)


def finish(top: int, Z: jax.Array, sigma: jax.Array, q: jax.Array, zero: float) -> tuple[jax.Array, jax.Array]:
    """Compute the singular term from Z's singular values.

    Args:
        top: how many values to average.
        Z: [..., B, D].
        sigma: [..., min(B, D)], ascending.
        q: [..., min(B, D), min(B, D)], their directions in columns: of rows if B < D, else of features.
        zero: what share of the largest counts as 0.
    """
    first = sigma[..., -1:]
    none = sigma <= zero * first  # false for NaN, so that it is kept
    sigma = jnp.where(none, 0, sigma)
    total = jnp.where(none[..., -1:], 1, sigma.sum(-1, keepdims=True))
    k = min(top, sigma.shape[-1])
    value = -sigma[..., -k:].mean(-1, keepdims=True) / total
    largest = jnp.arange(sigma.shape[-1]) >= sigma.shape[-1] - k
    g = -(largest / k + value) / total
    g = jnp.where(none, 0, g / jnp.where(none, 1, sigma))[..., None, :]
    inner = _matmul(q * g, q.mT)  # U diag(g/σ) Uᵀ if wide, else V diag(g/σ) Vᵀ
    return value[..., 0], _matmul(inner, Z) if Z.shape[-2] < Z.shape[-1] else _matmul(Z, inner)
