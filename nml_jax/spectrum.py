"""Singular values of features and what is read off them: SVE, LSVR, the top share, the effective rank.

For features F [N, D] with singular values σ and p = σ/Σσ (arXiv 2309.17002 and 2403.06869):

    SVE = -Σ p log p     rises as the spectrum flattens, from 0 (rank one) to log min(N, D)
    LSVR = -log p₁       rises as the share of the largest falls, from 0 to log min(N, D)

All of it is NumPy float64 on the host: a float32 Gram matrix puts SVE off by 3e-3 on a steep spectrum. The fast route
takes σ² from the Gram matrix of the smaller side. Rounding moves each σ² by about eps·σ₁², in which small σ drown; what
this can do to SVE and LSVR is bounded, and where that is too much the triangular factor of a QR decomposition, which
keeps σ itself to eps·σ₁, takes the place of the Gram matrix.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh, get_blas_funcs, get_lapack_funcs, svdvals

from nml_jax.errors import UserError

Array = NDArray[np.float64]

TOLERANCE = 1e-6  # accuracy of SVE and LSVR that `singular_values` promises
BLOCK = 4096  # rows that are converted to float64 at a time
LARGEST = 1e140  # squares of larger values could overflow in a sum over rows
EPS, TINY = float(np.finfo(np.float64).eps), float(np.finfo(np.float64).tiny)


class Mode(TypedDict):
    """What is done to the features first, as keywords of `singular_values` and `SpectrumMeter`."""

    normalize: str | None
    center: str | None


# The papers' formulas name neither step; the released code takes both.
PRESETS: dict[str, Mode] = {
    "paper": {"normalize": None, "center": None},
    "code": {"normalize": "rows", "center": "samples"},
}


def preset(name: str) -> Mode:
    """The mode of that name in `PRESETS`.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"spectrum mode {name!r} is unknown", f"use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def singular_values(F: ArrayLike, *, normalize: str | None = None, center: str | None = None) -> Array:
    """Singular values of features, accurate enough for SVE and LSVR to 1e-6 on every spectrum.

    Args:
        F: [..., N, D] NumPy or JAX array of any real dtype; leading axes are layers, datasets, ...
        normalize: "rows" divides each row by its L2 norm (a row of zeros stays one).
        center: "features" subtracts the mean over N, "samples" each row's own mean over D; both after `normalize`.

    Returns:
        float64 [..., min(N, D)], descending.

    Raises:
        UserError: F is empty, has fewer than two axes, is not real, or holds NaN or infinity; an unknown mode.
    """
    _check_mode(normalize, center)
    F = _real(F)
    if F.ndim < 2 or F.size == 0:
        raise UserError(f"features of shape {F.shape} have no spectrum", "pass [..., N, D] with N and D at least 1")
    *lead, n, d = F.shape
    s = np.empty((*lead, min(n, d)))
    for index in np.ndindex(*lead):
        try:
            s[index] = _singular_values(F[index], normalize, center)
        except UserError as e:
            raise (UserError(f"matrix {index}: {e.cause}", e.cure) if lead else e) from None
    return s


def sve(s: ArrayLike) -> Any:
    """Singular value entropy, -Σ p log p with p = s/Σs, in nats. It rises as the spectrum flattens.

    Args:
        s: [..., K] singular values in any order; zeros add nothing.

    Returns:
        float64 [...], from 0 (one direction) to log K (all equal).

    Raises:
        UserError: all singular values are zero, or one is negative or not finite.
    """
    p = _shares(s)
    return np.sum(-p * np.log(p, out=np.zeros_like(p), where=p > 0), axis=-1) + 0.0  # never -0.0


def lsvr(s: ArrayLike) -> Any:
    """Largest singular value ratio, -log(s₁/Σs), in nats, from 0 to log K. It rises when the top share falls.

    Arguments, result and errors are those of `sve`.
    """
    return -np.log(top_share(s)) + 0.0  # never -0.0


def top_share(s: ArrayLike) -> Any:
    """Share of the largest singular value, s₁/Σs, from 1/K (all equal) to 1. It falls when LSVR rises.

    Arguments, result and errors are those of `sve`.
    """
    return np.max(_shares(s), axis=-1)


def effective_rank(s: ArrayLike) -> Any:
    """exp(SVE), the number of equal singular values with this entropy, from 1 to K (Roy & Vetterli 2007).

    Arguments, result and errors are those of `sve`.
    """
    return np.exp(sve(s))


def stable_rank(s: ArrayLike) -> Any:
    """‖F‖²_F/σ₁², how many times the energy of the first direction is there, from 1 to K (Rudelson & Vershynin 2007).

    Arguments, result and errors are those of `sve`.
    """
    p = _shares(s)
    return np.sum((p / np.max(p, axis=-1, keepdims=True)) ** 2, axis=-1)


def alpha_req(s: ArrayLike) -> Any:
    """α of λᵢ ∝ i^−α, the decay of the covariance's eigenvalues λ = σ² (α-ReQ: Agrawal et al. 2022).

    The slope of log λ over log i by least squares. The paper names neither range nor weights; as in its released code,
    the fit is over ranks 4 to 100 with weights 1/i, which count each octave alike. Here it ends before σ falls to
    1e-7 σ₁, where rounding takes over, and takes the ranks from 1 where fewer than five values are left.

    Args:
        s: [..., K] singular values in any order of features that were centred (`center="features"`).

    Returns:
        float64 [...], 0 for a flat spectrum.

    Raises:
        UserError: as for `sve`, and where only one value is left.
    """
    p = -np.sort(-_shares(s), axis=-1)
    live = p > 1e-7 * p[..., :1]
    count = live.sum(axis=-1, keepdims=True)
    if count.min() < 2:
        raise UserError("features of one direction have no decay", "look at the features: they all lie on one line")
    rank = np.arange(1, p.shape[-1] + 1)
    weight = np.where(live & (rank <= 100) & ((rank >= 4) | (count < 5)), 1 / rank, 0)
    weight /= weight.sum(axis=-1, keepdims=True)
    x, y = np.log(rank), 2 * np.log(p, out=np.zeros_like(p), where=live)
    x = x - np.sum(weight * x, axis=-1, keepdims=True)
    return -np.sum(weight * x * y, axis=-1) / np.sum(weight * x**2, axis=-1) + 0.0  # never -0.0


# What is reported of every spectrum, by its name in the rows.
MEASURES = {"sve": sve, "lsvr": lsvr, "top_share": top_share}


class SpectrumMeter:
    """Singular values of features that arrive in batches, in D² float64 of memory; mergeable over hosts.

    Features are centred as they come: whenever the running mean moves, one more row makes up for it (Chan, Golub &
    LeVeque 1983), so that a large mean costs no digits.

    Args:
        dim: D.
        normalize, center: as in `singular_values`.
        exact: carry a QR factor in place of the Gram matrix: several times the work, right for every spectrum.
            Without it, `error_bound` says how far the result can be off.

    Raises:
        UserError: dim below 1, an unknown mode.
    """

    def __init__(self, dim: int, *, normalize: str | None = None, center: str | None = None, exact: bool = False):
        if dim < 1:
            raise UserError(f"dim={dim} is no number of features", "pass D, at least 1")
        _check_mode(normalize, center)
        self.dim, self.normalize, self.center, self.exact = dim, normalize, center, exact
        self.n = 0  # rows seen
        self._sums = 0  # roundings of the factor so far
        self._mean = np.zeros(dim)
        self._factor = np.zeros((dim, dim), order="F")  # upper triangle: of the Gram matrix, or R with RᵀR equal to it
        self._spectrum: tuple[Array, float] | None = None

    def update(self, batch: ArrayLike, mask: ArrayLike | None = None) -> None:
        """Add rows.

        Args:
            batch: [B, dim] NumPy or JAX array of any real dtype.
            mask: [B]; rows where it is zero or False are left out, whatever they hold.

        Raises:
            UserError: a wrong shape or dtype; NaN or infinity in a row that counts. Rows are added 4096 at a
                time: those before the block of the bad one have been.
        """
        batch = _real(batch)
        if batch.ndim != 2 or batch.shape[1] != self.dim:
            raise UserError(f"a batch of shape {batch.shape} does not fit", f"pass features of shape [B, {self.dim}]")
        if mask is not None and np.shape(mask) != batch.shape[:1]:
            raise UserError(f"a mask of shape {np.shape(mask)} does not fit", f"pass one value per row, {len(batch)}")
        for start in range(0, len(batch), BLOCK):
            rows, ids = batch[start : start + BLOCK], np.arange(start, min(start + BLOCK, len(batch)))
            if mask is not None:
                kept = np.asarray(mask)[ids].astype(bool)
                rows, ids = rows[kept], ids[kept]
            if len(rows):
                self._add(_prepare(rows, self.normalize, self.center, ids))

    def merge(self, other: "SpectrumMeter") -> None:
        """Add what another meter has seen, as if its batches had come here.

        Raises:
            UserError: the meters differ in dim, mode or `exact`.
        """
        kinds = [{k: getattr(m, k) for k in ("dim", "normalize", "center", "exact")} for m in (self, other)]
        if kinds[0] != kinds[1]:
            raise UserError(f"a meter of {kinds[1]} does not fit one of {kinds[0]}", "merge meters of one kind")
        if other.n:
            self._move(other.n, other._mean)
            if self.exact:
                self._accumulate(other._factor)
            else:
                self._factor += other._factor
            self._sums += other._sums + 1

    def result(self) -> Array:
        """Singular values of all rows so far: float64 [min(n, dim)], descending.

        Raises:
            UserError: no row has been seen.
        """
        return self._decompose()[0].copy()

    def error_bound(self) -> float:
        """How far rounding may have moved `sve`, `lsvr` and `top_share` of `result()`.

        By Weyl's inequality every σ² is off by at most c·eps·Σσ² (with `exact`, every σ by c·eps·Σσ), with c = 8 + √dim
        for the decomposition (four times the largest seen) and 1 for every sum so far. The bound depends on the whole
        spectrum: around 1e-10 where σ_min/σ₁ is 1e-2, 1e-5 where many σ are near 1e-6 σ₁, 1e-3 at rank one, infinite
        where nothing can be said, as of zeros.

        Raises:
            UserError: no row has been seen.
        """
        return self._decompose()[1]

    def state(self) -> dict[str, np.ndarray]:
        """What has been seen as arrays of fixed shapes, to be gathered in 64 bits: float32 would undo the accuracy."""
        counts = {"n": np.array(self.n, np.int64), "sums": np.array(self._sums, np.int64)}
        return {**counts, "mean": self._mean.copy(), "factor": self._factor.copy()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], **kind: Any) -> "SpectrumMeter":
        """The meter with this `state()`; `kind` holds the keywords that it was made with."""
        meter = cls(len(state["mean"]), **kind)
        meter.n, meter._sums = int(state["n"]), int(state["sums"])
        meter._mean += state["mean"]
        meter._factor += state["factor"]
        return meter

    def _add(self, rows: Array) -> None:
        """Add prepared rows [B, dim], B at least 1."""
        if self.center == "features":
            mean = rows.mean(axis=0)
            self._move(len(rows), mean)
            rows = rows - mean
        else:
            self._move(len(rows), self._mean)
        self._accumulate(rows)

    def _move(self, n: int, mean: Array) -> None:
        """Count n rows more. Where features are centred, move the mean towards theirs and pay for it with a row."""
        total = self.n + n
        if self.center == "features":
            shift = mean - self._mean
            if self.n:
                self._accumulate(shift[None] * np.sqrt(self.n * (n / total)))
            self._mean += shift * (n / total)
        self.n = total
        self._spectrum = None

    def _accumulate(self, rows: Array) -> None:
        """Gram += rowsᵀ rows, or R = the triangular factor of [R; rows]."""
        if self.exact:
            rows = np.array(rows, order="F")  # a copy, for LAPACK leaves its reflectors there
            (tpqrt,) = get_lapack_funcs(("tpqrt",), dtype=np.float64)
            self._factor = tpqrt(0, min(32, self.dim), self._factor, rows, overwrite_a=True, overwrite_b=True)[0]
        else:
            (syrk,) = get_blas_funcs(("syrk",), dtype=np.float64)
            self._factor = syrk(1.0, rows.T, beta=1.0, c=self._factor, overwrite_c=True)
        self._sums += 1

    def _decompose(self) -> tuple[Array, float]:
        """Singular values and `error_bound`."""
        if self.n == 0:
            raise UserError("no features have been seen", "call update with at least one row that counts")
        if self._spectrum is None:
            # Centring takes one dimension from the rows or from the columns: that singular value is zero.
            rank = min(self.n - (self.center == "features"), self.dim - (self.center == "samples"))
            s, error = (_of_triangle if self.exact else _of_gram)(self._factor, 8 + self.dim**0.5 + self._sums)
            s, error = s[:rank], error[:rank]
            self._spectrum = np.append(s, np.zeros(min(self.n, self.dim) - len(s))), _error_bound(s, error)
        return self._spectrum


def _singular_values(F: np.ndarray, normalize: str | None, center: str | None) -> Array:
    """Of one matrix [N, D]: by its Gram matrix where that is accurate, else by its QR factor."""
    n, d = F.shape
    if n < d:  # the smaller side is that of Fᵀ, whose samples are the features of F
        F = _prepare(F, normalize, None, np.arange(n)).T
        normalize, center = None, {"features": "samples", "samples": "features"}.get(center or "")
    for exact in (False, True):
        meter = SpectrumMeter(min(n, d), normalize=normalize, center=center, exact=exact)
        meter.update(F)
        if meter.error_bound() <= TOLERANCE:
            break
    return meter.result()


def _of_gram(gram: Array, units: float) -> tuple[Array, Array]:
    """Singular values, descending, and how far each may be off, from the upper triangle of a Gram matrix."""
    live = np.flatnonzero(gram.diagonal())  # features that are always zero are left out: their σ is zero exactly
    if len(live) < len(gram):
        gram = gram[np.ix_(live, live)]
    squares = np.zeros(len(live))
    if len(live):
        eigenvalues = np.asarray(eigvalsh(gram, lower=False, driver="ev", check_finite=False))
        squares = np.maximum(eigenvalues[::-1], 0)
    delta = units * (EPS * squares.sum() + TINY)
    s, low, high = np.sqrt(squares), np.sqrt(np.maximum(squares - delta, 0)), np.sqrt(squares + delta)
    return s, np.maximum(s - low, high - s)


def _of_triangle(r: Array, units: float) -> tuple[Array, Array]:
    """The same from a triangular factor."""
    s = np.asarray(svdvals(r, check_finite=False))
    return s, np.full(len(s), units * EPS * s.sum())


def _error_bound(s: Array, error: Array) -> float:
    """Largest change of SVE, LSVR and top share when every s moves by at most its error.

    SVE = log Σs + Σ h(s)/Σs with h(s) = -s log s. In units of Σs, Σs moves by at most `drift`, and h(s) by the integral
    of |h'| = |1 + log s| over the way, at most error·(2 - log max(s - error, error)).
    """
    total = s.sum()
    if not total > 2 * error.sum():
        return np.inf
    p, error = s / total, error / total
    drift = error.sum()
    moved = np.sum(error * (2 - np.log(np.maximum(p - error, error))))
    return float((moved + drift * (1 + sve(s))) / (1 - drift) + 2 * error[0] / p[0])


def _prepare(rows: np.ndarray, normalize: str | None, center: str | None, ids: np.ndarray) -> Array:
    """Rows as float64 [B, D], checked, normalised and centred over D. `ids` are what errors call them."""
    rows = np.ascontiguousarray(rows, np.float64)
    peak = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    bad = np.flatnonzero(~(peak <= LARGEST))  # NaN too
    if bad.size:
        raise UserError(
            f"row {ids[bad[0]]} of the features holds {peak[bad[0]]}",
            f"features are finite and at most {LARGEST:g}: look at what made this row",
        )
    if normalize == "rows":
        rows = rows / np.where(peak > 0, peak, 1)[:, None]  # first, so that no square underflows
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)  # at least its peak, 1; of zeros 0
    if center == "samples":
        rows = rows - rows.mean(axis=1, keepdims=True)
    return rows


def _shares(s: ArrayLike) -> Array:
    """p = s/Σs over the last axis."""
    s = np.asarray(s, np.float64)
    if s.ndim == 0 or s.size == 0:
        raise UserError(f"an array of shape {s.shape} holds no spectrum", "pass singular values [..., K]")
    wrong = s[~((s >= 0) & (s < np.inf))]
    if wrong.size:
        raise UserError(f"{wrong[0]} is no singular value", "pass the result of singular_values or SpectrumMeter")
    total = s.sum(axis=-1, keepdims=True)
    if not total.all():
        which = f" of matrix {tuple(np.argwhere(total[..., 0] == 0)[0].tolist())}" if s.ndim > 1 else ""
        raise UserError(f"all singular values{which} are zero", "look at the features: they are all zero, or all equal")
    return s / total


def _check_mode(normalize: str | None, center: str | None) -> None:
    if normalize not in (None, "rows"):
        raise UserError(f"normalize={normalize!r} is unknown", "use None or 'rows'")
    if center not in (None, "features", "samples"):
        raise UserError(f"center={center!r} is unknown", "use None, 'features' or 'samples'")


def _real(x: ArrayLike) -> np.ndarray:
    """As an array of a dtype that float64 can hold."""
    x = np.asarray(x)
    if not np.can_cast(x.dtype, np.float64, "same_kind"):
        raise UserError(f"features of dtype {x.dtype} are not real numbers", "pass floats or integers")
    return x
