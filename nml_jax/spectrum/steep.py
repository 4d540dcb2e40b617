"""Singular values of steep spectra, from two Gram matrices in place of an SVD.

A Gram matrix hides singular values below √eps·σ₁. Its Cholesky factor R with pivots says which k features span all
larger directions. With F = [F₁ F₂], these first,

    X = R₁₁⁻¹·R₁₂
    E = F₂ - F₁·X       what the large directions leave, so small that
                        its Gram matrix, SᵀS, is accurate enough

    [R₁₁ R₁₂; 0 S]      has the singular values of F

The first Gram matrix is off by rounding. This moves [R₁₁ R₁₂], and keeps F₁ and E from being quite orthogonal. How far
is measured with random vectors z,

    R₁₁⁻ᵀ·F₁ᵀ·F₁·z - R₁₁·z    and    R₁₁⁻ᵀ·F₁ᵀ·E·z

and k is chosen so that this and the error of SᵀS may be expected to be small together. All of it is matrix products,
but for the singular values of a triangle.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs, get_lapack_funcs, solve_triangular, svdvals

from nml_jax.spectrum.meter import EPS, TINY, TOLERANCE, bound_error

Array = NDArray[np.float64]

BLOCK = 1024  # rows that are decomposed at a time
PROBES = 16  # random vectors
SAFETY = 4  # times what they measure
SURE = 8  # times the tolerance at which the Gram matrix's eigenvalues are not worth their time


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
    k = _choose_split(first)
    own, cross = factor[:k, :k], factor[:k, k:]
    mix = solve_triangular(own, cross, check_finite=False)
    probes = np.random.default_rng(0).choice([-1.0, 1.0], (dim, PROBES))
    probes[:k] += mix @ probes[k:]
    gram, seen, mixed = np.zeros((dim - k, dim - k), order="F"), np.zeros((k, PROBES)), np.zeros((k, PROBES))
    (syrk,) = get_blas_funcs(("syrk",), dtype=np.float64)
    for rows in blocks:
        for start in range(0, len(rows), BLOCK):
            columns = _arrange(rows[start : start + BLOCK], order)
            kept, rest = columns[:k], columns[k:] - mix.T @ columns[:k]
            gram = syrk(1.0, rest.T, beta=1.0, c=gram, trans=1, overwrite_c=True)
            seen += kept @ (kept.T @ probes[:k])
            mixed += kept @ (rest.T @ probes[k:])
    last = factorise(gram, 8 * EPS * gram.trace())
    product = np.zeros((k + len(last.upper), dim))
    product[:k, :k], product[:k, k:] = own, cross[:, last.order]
    product[k:, k:] = last.upper
    found = np.asarray(svdvals(product, overwrite_a=True, check_finite=False))
    s = np.append(found, np.zeros(max(rank - len(found), 0)))[:rank]

    seen = solve_triangular(own, seen, trans=1, check_finite=False) - own @ probes[:k]
    mixed = solve_triangular(own, mixed, trans=1, check_finite=False)
    moved = SAFETY * np.sqrt(k / PROBES) * (np.linalg.norm(seen) / 2 + 2 * np.linalg.norm(mixed))
    moved += units * EPS * np.sqrt(left[0] * (dim - k)) * max(np.linalg.norm(mix), 1)  # of the product F₁·X
    hidden = units * EPS * gram.trace(), last.left[-1]
    return np.append(s, np.zeros(min(n, dim) - rank)), _bound(s, len(found), hidden, moved, units)


def _choose_split(first: Factor) -> int:
    """Return the k < dim with the least error to be expected, taking pivots for singular values."""
    dim, left = len(first.order), first.left
    pivots = np.append(first.upper.diagonal(), np.zeros(dim - len(first.upper)))
    inverse = np.append(0, np.cumsum(left[0] / first.upper.diagonal() ** 2))
    shift = EPS * np.sqrt(left[0] * inverse * dim)
    rest = [np.sum(np.sqrt(pivots[k:] ** 2 + EPS * left[k]) - pivots[k:]) for k in range(len(left))]
    return int(np.argmin((shift + rest)[:dim]))


def _arrange(rows: Array, order: NDArray[np.int64]) -> Array:
    """Return rows [B, dim] transposed, with their features in this order."""
    out = np.empty((len(order), len(rows)))
    for start in range(0, len(rows), 64):  # few enough for the processor's cache
        out[:, start : start + 64] = rows[start : start + 64].T[order]
    return out


def is_probably_steep(first: Factor, units: float) -> bool:
    """Return whether a Gram matrix's own measures would be far from accurate enough, without its eigenvalues.

    Pivots are taken for singular values, so this is a guess; but it costs time alone, as a second Gram matrix is good
    for mild spectra, too.

    Args:
        first: the factor of the Gram matrix, down to `units`·eps of its trace.
    """
    dim, trace = len(first.order), first.left[0]
    if not trace > dim * TINY / EPS:
        return False
    pivots = np.append(first.upper.diagonal(), np.zeros(dim - len(first.upper)))
    return bound_error(pivots, np.sqrt(pivots**2 + units * EPS * trace) - pivots) > SURE * TOLERANCE


def _bound(s: Array, kept: int, hidden: tuple[float, float], moved: float, units: float) -> float:
    """Bound the error of the measures of s, of which `kept` were found.

    In σ², the Gram matrix of E is off by the first of `hidden`, and the squares of what was left out sum to the second.
    In σ, the sum of what else moved is `moved`; it does most harm where it is spread over the smallest.
    """
    error = np.sqrt(s**2 + sum(hidden) + TINY) - s
    if kept < len(s):
        error[kept:] = np.sqrt(hidden[0]) + np.sqrt(hidden[1] / (len(s) - kept))
    share = moved / s.sum()
    spread = share * (2 - np.log(max(share / len(s), TINY))) + share * (1 + np.log(len(s))) + 2 * moved / s[0]
    return bound_error(s, error + units * EPS * s.sum()) + 2 * spread
