"""Spectra of features that come in blocks, as rows and as entries of spectra.json."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from nml_jax import spectrum
from nml_jax.runs.rows import Row

GATHERED = 2**28  # elements of a matrix whose spectrum is computed whole; a larger one is streamed


def singular_values(blocks: Iterator[np.ndarray], n: int, dim: int, mode: str) -> np.ndarray:
    """Of all rows [n, dim] that come in blocks, in a mode of `spectrum.PRESETS`; float64, descending.

    Whole if they are few, for the full accuracy of `spectrum.singular_values`, else streamed.
    """
    kind = spectrum.find_preset(mode)
    if n * dim <= GATHERED:
        return spectrum.singular_values(np.concatenate(list(blocks)), **kind)
    meter = spectrum.SpectrumMeter(dim, **kind)
    for block in blocks:
        meter.update(block)
    return meter.result()


def make_rows(s: np.ndarray, **fields: Any) -> Iterator[Row]:
    """The measures of one set of singular values as rows."""
    for metric, measure in spectrum.MEASURES.items():
        yield Row(metric=metric, value=float(measure(s)), **fields)


def make_entry(s: np.ndarray, **where: Any) -> dict[str, Any]:
    """Singular values as an entry of `spectra.json`, six digits each."""
    return {**where, "s": [float(f"{x:.6g}") for x in s]}
