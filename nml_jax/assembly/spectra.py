"""Compute spectra of features that arrive in blocks, and turn them into rows and entries of spectra.json."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from nml_jax import runtime, spectrum
from nml_jax.data.features.banks import SHARD_ROWS, Bank, Layer
from nml_jax.errors import UserError
from nml_jax.processes import crew, peers
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


def measure_written(folder: Path, layers: Sequence[str], modes: Sequence[str], mesh: Mesh, batch: int) -> Measured:
    """Measure a bank as the extraction that wrote it, so that a run without its spectra gets the same bits.

    The features go back to the devices in the batches that an encoder of images had. Texts had others, sorted by their
    length, so the last bits of theirs may differ. The bank is read by the first process, which sends every batch to the
    others. Every process must call it.

    Returns:
        As `DeviceSpectra.finish`.
    """
    whole = runtime.replicated_sharding(mesh)
    if not is_on_device(_place(np.zeros(1, np.float32), whole)):
        return {}
    bank = Bank(folder) if jax.process_index() == 0 else None
    n, *dims = peers.agree([len(bank), *(Layer(bank, layer).dim for layer in layers)] if bank is not None else [])
    spectra = DeviceSpectra(modes, n)
    stored = _read_batches(bank, layers, batch) if bank is not None else itertools.repeat([])
    for start, parts in zip(range(0, n, batch), stored, strict=False):
        own = parts or [np.zeros((batch, dim), np.float32) for dim in dims]
        rows = [_place(x, whole) for x in crew.broadcast(own)]
        spectra.add(dict(zip(layers, rows, strict=True)), np.arange(start, start + batch) < n)
    return spectra.finish()


def _place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process has on all devices."""
    return jax.make_array_from_process_local_data(sharding, x)


def _read_batches(bank: Bank, layers: Sequence[str], size: int) -> Iterator[list[np.ndarray]]:
    """Yield the first view of each layer, [size, D], in batches that are padded with zeros."""
    stored = [_divide((block[:, 0] for _, block in Layer(bank, layer).blocks(SHARD_ROWS)), size) for layer in layers]
    for parts in zip(*stored, strict=True):
        yield [np.pad(rows, ((0, size - len(rows)), (0, 0))) for rows in parts]


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
