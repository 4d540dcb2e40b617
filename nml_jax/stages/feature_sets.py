"""Features to tune on, wherever they came from: banks that `extract` wrote, or the files of the stage `features`."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from nml_jax import log, noise, spectrum
from nml_jax.data import banks
from nml_jax.data.features import block_rows
from nml_jax.errors import UserError
from nml_jax.stages.encoder import provenance
from nml_jax.training import streamed

BLOCK = 16_384  # rows of an encoder's features
# of cgroups, version 2 and 1
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
GATHERED = 2**28  # elements of a matrix whose spectrum is computed whole; a larger one is streamed


class Rows(streamed.Rows, Protocol):
    """Rows of features on disk that may also be read as a whole."""

    def read(self) -> np.ndarray: ...


class Split(NamedTuple):
    """One split with its labels, int32 [N]. `domain` is "id" or "ood"; `scoring` are arguments of `mapped.Scorer`."""

    name: str
    domain: str
    features: Rows
    labels: np.ndarray
    scoring: Mapping[str, Any] = MappingProxyType({})

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(first views float32 [n, D], labels [n]), in order."""
        for start, block in self.features.blocks(block_rows(self.features.views, self.features.dim)):
            yield block[:, 0], self.labels[start : start + len(block)]


class FeatureSet(NamedTuple):
    """One task in one layer.

    classes: what labels stand for, as JSON values.
    origin: the fields of a row that say where the features come from.
    scale: real value = stored value × scale.
    columns: names of the features; () where they have none.
    """

    task: str
    layer: str
    train: Split
    tests: tuple[Split, ...]
    classes: tuple[Any, ...]
    origin: dict[str, Any]
    scale: float = 1.0
    columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some rows of others, as `Rows`."""

    whole: Rows
    index: np.ndarray  # int64, ascending

    def __len__(self) -> int:
        return len(self.index)

    @property
    def views(self) -> int:
        return self.whole.views

    @property
    def dim(self) -> int:
        return self.whole.dim

    def read(self) -> np.ndarray:
        return self.whole.rows(self.index)

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.whole.rows(self.index[index])

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        done = 0
        for start, block in self.whole.blocks(size):
            first, last = np.searchsorted(self.index, (start, start + len(block)))
            if first < last:
                yield done, block[self.index[first:last] - start]
                done += last - first


def opened(config: ConfigDict, workdir: Path) -> list[FeatureSet]:
    """Every task and layer of a run.

    Raises:
        UserError: there are no features, or what was written of them is damaged.
    """
    if config.features.train:
        from nml_jax.stages import features  # which writes what is opened there

        return [features.opened(config, workdir)]
    rows = [row for row in log.read_rows(workdir) if row.stage == "extract"]
    if not rows:
        raise UserError(f"{workdir} holds no features to tune on", "run the extract stage first, as in --force=extract")
    ledger = noise.Ledger.read(workdir / "noise.json") if (workdir / "noise.json").exists() else None
    origin = provenance(config, ledger, run=workdir.name, step=rows[0].step, weights=rows[0].weights)
    out = []
    for task in config.downstream.tasks:
        domains = {row.split: row.domain for row in rows if row.task == task}
        opened = {split: banks.Bank(workdir / "banks" / task / split) for split in domains}
        labels = {split: bank.read("label") for split, bank in opened.items()}
        for layer in config.extract.layers:
            splits = {
                split: Split(
                    split, domains[split], banks.Layer(bank, layer), labels[split], bank.index.get("scoring", {})
                )
                for split, bank in opened.items()
            }
            index = opened["train"].index
            classes = tuple(index["class_names"]) or tuple(range(index["num_classes"]))
            out.append(FeatureSet(task, layer, splits.pop("train"), tuple(splits.values()), classes, origin))
    return out


def singular_values(blocks: Iterator[np.ndarray], n: int, dim: int, mode: str) -> np.ndarray:
    """Of all rows [n, dim] that come in blocks, in a mode of `spectrum.PRESETS`; float64, descending.

    Whole if they are few, for the full accuracy of `spectrum.singular_values`, else streamed.
    """
    kind = spectrum.preset(mode)
    if n * dim <= GATHERED:
        return spectrum.singular_values(np.concatenate(list(blocks)), **kind)
    meter = spectrum.SpectrumMeter(dim, **kind)
    for block in blocks:
        meter.update(block)
    return meter.result()


def rows_in(share: float, rows: Rows, least: int) -> int:
    """How many such rows, as float32, that share of the memory holds; `least`, if these are more."""
    return max(int(share * memory()) // (4 * rows.views * rows.dim), least)


def memory() -> int:
    """Bytes that this process may have: those of the machine, or what its container or job is limited to."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in LIMITS:
        text = limit.read_text("ascii").strip() if limit.is_file() else "max"
        found += [int(text)] if text.isdecimal() else []  # "max": none
    return min(found)


def spectrum_rows(s: np.ndarray, **fields: Any) -> Iterator[log.Row]:
    """The measures of one set of singular values as rows."""
    for metric, measure in spectrum.MEASURES.items():
        yield log.Row(metric=metric, value=float(measure(s)), **fields)


def spectrum_entry(s: np.ndarray, **where: Any) -> dict[str, Any]:
    """Singular values as an entry of `spectra.json`, six digits each."""
    return {**where, "s": [float(f"{x:.6g}") for x in s]}
