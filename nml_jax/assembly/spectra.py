"""Compute spectra of features that arrive in blocks, and turn them into rows and entries of spectra.json."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nml_jax import runtime, spectrum
from nml_jax.data.features.banks import SHARD_ROWS, Bank, Layer
from nml_jax.errors import UserError
from nml_jax.runs.rows import Row
from nml_jax.spectrum.rows import is_on_device

GATHERED = 2**28  # elements up to which a matrix is decomposed whole; a larger one is streamed
HELD = 2**28  # elements of a layer that wait on the devices until they are reduced together
Measured = dict[tuple[str, str], np.ndarray]  # (layer, mode) -> singular values
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

    def finish(self) -> Measured:
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


def measure_written(bank: Bank, layers: Sequence[str], modes: Sequence[str], mesh: Mesh, batch: int) -> Measured:
    """Measure a bank as the extraction that wrote it, so that a run without its spectra gets the same bits.

    The features go back to the devices in the batches that an encoder of images had. Texts had others, sorted by their
    length, so the last bits of theirs may differ. With several processes the bank is on the
    first alone, so nothing is measured, and the first one's processor does it.

    Returns:
        As `DeviceSpectra.finish`.
    """
    if jax.process_count() > 1 or not is_on_device(jax.device_put(np.zeros(1), runtime.replicated_sharding(mesh))):
        return {}
    spectra, whole = DeviceSpectra(modes, len(bank)), runtime.replicated_sharding(mesh)
    stored = [_divide((block[:, 0] for _, block in Layer(bank, layer).blocks(SHARD_ROWS)), batch) for layer in layers]
    for parts in zip(*stored, strict=True):
        n = len(parts[0])
        padded = [jax.device_put(np.pad(rows, ((0, batch - n), (0, 0))), whole) for rows in parts]
        spectra.add(dict(zip(layers, padded, strict=True)), np.arange(batch) < n)
    return spectra.finish()


def _divide(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the rows of blocks in blocks of `size`; the last may have fewer."""
    left: list[np.ndarray] = []
    for block in blocks:
        rows = np.concatenate([*left, block])
        whole = len(rows) - len(rows) % size
        yield from np.split(rows[:whole], whole // size) if whole else ()
        left = [rows[whole:]]
    yield from (rows for rows in left if len(rows))


def make_rows(s: np.ndarray, **fields: Any) -> Iterator[Row]:
    """Yield one row for each measure of the singular values."""
    for metric, measure in spectrum.MEASURES.items():
        yield Row(metric=metric, value=float(measure(s)), **fields)


def make_entry(s: np.ndarray, **where: Any) -> dict[str, Any]:
    """Return an entry of `spectra.json`: the singular values, with six digits each."""
    return {**where, "s": [float(f"{x:.6g}") for x in s]}
