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
from scipy.linalg import get_blas_funcs, get_lapack_funcs, solve_triangular

from nml_jax.spectrum.meter import EPS, TINY, TOLERANCE, bound_error, decompose_gram, decompose_triangle

Array = NDArray[np.float64]

BLOCK = 2048  # rows that are decomposed at a time
PROBES = 8  # random vectors
SAFETY = 4  # times what they measure
SURE = 8  # how far a guess of an error must be from the tolerance to be trusted


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
    gram, off = _reduce_rest(blocks, first, mix)
    last = factorise(gram, max(8 * EPS * gram.trace(), _choose_smallest(first)))
    product = np.zeros((k + len(last.upper), dim))
    product[:k, :k], product[:k, k:] = own, cross[:, last.order]
    product[k:, k:] = last.upper
    found, error = _decompose_product(product, units)
    s, error = (np.append(x, np.zeros(max(rank - len(found), 0)))[:rank] for x in (found, error))

    unseen = units * EPS * gram.trace(), last.left[-1]  # of the Gram matrix of E, in σ²: rounding, and what is left out
    error += np.sqrt(s**2 + sum(unseen) + TINY) - s
    if len(found) < rank:
        error[len(found) :] = np.sqrt(unseen[0]) + np.sqrt(unseen[1] / (rank - len(found)))
    off += units * EPS * np.sqrt(left[0] * (dim - k)) * max(float(np.linalg.norm(mix)), 1)  # of the product F₁·X
    return np.append(s, np.zeros(min(n, dim) - rank)), bound_error(s, error) + _bound_spread(s, off)


def _reduce_rest(blocks: Iterable[Array], first: Factor, mix: Array) -> tuple[Array, float]:
    """Return the Gram matrix of E, upper triangle, and what rounding does to the sum of singular values."""
    k, dim, order = len(mix), len(first.order), first.order
    own = first.upper[:k, :k]
    probes = np.random.default_rng(0).choice([-1.0, 1.0], (dim, PROBES))
    probes[:k] += mix @ probes[k:]
    gram, seen = np.zeros((dim - k, dim - k), order="F"), np.zeros((k, 2 * PROBES))
    gemm, syrk = get_blas_funcs(("gemm", "syrk"), dtype=np.float64)
    for rows in blocks:
        for start in range(0, len(rows), BLOCK):
            columns = _arrange(rows[start : start + BLOCK], order)
            kept = columns[:k].T
            rest = gemm(-1.0, kept, mix, beta=1.0, c=columns[k:].T, overwrite_c=True) if k else columns.T
            gram = syrk(1.0, rest, beta=1.0, c=gram, trans=1, overwrite_c=True)
            seen += kept.T @ np.hstack((kept @ probes[:k], rest @ probes[k:]))
    kept, rest = np.hsplit(solve_triangular(own, seen, trans=1, check_finite=False), 2)
    kept = kept - own @ probes[:k]
    return gram, SAFETY * float(np.sqrt(k / PROBES) * (np.linalg.norm(kept) / 2 + 2 * np.linalg.norm(rest)))


def _decompose_product(product: Array, units: float) -> tuple[Array, Array]:
    """Return the singular values of a triangle [k, dim], descending, and how far off each may be."""
    if _guess_bound(product.diagonal(), units) < TOLERANCE / SURE:
        s, error = decompose_gram(product @ product.T, units)  # takes a third of the time
        if bound_error(s, error) < TOLERANCE / SURE:
            return s, error
    return decompose_triangle(product, units)


def _choose_split(first: Factor) -> int:
    """Return the k < dim with the least error to be expected, taking pivots for singular values."""
    dim, left = len(first.order), first.left
    pivots = np.append(first.upper.diagonal(), np.zeros(dim - len(first.upper)))
    inverse = np.append(0, np.cumsum(left[0] / first.upper.diagonal() ** 2))
    shift = EPS * np.sqrt(left[0] * inverse * dim)
    rest = [np.sum(np.sqrt(pivots[k:] ** 2 + EPS * left[k]) - pivots[k:]) for k in range(len(left))]
    return int(np.argmin((shift + rest)[:dim]))


def _choose_smallest(first: Factor) -> float:
    """Return a square σ² so small that values below it do not matter, even all together."""
    dim = len(first.order)
    return float(first.upper.diagonal().sum() * TOLERANCE / (SURE**2 * dim * np.log(dim / TOLERANCE))) ** 2


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
    hidden = max(np.count_nonzero(first.upper.any(axis=0)) - len(first.upper), 0)  # not those that are always zero
    return _guess_bound(np.append(first.upper.diagonal(), np.zeros(hidden)), units) > SURE * TOLERANCE


def is_probably_mild(gram: Array, units: float) -> bool:
    """Return whether a Gram matrix is likely to show its spectrum well enough: a quick guess, without pivots."""
    (potrf,) = get_lapack_funcs(("potrf",), dtype=np.float64)
    upper, failed = potrf(gram, lower=0, clean=0)
    return not failed and _guess_bound(upper.diagonal(), units) < TOLERANCE / SURE


def _guess_bound(pivots: Array, units: float) -> float:
    """Return the bound that the measures from a Gram matrix would have if its pivots were the singular values."""
    return bound_error(pivots, np.sqrt(pivots**2 + units * EPS * np.sum(pivots**2)) - pivots)


def _bound_spread(s: Array, off: float) -> float:
    """Bound the error of the measures of s if their sum is off by this: most harm is done among the smallest."""
    if not s.sum() > 0:
        return np.inf
    share = off / s.sum()
    return float(share * (3 + np.log(len(s)) - np.log(max(share / len(s), TINY))) + 2 * off / s[0])
