"""Singular values of features and their measures: SVE, LSVR, the top share, the effective rank.

For features F [N, D] with singular values σ and p = σ/Σσ (arXiv 2309.17002 and 2403.06869):

    SVE = -Σ p log p     rises as the spectrum flattens, from 0 (rank one) to log min(N, D)
    LSVR = -log p₁       rises as the share of the largest falls, from 0 to log min(N, D)

NumPy features are decomposed in float64 on the host: with a float32 Gram matrix, SVE is off by 3e-3 on a steep
spectrum. JAX arrays of accelerators, or of several devices, are reduced to D × D where they are, as accurately
(device.py). The fast route takes σ² from the Gram matrix of the smaller side. Rounding changes each σ² by about
eps·σ₁², which hides small σ. There is a bound on what this can do to SVE and LSVR. Where it is too large, a second Gram
matrix brings out the small σ (steep.py). Where rows come only once, as to a meter, or lie on devices, a QR factor takes
the place of the Gram matrix: it keeps σ itself to eps·σ₁.
"""

from nml_jax.spectrum.measures import MEASURES, alpha_req, effective_rank, lsvr, stable_rank, sve, top_share
from nml_jax.spectrum.meter import TOLERANCE, SpectrumMeter
from nml_jax.spectrum.rows import PRESETS, find_preset
from nml_jax.spectrum.values import singular_values

__all__ = [
    "MEASURES",
    "PRESETS",
    "TOLERANCE",
    "SpectrumMeter",
    "alpha_req",
    "effective_rank",
    "find_preset",
    "lsvr",
    "singular_values",
    "stable_rank",
    "sve",
    "top_share",
]
