"""Compute spectra of features that arrive in blocks, and turn them into rows and entries of spectra.json."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nml_jax import spectrum
from nml_jax.errors import UserError
from nml_jax.runs.rows import Row
from nml_jax.spectrum.rows import is_on_device

GATHERED = 2**28  # elements up to which a matrix is decomposed whole; a larger one is streamed
HELD = 2**28  # elements of a layer that wait on the devices until they are reduced together
WIDEST = 8192  # features whose D × D a host should hold for every layer and mode


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


class DeviceSpectra:
    """Spectra of the layers of a split, reduced to D × D where an encoder has left its features.

    Features of one CPU device are on the host already, so they are left to `singular_values`. So are layers with fewer
    rows than features.

    Args:
        modes: keys of `spectrum.PRESETS`.
        n: rows of the split.
    """

    def __init__(self, modes: Sequence[str], n: int):
        self._modes, self._n = modes, n
        self._meters: dict[tuple[str, str], spectrum.SpectrumMeter] = {}
        self._held: list[tuple[Mapping[str, jax.Array], np.ndarray]] = []

    def add(self, features: Mapping[str, jax.Array], mask: np.ndarray) -> None:
        """Add a global batch: layers [B, D] on their devices, and which rows count, bool [B], on every process."""
        kept = {k: x for k, x in features.items() if is_on_device(x) and x.shape[1] <= min(self._n, WIDEST)}
        if kept:
            self._held.append((kept, mask))
        if kept and len(self._held) * max(x.size for x in kept.values()) >= HELD:
            self._reduce()

    def finish(self) -> dict[tuple[str, str], np.ndarray]:
        """Return (layer, mode) -> singular values, of all that are accurate enough, or too large for another way.

        Every process must call it. Only the first has a result, as it writes them.
        """
        self._reduce()
        if jax.process_index() > 0:
            return {}
        return {
            key: meter.result()
            for key, meter in self._meters.items()
            if meter.n == self._n and (meter.error_bound() <= spectrum.TOLERANCE or meter.n * meter.dim > GATHERED)
        }

    def _reduce(self) -> None:
        held, self._held = self._held, []
        if not held:
            return
        mask = np.concatenate([mask for _, mask in held])
        for layer in held[0][0]:
            rows = jnp.concatenate([features[layer] for features, _ in held])
            for mode in self._modes:
                new = spectrum.SpectrumMeter(rows.shape[1], **spectrum.find_preset(mode))
                try:
                    self._meters.setdefault((layer, mode), new).update(rows, mask)
                except UserError:  # a feature is not finite: who writes the bank names its record
                    return


def make_rows(s: np.ndarray, **fields: Any) -> Iterator[Row]:
    """Yield one row for each measure of the singular values."""
    for metric, measure in spectrum.MEASURES.items():
        yield Row(metric=metric, value=float(measure(s)), **fields)


def make_entry(s: np.ndarray, **where: Any) -> dict[str, Any]:
    """Return an entry of `spectra.json`: the singular values, with six digits each."""
    return {**where, "s": [float(f"{x:.6g}") for x in s]}
