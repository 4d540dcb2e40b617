"""Compute spectra of features that arrive in blocks, and turn them into rows and entries of spectra.json."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from nml_jax import spectrum
from nml_jax.runs.rows import Row

GATHERED = 2**28  # elements up to which a matrix is decomposed whole; a larger one is streamed


def singular_values(blocks: Iterator[np.ndarray], n: int, dim: int, mode: str) -> np.ndarray:
    """Compute the singular values, float64 and descending, of rows [n, dim] that arrive in blocks.

    Few rows are decomposed whole, with the full accuracy of `spectrum.singular_values`. Many are streamed.

    Args:
        mode: a key of `spectrum.PRESETS`.
    """
    preset = spectrum.find_preset(mode)
    if n * dim <= GATHERED:
        return spectrum.singular_values(np.concatenate(list(blocks)), **preset)
    meter = spectrum.SpectrumMeter(dim, **preset)
    for block in blocks:
        meter.update(block)
    return meter.result()


def make_rows(s: np.ndarray, **fields: Any) -> Iterator[Row]:
    """Yield one row for each measure of the singular values."""
    for metric, measure in spectrum.MEASURES.items():
        yield Row(metric=metric, value=float(measure(s)), **fields)


def make_entry(s: np.ndarray, **where: Any) -> dict[str, Any]:
    """Return an entry of `spectra.json`: the singular values, with six digits each."""
    return {**where, "s": [float(f"{x:.6g}") for x in s]}
