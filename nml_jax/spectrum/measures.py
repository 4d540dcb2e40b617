"""Measures of a spectrum, from its singular values."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nml_jax.errors import UserError


def sve(s: ArrayLike) -> Any:
    """Return the singular value entropy, -Σ p log p with p = s/Σs, in nats. It rises as the spectrum flattens.

    Args:
        s: [..., K] singular values in any order; zeros add nothing.

    Returns:
        float64 [...], from 0 (one direction) to log K (all equal).

    Raises:
        UserError: all singular values are zero, or one is negative or not finite.
    """
    p = _normalise(s)
    return np.sum(-p * np.log(p, out=np.zeros_like(p), where=p > 0), axis=-1) + 0.0  # never -0.0


def lsvr(s: ArrayLike) -> Any:
    """Return the largest singular value ratio, -log(s₁/Σs), in nats, from 0 to log K. It rises as the top share falls.

    Arguments, result and errors are those of `sve`.
    """
    return -np.log(top_share(s)) + 0.0  # never -0.0


def top_share(s: ArrayLike) -> Any:
    """Return the share of the largest singular value, s₁/Σs, from 1/K (all equal) to 1. It falls as LSVR rises.

    Arguments, result and errors are those of `sve`.
    """
    return np.max(_normalise(s), axis=-1)


def effective_rank(s: ArrayLike) -> Any:
    """Return exp(SVE), the number of equal singular values with this entropy, from 1 to K (Roy & Vetterli 2007).

    Arguments, result and errors are those of `sve`.
    """
    return np.exp(sve(s))


def stable_rank(s: ArrayLike) -> Any:
    """Return ‖F‖²_F/σ₁², the total energy over that of the first direction, from 1 to K (Rudelson & Vershynin 2007).

    Arguments, result and errors are those of `sve`.
    """
    p = _normalise(s)
    return np.sum((p / np.max(p, axis=-1, keepdims=True)) ** 2, axis=-1)


def alpha_req(s: ArrayLike) -> Any:
    """Return α of λᵢ ∝ i^−α, the decay of the covariance's eigenvalues λ = σ² (α-ReQ: Agrawal et al. 2022).

    It is the slope of log λ over log i by least squares. The paper names neither range nor weights. As in its released
    code, the fit is over ranks 4 to 100 with weights 1/i, which weigh each octave equally. Here the fit ends before σ
    falls to 1e-7 σ₁, where rounding dominates, and begins at rank 1 if fewer than five values are left.

    Args:
        s: [..., K] singular values in any order of features that were centred (`center="features"`).

    Returns:
        float64 [...], 0 for a flat spectrum.

    Raises:
        UserError: as for `sve`, and if only one value is left.
    """
    p = -np.sort(-_normalise(s), axis=-1)
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


# The measures of every spectrum in the rows, by name.
MEASURES = {"sve": sve, "lsvr": lsvr, "top_share": top_share}


def _normalise(s: ArrayLike) -> NDArray[np.float64]:
    """Return p = s/Σs over the last axis."""
    s = np.asarray(s, np.float64)
    wrong = s[~((s >= 0) & (s < np.inf))]
    if wrong.size:
        raise UserError(f"{wrong[0]} cannot be a singular value", "pass the result of singular_values or SpectrumMeter")
    total = s.sum(axis=-1, keepdims=True)
    if not total.all():
        which = f" of matrix {tuple(np.argwhere(total[..., 0] == 0)[0].tolist())}" if s.ndim > 1 else ""
        raise UserError(f"all singular values{which} are zero", "look at the features: they are all zero, or all equal")
    return s / total
