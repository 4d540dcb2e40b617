"""Singular values of whole matrices of features."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svdvals

from nml_jax.console import notice
from nml_jax.errors import UserError
from nml_jax.spectrum.meter import BLOCK, EPS, TOLERANCE, SpectrumMeter
from nml_jax.spectrum.rows import Kind, check_mask, check_mode, count_directions, is_on_device, prepare
from nml_jax.spectrum.steep import decompose_steep, factorise, is_probably_mild, is_probably_steep

WHOLE = 2**28  # elements up to which a copy in float64 may be held whole


def singular_values(
    F: ArrayLike, *, normalize: str | None = None, center: str | None = None, mask: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return the singular values of features, accurate enough for SVE and LSVR to 1e-6 on every spectrum.

    Args:
        F: [..., N, D] NumPy or JAX array of any real dtype; leading axes are layers, datasets, ... With N ≥ D, a JAX
            array of an accelerator, or of several devices, is reduced to D × D where it is (device.py).
        normalize: "rows" divides each row by its L2 norm (a row of zeros stays zero).
        center: "features" subtracts the mean over N, "samples" each row's own mean over D; both after `normalize`.
        mask: [N]; rows where it is zero or False are left out, whatever they hold, and N is the number of the others.

    Returns:
        float64 [..., min(N, D)], descending.

    Raises:
        UserError: F is empty, has fewer than two axes, or holds NaN or infinity; a mode is unknown.
    """
    check_mode(normalize, center)
    shape = np.shape(F)
    if len(shape) < 2 or 0 in shape:
        raise UserError(f"features of shape {shape} have no spectrum", "pass [..., N, D] with N and D at least 1")
    check_mask(mask, shape[-2])
    kept = np.ones(shape[-2], bool) if mask is None else np.asarray(mask).astype(bool)
    if not kept.any():
        raise UserError("the mask leaves out all rows", "keep at least one")
    if is_on_device(F) and shape[-2] >= shape[-1]:
        return _decompose_on_device(F, kept, normalize, center)
    F = _fetch(F) if mask is None else _fetch(F)[..., kept, :]
    *lead, n, d = F.shape
    s = np.empty((*lead, min(n, d)))
    for index in np.ndindex(*lead):
        try:
            s[index] = _decompose(F[index], normalize, center)
        except UserError as e:
            raise (UserError(f"matrix {index}: {e.cause}", e.cure) if lead else e) from None
    return s


def _fetch(F: Any) -> np.ndarray:
    """Return features as NumPy; with fewer rows than features, N × D is less than D × D."""
    if not is_on_device(F):
        return np.asarray(F)
    from nml_jax.spectrum import device  # imports JAX

    return device.fetch(F)


def _decompose(F: np.ndarray, normalize: str | None, center: str | None) -> NDArray[np.float64]:
    """Return the singular values of one matrix, by the fastest way that is accurate enough.

    A Gram matrix will do for most, a second one for almost all others. An SVD will do for all, or for large features a
    QR factor.
    """
    n, d = F.shape
    if n < d:  # then Fᵀ has the smaller Gram matrix; its samples are the features of F
        F = prepare(F, normalize, None, np.arange(n)).T
        normalize, center = None, {"features": "samples", "samples": "features"}.get(center or "")
    meter = SpectrumMeter(min(n, d), normalize=normalize, center=center)
    meter.update(F)
    gram, rank = meter.state()["factor"], count_directions(meter.n, meter.dim, center)
    if is_probably_mild(gram, meter.units) and meter.error_bound() <= TOLERANCE:
        return meter.result()
    factor = factorise(gram, meter.units * EPS * gram.trace())
    if not is_probably_steep(factor, meter.units) and meter.error_bound() <= TOLERANCE:
        return meter.result()
    s, bound = decompose_steep(_prepare_blocks(F, meter), meter.n, factor, meter.units, rank)
    if bound <= TOLERANCE:
        return s
    if F.size > WHOLE:
        meter = SpectrumMeter(min(n, d), normalize=normalize, center=center, exact=True)
        meter.update(F)
        return meter.result()
    rows = np.concatenate(list(_prepare_blocks(F, meter)))
    s = np.asarray(svdvals(rows, overwrite_a=True, check_finite=False))
    s[rank:] = 0
    return s


def _prepare_blocks(F: np.ndarray, meter: SpectrumMeter) -> Iterator[NDArray[np.float64]]:
    """Yield rows as the meter has taken them, less the mean of all where features are centred."""
    mean, ready = meter.state()["mean"], F.dtype == np.float64 and (meter.normalize, meter.center) == (None, None)
    for start in range(0, len(F), BLOCK):
        rows, ids = F[start : start + BLOCK], np.arange(start, min(start + BLOCK, len(F)))
        rows = rows if ready else prepare(rows, meter.normalize, meter.center, ids)
        yield rows - mean if meter.center == "features" else rows


def _decompose_on_device(F: Any, mask: np.ndarray, normalize: str | None, center: str | None) -> NDArray[np.float64]:
    """Return the singular values of a JAX array [..., N, D] with N ≥ D, of which only what is D × D is fetched."""
    from nml_jax.spectrum import device  # imports JAX

    *lead, n, d = F.shape
    flat = F.reshape(-1, n, d)
    mode = Kind(normalize, center, exact=False)
    out = []
    for i, sums in enumerate(device.reduce_rows(flat, mask, mode)):
        meter = SpectrumMeter.from_reduction(sums, mode)
        if meter.error_bound() > TOLERANCE:
            if not device.has_float64(F):
                notice("a Gram matrix is not accurate enough for this spectrum: its rows go through the host's QR")
            meter = SpectrumMeter(d, normalize=normalize, center=center, exact=True)
            meter.update(flat[i], mask)
        out.append(meter.result())
    return np.reshape(out, (*lead, -1))
