"""Matrices with known spectra, and their measures by the formulas in float64."""

import functools
import math

import numpy as np

from nml_jax.spectrum import lsvr, sve, top_share

SHAPES = [(90, 40), (40, 90), (60, 60)]
# Singular values over i = 0, 1, ... The last ones are the hardest: all mass in one value, and a long tail far below it.
DECAYS = {
    "flat": lambda i: np.ones_like(i),
    "1/i": lambda i: 1 / (i + 1),
    "exp(-i/20)": lambda i: np.exp(-i / 20),
    "exp(-i/2)": lambda i: np.exp(-i / 2),
    "rank 5": lambda i: 1.0 * (i < 5),
    "rank 1": lambda i: 1.0 * (i < 1),
    "tail 1e-5": lambda i: np.where(i < 1, 1, 1e-5),
    "tail 1e-7": lambda i: np.where(i < 1, 1, 1e-7),
}


@functools.cache
def make_matrix(decay: str, n: int, d: int) -> np.ndarray:
    """Return U diag(s) Vᵀ with random orthonormal U and V."""
    rng, k = np.random.default_rng(0), min(n, d)
    u, v = (np.linalg.qr(rng.standard_normal((m, k)))[0] for m in (n, d))
    return u * DECAYS[decay](np.arange(k, dtype=float)) @ v.T


def draw_gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def compute_svd(F) -> np.ndarray:
    return np.linalg.svd(np.asarray(F, np.float64), compute_uv=False)


def measure_by_formula(s) -> np.ndarray:
    """Compute SVE, LSVR and top share, as their formulas read."""
    p = [x / math.fsum(s) for x in s if x > 0]
    return np.array([-math.fsum(x * math.log(x) for x in p), -math.log(max(p)), max(p)])


def measure(s) -> np.ndarray:
    return np.array([sve(s), lsvr(s), top_share(s)])
