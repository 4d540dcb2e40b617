"""Singular values of steep spectra, from two Gram matrices in place of an SVD.

A Gram matrix hides singular values below √eps·σ₁. Its Cholesky factor R with pivots says which k features span all
larger directions. With F = [F₁ F₂], these first, the rows become Z = [Q E], where

    Q = F₁·R₁₁⁻¹        close to orthonormal
    E = F₂ - Q·R₁₂      what the large directions leave, so small that
                        its Gram matrix is accurate enough

The Gram matrix of Z is off by eps in its block of Q, and by eps·|E|² in that of E. With S, its own Cholesky factor,

    S·[R₁₁ R₁₂; 0 1]    has the singular values of F

This is Cholesky QR in two passes (Yamamoto et al. 2015), of two parts of different size. All of it is matrix products,
and S has only as many rows as directions matter.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, get_blas_funcs, get_lapack_funcs, solve_triangular, svdvals

from nml_jax.spectrum.meter import EPS, TINY, TOLERANCE, bound_error

Array = NDArray[np.float64]

BLOCK = 1024  # rows that are decomposed at a time
SHARE = 1 / 64  # how much of the tolerance E's Gram matrix may take, with room for the logarithm in SVE


class Factor(NamedTuple):
    """A Cholesky factor with pivots, as long as these are larger than rounding.

    Attributes:
        upper: [rank, dim], of the columns in the order of their pivots.
        order: that order, [dim].
        left: what the first 0 to rank pivots leave of the trace, [rank + 1].
    """

    upper: Array
    order: NDArray[np.int64]
    left: Array


def factorise(gram: Array, smallest: float) -> Factor:
    """Factorise a Gram matrix, of which only the upper triangle is read, down to pivots of this size."""
    if not len(gram):
        return Factor(gram, np.arange(0), np.zeros(1))
    (pstrf,) = get_lapack_funcs(("pstrf",), dtype=np.float64)
    upper, order, rank, _ = pstrf(gram, tol=smallest, lower=0)
    upper = np.triu(upper[:rank])
    left = gram.trace() - np.append(0, np.cumsum(np.sum(upper**2, axis=1)))
    return Factor(upper, order - 1, np.maximum(left, 0))


def decompose_steep(blocks: Iterable[Array], n: int, first: Factor, units: float, rank: int) -> tuple[Array, float]:
    """Return the singular values, descending, and a bound on how far rounding may move their measures.

    Args:
        blocks: prepared rows [B, dim], n of them together.
        first: the factor of their Gram matrix, down to `units`·eps of its trace.
        units: roundings of a Gram matrix, as `SpectrumMeter.error_bound` counts them.
        rank: how many singular values can differ from zero.

    Returns:
        float64 [min(n, dim)], and the bound; infinity where there is none, as for zeros.
    """
    factor, order, left = first
    dim = len(order)
    if len(factor) == 0:
        return np.zeros(min(n, dim)), np.inf
    most = SHARE * TOLERANCE / (dim * np.sqrt(units * EPS)) * factor.diagonal().sum()  # Σσ is at least that sum
    k = min(int(np.count_nonzero(left > most**2)), len(factor))
    scale = float(np.sqrt(max(left[k], units * EPS * left[0])))  # about that of E
    square = np.zeros((dim, dim), order="F")
    for rows in blocks:
        for start in range(0, len(rows), BLOCK):
            square = _add_square(square, _arrange(rows[start : start + BLOCK], order), factor[:k], scale)
    if np.abs(np.triu(square[:k, :k]) - np.eye(k)).max(initial=0) > 1 / 2:  # Q is too far from orthonormal
        return np.zeros(min(n, dim)), np.inf
    found, dropped = _decompose_product(square, factor[:k], scale)
    s = np.append(found, np.zeros(max(rank - len(found), 0)))[:rank]
    hidden = square.diagonal()[k:].sum() * scale**2 * units * EPS, dropped * scale**2
    return np.append(s, np.zeros(min(n, dim) - rank)), _bound(s, len(found), k, hidden, units)


def _arrange(rows: Array, order: NDArray[np.int64]) -> Array:
    """Return rows [B, dim] transposed, with their features in this order."""
    out = np.empty((len(order), len(rows)))
    for start in range(0, len(rows), 64):  # few enough for the processor's cache
        out[:, start : start + 64] = rows[start : start + 64].T[order]
    return out


def _add_square(square: Array, columns: Array, factor: Array, scale: float) -> Array:
    """Add rows of Z to its Gram matrix, from those of F, which are the columns [dim, B]; factor is [R₁₁ R₁₂]."""
    k = len(factor)
    trsm, syrk = get_blas_funcs(("trsm", "syrk"), dtype=np.float64)
    if k:
        columns[:k] = trsm(1.0, factor[:, :k], columns[:k].T, side=1).T
    columns[k:] = (columns[k:] - factor[:, k:].T @ columns[:k]) / scale
    return syrk(1.0, columns.T, beta=1.0, c=square, trans=1, overwrite_c=True)


def _decompose_product(square: Array, factor: Array, scale: float) -> tuple[Array, float]:
    """Return F's singular values from Z's Gram matrix, and the share of it that its factor S leaves out."""
    k = len(factor)
    top = cholesky(square[:k, :k], check_finite=False)
    cross = solve_triangular(top, square[:k, k:], trans=1, check_finite=False)
    last = factorise(square[k:, k:] - cross.T @ cross, 8 * EPS)
    product = np.zeros((k + len(last.upper), len(square)))
    product[:k] = top @ factor
    product[:k, k:] += cross * scale
    product[k:, k + last.order] = last.upper * scale
    return np.asarray(svdvals(product, overwrite_a=True, check_finite=False)), last.left[-1]


def is_surely_steep(factor: Factor, units: float) -> bool:
    """Return whether the bound of a Gram matrix's own measures must be above the tolerance, without its eigenvalues.

    The last squares σ² sum to at most what the first k pivots leave. So half of them are at most twice their mean, and
    the error of each is at least that of a value as large.

    Args:
        factor: of the Gram matrix, down to `units`·eps of its trace.
    """
    dim, trace, left = len(factor.order), factor.left[0], factor.left
    if not trace > dim * TINY / EPS:
        return False
    k, delta = np.arange(len(left)), units * EPS * trace
    left, k = left[k < dim], k[k < dim]
    most = 2 * left / (dim - k)
    total = np.sqrt(k * trace) + np.sqrt((dim - k) * left)
    each = (np.sqrt(most + delta) - np.sqrt(most)) / total * (2 - np.log(np.sqrt((most + delta) / trace)))
    return bool(np.max((dim - k) / 2 * each, initial=0) > TOLERANCE)


def _bound(s: Array, kept: int, k: int, hidden: tuple[float, float], units: float) -> float:
    """Bound the error of the measures of s, of which `kept` were found.

    Q and the triangles are off by eps·Σσ, in σ. In σ², the Gram matrix of E is off by the first of `hidden`, and the
    squares of what was left out sum to the second.
    """
    error = np.sqrt(s**2 + sum(hidden) + TINY) - s
    if kept < len(s):
        error[kept:] = np.sqrt(hidden[0]) + np.sqrt(hidden[1] / (len(s) - kept))
    return bound_error(s, error + units * EPS * (s.sum() + (k + 1) / 2 * s[0]))
