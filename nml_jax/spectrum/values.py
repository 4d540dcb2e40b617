"""Singular values of whole matrices of features."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nml_jax.errors import UserError
from nml_jax.spectrum.meter import SpectrumMeter
from nml_jax.spectrum.rows import check_mode, prepare

TOLERANCE = 1e-6  # accuracy of SVE and LSVR that `singular_values` promises


def singular_values(F: ArrayLike, *, normalize: str | None = None, center: str | None = None) -> NDArray[np.float64]:
    """Return the singular values of features, accurate enough for SVE and LSVR to 1e-6 on every spectrum.

    Args:
        F: [..., N, D] NumPy or JAX array of any real dtype; leading axes are layers, datasets, ...
        normalize: "rows" divides each row by its L2 norm (a row of zeros stays zero).
        center: "features" subtracts the mean over N, "samples" each row's own mean over D; both after `normalize`.

    Returns:
        float64 [..., min(N, D)], descending.

    Raises:
        UserError: F is empty, has fewer than two axes, or holds NaN or infinity; a mode is unknown.
    """
    check_mode(normalize, center)
    F = np.asarray(F)
    if F.ndim < 2 or F.size == 0:
        raise UserError(f"features of shape {F.shape} have no spectrum", "pass [..., N, D] with N and D at least 1")
    *lead, n, d = F.shape
    s = np.empty((*lead, min(n, d)))
    for index in np.ndindex(*lead):
        try:
            s[index] = _decompose(F[index], normalize, center)
        except UserError as e:
            raise (UserError(f"matrix {index}: {e.cause}", e.cure) if lead else e) from None
    return s


def _decompose(F: np.ndarray, normalize: str | None, center: str | None) -> NDArray[np.float64]:
    """Return the singular values of one matrix, by its Gram matrix if that is accurate, else by its QR factor."""
    n, d = F.shape
    if n < d:  # then Fᵀ has the smaller Gram matrix; its samples are the features of F
        F = prepare(F, normalize, None, np.arange(n)).T
        normalize, center = None, {"features": "samples", "samples": "features"}.get(center or "")
    for exact in (False, True):
        meter = SpectrumMeter(min(n, d), normalize=normalize, center=center, exact=exact)
        meter.update(F)
        if meter.error_bound() <= TOLERANCE:
            break
    return meter.result()
