"""NMTune's terms and their gradients in float32, for devices that only emulate float64, which are TPUs.

Every function takes float32 Z [..., B, D] and returns float32 (value [...], gradient by Z [..., B, D]); both are finite
for every finite Z. No program holds float64 or an SVD. What plain float32 would lose is kept in other ways: rows are
divided by powers of two, products that nearly cancel are kept in two parts, and means are taken twice.

If σmin/σ₁ is at least 0.05, every gradient is within 1e-4 of its largest entry (3e-5 is the most that was measured, on
the 1,000 matrices of the tests, on a CPU). A Gram matrix in float32 shows no σ below ZERO·σ₁: such directions count as
zero in the singular term and get no gradient.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nml_jax.arithmetic.twofold import find_exponent, multiply_halves
from nml_jax.objectives import nmtune_double

ZERO = 3e-4  # share of σ₁
_matmul = partial(jnp.matmul, precision="highest")


def consistency(divisor: int, Z: jax.Array, F: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the mean over rows of ‖Z/‖Z‖ − F/‖F‖‖², divided by `divisor`; rows of zeros stay zeros.

    Z/‖Z‖ − F/‖F‖ is right to 1e-7 of itself, even where the two differ only in their last digits.
    """
    Z, power = _scale(Z, -1)
    F, _ = _scale(F, -1)
    inverse = _invert_norm(Z)
    (head, rest), (head_F, rest_F) = multiply_halves(Z, inverse), multiply_halves(F, _invert_norm(F))
    away, unit = (head - head_F) + (rest - rest_F), head + rest
    along = (away * unit).sum(-1, keepdims=True)  # the length of Z has no effect
    scale = divisor * Z.shape[-2]
    return (away**2).sum((-2, -1)) / scale, 2 * (away - along * unit) * (inverse / scale) * power


def covariance(Z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute (1/D) Σ_{i≠j} C(Z)²_ij."""
    Z, power = _scale(Z, (-2, -1))
    for _ in range(2):  # the second mean is what the first one's rounding has left
        Z = Z - Z.mean(-2, keepdims=True)
    value, gradient = nmtune_double.covariance_of_centred(Z)
    back = 1 / power
    for _ in range(3):  # a factor at a time: the power itself could overflow
        value, gradient = value * back[..., 0, 0], gradient * back
    return value * back[..., 0, 0], gradient


def singular(top: int, Z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute −(mean of the `top` largest σᵢ) / Σσ; directions with σ/σ₁ below ZERO get no gradient."""
    Z, power = _scale(Z, (-2, -1))
    gram = _matmul(Z, Z.mT) if Z.shape[-2] < Z.shape[-1] else _matmul(Z.mT, Z)
    squares, q = jnp.linalg.eigh(gram, symmetrize_input=False)  # ascending
    squares, q = refine(gram, squares, q)
    value, gradient = nmtune_double.finish(top, Z, jnp.sqrt(jnp.maximum(squares, 0)), q, ZERO)
    return value, gradient * power


def refine(matrix: jax.Array, eigenvalues: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mend the rounding of an eigendecomposition, by one step of Ogita and Aishima (2018).

    TPUs decompose by matrix products whose errors are larger than a CPU's. The step squares an error of q, until that
    of the matrix itself is reached.

    Args:
        matrix: [..., K, K], symmetric.
        eigenvalues: [..., K], ascending.
        q: [..., K, K], eigenvectors in columns.

    Returns:
        Both, mended.
    """
    eye = jnp.eye(q.shape[-1], dtype=q.dtype)
    skew = eye - _matmul(q.mT, q)
    turned = _matmul(q.mT, _matmul(matrix, q))
    diagonal = jnp.diagonal(turned, axis1=-2, axis2=-1) / (1 - jnp.diagonal(skew, axis1=-2, axis2=-1))
    gaps = diagonal[..., None, :] - diagonal[..., :, None]
    close = jnp.abs(gaps) <= 1e-3 * diagonal[..., -1:, None]  # their directions are as good as any between them
    apart = (turned + diagonal[..., None, :] * skew) / jnp.where(close, 1, gaps)
    return diagonal, q + _matmul(q, jnp.where(close, skew / 2, apart))


def _scale(x: jax.Array, axis: int | tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Multiply by the power of two that brings the largest value to between 1 and 2, without rounding; return both."""
    peak = jnp.abs(x).max(axis, keepdims=True)
    power = jnp.ldexp(jnp.float32(1), 1 - find_exponent(peak))  # a normal number; a NaN stays in x
    return x * power, power


def _invert_norm(x: jax.Array) -> jax.Array:
    norm = jnp.sqrt((x * x).sum(-1, keepdims=True))
    return jnp.where(norm == 0, 0, 1 / jnp.where(norm == 0, 1, norm))
