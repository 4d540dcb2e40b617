"""NMTune: cross-entropy plus three regularisers of a head's features Z and its frozen input F (arXiv 2309.17002, §4).

consistency keeps Z near F, covariance decorrelates the features of Z, singular rewards a dominant singular value. The
total is CE + w_mse·consistency + w_cov·covariance + w_svd·singular; the paper and the released code differ in weights
and forms, which PRESETS keeps apart.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nml_jax.errors import UserError

# Singular values of at most this share of the largest count as zero. A float64 Gram matrix knows σ to 1e-8·σ₁ and the
# gradient at σ to 1e-16·(σ₁/σ)², so above the floor the gradient is right to 1e-4 of its size; float32 rounds Z itself
# to 1e-7.
FLOOR = 1e-6


class Weights(NamedTuple):
    """Weights and forms of the three terms. A weight of 0 leaves its term out, and all 0 is plain cross-entropy."""

    mse: float = 0.0
    cov: float = 0.0
    svd: float = 0.0
    per_dim: bool = False  # consistency is divided by D
    cross_view: bool = False  # consistency holds Z of the other views against F of the first
    top: int = 1  # singular takes the mean of so many largest values


PRESETS = {
    "paper": Weights(mse=0.01, cov=0.01, svd=0.01),
    "code": Weights(mse=1.0, cov=0.04, svd=0.001, per_dim=True, cross_view=True, top=5),
}


def weights(preset: str | Weights | None, views: int) -> tuple[Weights, str]:
    """The weights behind a preset's name, and the name for rows: where there is one view, `code` is "code/1view".

    Args:
        preset: a key of PRESETS, or free weights, named by their values.
        views: stored views per example.

    Raises:
        UserError: there is no such preset.
    """
    if isinstance(preset, Weights):
        return preset, ",".join(f"{field}={value:g}" for field, value in preset._asdict().items())
    if preset not in PRESETS:
        raise UserError(f"there is no NMTune preset {preset!r}", f"choose one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    return chosen, f"{preset}/1view" if chosen.cross_view and views == 1 else preset


def loss(F: jax.Array, Z: jax.Array, logits: jax.Array, labels: jax.Array, *, weights: Weights) -> jax.Array:
    """CE + w·terms. CE, covariance and singular are over all views together.

    Args:
        F: float32 [B, V, D], the head's input; it receives no gradient.
        Z: float32 [B, V, D], the head's features.
        logits: float32 [B, V, K].
        labels: int32 [B].
        weights: of the terms.

    Returns:
        float32 [], finite wherever the inputs are and their fourth powers do not overflow.
    """
    total = optax.softmax_cross_entropy_with_integer_labels(logits, labels[:, None]).mean()
    rows = Z.reshape(-1, Z.shape[-1])
    if weights.mse:
        across = weights.cross_view and Z.shape[1] > 1
        pair = (F[:, :1], Z[:, 1:]) if across else (F, Z)
        total += weights.mse * consistency(*pair, per_dim=weights.per_dim)
    if weights.cov:
        total += weights.cov * covariance(rows)
    if weights.svd:
        total += weights.svd * jnp.asarray(singular(rows, weights.top))
    return total


def consistency(F: jax.Array, Z: jax.Array, *, per_dim: bool = False) -> jax.Array:
    """‖F/‖F‖ − Z/‖Z‖‖² per row, mean over rows; divided by D if `per_dim`. Rows of zeros stay zeros.

    Args:
        F: float32 [..., D], the target: it receives no gradient.
        Z: float32 [..., D], of a shape that broadcasts with F's.
        per_dim: mean over the features, as the released code has it, in place of their sum, as in the paper.
    """
    square = (_unit(jax.lax.stop_gradient(F)) - _unit(Z)) ** 2
    return (square.mean(-1) if per_dim else square.sum(-1)).mean()


def _unit(x: jax.Array) -> jax.Array:
    norm2 = (x * x).sum(-1, keepdims=True)
    zero = norm2 < 1e-24  # no direction; selected on both sides of rsqrt, so that the gradient is 0 and not NaN
    return x * jnp.where(zero, 0, jax.lax.rsqrt(jnp.where(zero, 1, norm2)))


def covariance(Z: jax.Array) -> jax.Array:
    """(1/D) Σ_{i≠j} C(Z)²_ij with C = (Z − mean)ᵀ(Z − mean)/(B − 1); 0 for a single row.

    For B < D it is ‖(Z − mean)(Z − mean)ᵀ‖²_F less the squared diagonal of C, and C is never formed.

    Args:
        Z: float32 [B, D].
    """
    rows, dim = Z.shape
    if rows == 1:
        return jnp.zeros(())
    Z = Z - Z.mean(0)
    if rows < dim:
        gram = jnp.matmul(Z, Z.T, precision="highest")
        total = (gram * gram).sum() - ((Z * Z).sum(0) ** 2).sum()
    else:
        gram = jnp.matmul(Z.T, Z, precision="highest")
        total = ((gram * (1 - jnp.eye(dim))) ** 2).sum()
    return total / (rows - 1) ** 2 / dim


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def singular(Z: jax.Array, top: int = 1) -> jax.Array:
    """−mean of the `top` largest σᵢ over Σσ, with σ the singular values of Z, uncentred; 0 for an all-zero Z.

    With fewer than `top` singular values the mean is over all of them. The gradient is U diag(g) Vᵀ. Value and gradient
    come from the eigenvectors of the smaller Gram matrix, in float64: features after a ReLU or of two views of an image
    have σ/σ₁ far below 0.05, from where on a float32 Gram matrix gives a wrong gradient, and at batch size the wider
    type costs a millisecond, which an SVD of Z costs many times over. Values below FLOOR·σ₁ count as zero, and their
    directions get no gradient: it is finite at any rank. (Run on CPU only; a TPU emulates float64.)

    Args:
        Z: float32 [B, D].
        top: how many.
    """
    return _forward(Z, top)[0]


def _forward(Z: jax.Array, top: int) -> tuple[jax.Array, jax.Array]:
    @jax.custom_batching.custom_vmap
    def forward(Z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _singular(Z, top)

    @forward.def_vmap
    def _(size: int, batched: list[bool], Z: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[bool, bool]]:
        # `vmap` would rewrite the float64 operations outside the context that allows them
        return forward(Z), (True, True)

    return forward(Z)


def _singular(Z: jax.Array, top: int) -> tuple[jax.Array, jax.Array]:
    """Values, float32 [...], and gradients, float32 [..., B, D], of float32 [..., B, D]."""
    tiny = float(jnp.finfo(jnp.float32).tiny)
    matmul = partial(jnp.matmul, precision="highest")
    with jax.enable_x64(True):
        z = Z.astype(jnp.float64)
        zt = z.mT
        wide = Z.shape[-2] < Z.shape[-1]
        eigenvalues, q = jnp.linalg.eigh(matmul(z, zt) if wide else matmul(zt, z), symmetrize_input=False)  # ascending
        sigma = jnp.sqrt(jnp.maximum(eigenvalues, 0))
        first = sigma[..., -1:]
        zero = (sigma <= FLOOR * first) | (first <= tiny)  # false for NaN, which thus is not lost
        sigma = jnp.where(zero, 0, sigma)
        total = jnp.where(zero[..., -1:], 1, sigma.sum(-1, keepdims=True))
        k = min(top, sigma.shape[-1])
        value = -sigma[..., -k:].mean(-1, keepdims=True) / total
        largest = jnp.arange(sigma.shape[-1]) >= sigma.shape[-1] - k
        g = -(largest / k + value) / total  # d value / d σ
        g = jnp.where(zero, 0, g / jnp.where(zero, 1, sigma))[..., None, :]
        inner = matmul(q * g, q.mT)  # U diag(g/σ) Uᵀ if wide, else V diag(g/σ) Vᵀ
        gradient = matmul(inner, z) if wide else matmul(z, inner)
        return value[..., 0].astype(jnp.float32), gradient.astype(jnp.float32)


def _backward(top: int, gradient: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (cotangent * gradient,)


singular.defvjp(_forward, _backward)
