"""Singular values of features that arrive in batches, with a bound on what rounding does to their measures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh, get_blas_funcs, get_lapack_funcs, svdvals

from nml_jax.errors import UserError
from nml_jax.spectrum.measures import sve
from nml_jax.spectrum.rows import Kind, check_mask, check_mode, count_directions, is_on_device, prepare

Array = NDArray[np.float64]

BLOCK = 4096  # rows that are converted to float64 at a time
TOLERANCE = 1e-6  # accuracy of SVE and LSVR that `singular_values` promises
EPS, TINY = float(np.finfo(np.float64).eps), float(np.finfo(np.float64).tiny)


class SpectrumMeter:
    """A meter of singular values for features that arrive in batches, in D² float64 of memory. Meters can be merged.

    Features are centred as they come: whenever the running mean moves, one more row makes up for it (Chan, Golub &
    LeVeque 1983), so that a large mean costs no digits.

    Args:
        dim: D, at least 1.
        normalize, center: as in `singular_values`.
        exact: keep a QR factor in place of the Gram matrix. It takes several times the work and is accurate for every
            spectrum. Without it, `error_bound` returns how far off the result can be.

    Raises:
        UserError: a mode is unknown.
    """

    def __init__(self, dim: int, *, normalize: str | None = None, center: str | None = None, exact: bool = False):
        check_mode(normalize, center)
        self.dim, self.normalize, self.center, self.exact = dim, normalize, center, exact
        self.n = 0  # rows seen
        self._sums = 0  # roundings of the factor so far
        self._mean = np.zeros(dim)
        self._factor = np.zeros((dim, dim), order="F")  # upper triangle of the Gram matrix, or R with RᵀR equal to it
        self._spectrum: tuple[Array, float] | None = None

    def update(self, batch: ArrayLike, mask: ArrayLike | None = None) -> None:
        """Add rows.

        Args:
            batch: [B, dim] NumPy or JAX array of any real dtype. A JAX array of an accelerator, or of several
                devices, is reduced to D × D where it is.
            mask: [B]; rows where it is zero or False are left out, whatever they hold.

        Raises:
            UserError: a shape is wrong, or a row that counts holds NaN or infinity. Rows are added in blocks of 4096;
                the blocks before that of the bad row stay added.
        """
        if np.ndim(batch) != 2 or np.shape(batch)[1] != self.dim:
            raise UserError(
                f"a batch of shape {np.shape(batch)} does not fit", f"pass features of shape [B, {self.dim}]"
            )
        check_mask(mask, np.shape(batch)[0])
        if is_on_device(batch):
            self._update_on_device(batch, mask)
            return
        batch = np.asarray(batch)
        for start in range(0, len(batch), BLOCK):
            rows, ids = batch[start : start + BLOCK], np.arange(start, min(start + BLOCK, len(batch)))
            if mask is not None:
                kept = np.asarray(mask)[ids].astype(bool)
                rows, ids = rows[kept], ids[kept]
            if len(rows):
                self._add(prepare(rows, self.normalize, self.center, ids))

    def _update_on_device(self, batch: Any, mask: ArrayLike | None) -> None:
        """Add rows [B, dim] of a JAX array, reduced on its devices."""
        from nml_jax.spectrum import device  # imports JAX

        kept = np.ones(len(batch), bool) if mask is None else np.asarray(mask).astype(bool)
        if self.exact and not device.has_float64(batch):
            for rows, ids in device.fetch_rows(batch, kept):
                self._add(prepare(rows, self.normalize, self.center, ids))
        elif kept.any():
            mode = Kind(self.normalize, self.center, self.exact)
            self.merge(SpectrumMeter.from_reduction(next(device.reduce_rows(batch[None], kept, mode)), mode))

    def merge(self, other: "SpectrumMeter") -> None:
        """Add the rows that another meter has seen.

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
        """Return the singular values of all rows so far: float64 [min(n, dim)], descending.

        Raises:
            UserError: there are no rows so far.
        """
        return self._decompose()[0].copy()

    def error_bound(self) -> float:
        """Return how far rounding may have moved `sve`, `lsvr` and `top_share` of `result()`.

        By Weyl's inequality, every σ² is off by at most c·eps·Σσ², or, with `exact`, every σ by c·eps·Σσ. Here c is
        `units`. The bound depends on the whole spectrum: about 1e-10 if σ_min/σ₁ is 1e-2, 1e-5 if many σ are near
        1e-6 σ₁, 1e-3 at rank one, and infinite if there is no bound, as for zeros.

        Raises:
            UserError: there are no rows so far.
        """
        return self._decompose()[1]

    @property
    def units(self) -> float:
        """Roundings so far: 8 + √dim of the decomposition, four times the most measured, and 1 for every sum."""
        return 8 + self.dim**0.5 + self._sums

    def state(self) -> dict[str, np.ndarray]:
        """Return the state as arrays of fixed shapes. Gather them in 64 bits: float32 would undo the accuracy."""
        counts = {"n": np.array(self.n, np.int64), "sums": np.array(self._sums, np.int64)}
        return {**counts, "mean": self._mean.copy(), "factor": self._factor.copy()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], **kind: Any) -> "SpectrumMeter":
        """Make the meter with this `state()`; `kind` holds the keywords that it was made with."""
        meter = cls(len(state["mean"]), **kind)
        meter.n, meter._sums = int(state["n"]), int(state["sums"])
        meter._mean += state["mean"]
        meter._factor += state["factor"]
        return meter

    @classmethod
    def from_reduction(cls, sums: Mapping[str, np.ndarray], mode: Kind) -> "SpectrumMeter":
        """Make the meter of a matrix that `device.reduce_rows` has reduced."""
        kind = mode._asdict()
        if not mode.exact:
            return cls.from_state(sums, **kind)
        meter = cls(len(sums["mean"]), **kind)
        meter.n, meter._mean, meter._sums = int(sums["n"]), np.array(sums["mean"]), int(sums["sums"])
        for factor in sums["factor"]:  # of each device
            meter._accumulate(factor)
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
        """Count n more rows. If features are centred, move the mean towards theirs and add a row to make up for it."""
        total = self.n + n
        if self.center == "features":
            shift = mean - self._mean
            if self.n:
                self._accumulate(shift[None] * np.sqrt(self.n * (n / total)))
            self._mean += shift * (n / total)
        self.n = total
        self._spectrum = None

    def _accumulate(self, rows: Array) -> None:
        """Add rowsᵀ rows to the Gram matrix, or make R the triangular factor of [R; rows]."""
        if self.exact:
            rows = np.array(rows, order="F")  # a copy, because LAPACK overwrites it with its reflectors
            (tpqrt,) = get_lapack_funcs(("tpqrt",), dtype=np.float64)
            self._factor = tpqrt(0, min(32, self.dim), self._factor, rows, overwrite_a=True, overwrite_b=True)[0]
        else:
            (syrk,) = get_blas_funcs(("syrk",), dtype=np.float64)
            self._factor = syrk(1.0, rows.T, beta=1.0, c=self._factor, overwrite_c=True)
        self._sums += 1

    def _decompose(self) -> tuple[Array, float]:
        """Return the singular values and `error_bound`."""
        if self.n == 0:
            raise UserError("the meter has no features yet", "call update with at least one row that counts")
        if self._spectrum is None:
            rank = count_directions(self.n, self.dim, self.center)
            s, error = (decompose_triangle if self.exact else decompose_gram)(self._factor, self.units)
            s, error = s[:rank], error[:rank]
            self._spectrum = np.append(s, np.zeros(min(self.n, self.dim) - len(s))), bound_error(s, error)
        return self._spectrum


def decompose_gram(gram: Array, units: float) -> tuple[Array, Array]:
    """Return the singular values, descending, and how far off each may be, from the upper triangle of a Gram matrix."""
    live = np.flatnonzero(gram.diagonal())  # leave out features that are always zero: their σ is exactly zero
    if len(live) < len(gram):
        gram = gram[np.ix_(live, live)]
    squares = np.zeros(len(live))
    if len(live):
        eigenvalues = np.asarray(eigvalsh(gram, lower=False, driver="ev", check_finite=False))
        squares = np.maximum(eigenvalues[::-1], 0)
    delta = units * (EPS * squares.sum() + TINY)
    s, low, high = np.sqrt(squares), np.sqrt(np.maximum(squares - delta, 0)), np.sqrt(squares + delta)
    return s, np.maximum(s - low, high - s)


def decompose_triangle(r: Array, units: float) -> tuple[Array, Array]:
    """Return the same as `decompose_gram` from a triangular factor."""
    s = np.asarray(svdvals(r, check_finite=False))
    return s, np.full(len(s), units * EPS * s.sum())


def bound_error(s: Array, error: Array) -> float:
    """Return a bound on the change of SVE, LSVR and top share when every s moves by at most its error.

    SVE = log Σs + Σ h(s)/Σs with h(s) = -s log s. In units of Σs, Σs moves by at most `drift`, and h(s) by the integral
    of |h'| = |1 + log s| on the way, which is at most error·(2 - log max(s - error, error)).
    """
    total = s.sum()
    if not total > 2 * error.sum():
        return np.inf
    p, error = s / total, error / total
    drift = error.sum()
    moved = np.sum(error * (2 - np.log(np.maximum(np.maximum(p - error, error), TINY))))
    return float((moved + drift * (1 + sve(s))) / (1 - drift) + 2 * error[0] / p[0])
