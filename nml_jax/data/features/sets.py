"""Describe sets of features: splits with their labels, in one layer of one task."""

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from nml_jax.data.features.files import count_block_rows


class Rows(Protocol):
    """Rows of features on disk, such as `files.Features` and `banks.Layer`."""

    @property
    def views(self) -> int: ...
    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def rows(self, index: np.ndarray) -> np.ndarray: ...
    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]: ...
    def read(self) -> np.ndarray: ...


class Split(NamedTuple):
    """One split with its labels, int32 [N], or scores, float32 [N].

    domain: "id" or "ood". scoring: arguments of `mapped.Scorer`.
    groups: int [N], equal for rows that must stay together when the split is divided; None: each row is its own.
    """

    name: str
    domain: str
    features: Rows
    labels: np.ndarray
    scoring: Mapping[str, Any] = MappingProxyType({})
    groups: np.ndarray | None = None

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (first views float32 [n, D], labels [n]) in order."""
        for start, block in self.features.blocks(count_block_rows(self.features.views, self.features.dim)):
            yield block[:, 0], self.labels[start : start + len(block)]


class FeatureSet(NamedTuple):
    """One task in one layer.

    classes: the classes that labels stand for, as JSON values; of scores the one name of what they measure.
    origin: the fields of a row that say where the features come from.
    scale: real value = stored value × scale.
    columns: names of the features; () if they have none.
    label: name of the column or array of labels, if it is known.
    encoder: what the features come from, see assembly/fingerprint.py; {} if it is not known.
    """

    task: str
    layer: str
    train: Split
    tests: tuple[Split, ...]
    classes: tuple[Any, ...]
    origin: dict[str, Any]
    scale: float = 1.0
    columns: tuple[str, ...] = ()
    label: str = ""
    encoder: Mapping[str, Any] = MappingProxyType({})

    @property
    def is_scored(self) -> bool:
        """Return whether labels are scores, to be predicted by a regression, not classes."""
        return self.train.labels.dtype.kind == "f"


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of the rows of another set of rows, as `Rows`."""

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
