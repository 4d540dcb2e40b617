"""Read captions of many records lazily: captions[i] is a list of str, read on access.

`raw(i)` returns the bytes on disk. They are equal for equal captions, and much faster to read.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from nml_jax.data.sources.texts import Texts, split
from nml_jax.noise import CaptionSwap

Captions = Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Stored(Sequence):
    """The captions of a split, which a builder wrote beside its records."""

    texts: Texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: Any) -> list[str]:
        return split(self.texts[i])

    def raw(self, i: int) -> bytes:
        return self.texts.raw(i)


@dataclasses.dataclass(frozen=True)
class Slice(Sequence):
    """The `items` from `start` to `stop`."""

    items: Any  # a sequence
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, i: Any) -> Any:
        return self.items[range(self.start, self.stop)[i]]

    def raw(self, i: int) -> bytes:
        return self.items.raw(range(self.start, self.stop)[i])


@dataclasses.dataclass(frozen=True)
class Taken(Sequence):
    """The `items` at `indices`."""

    items: Any  # a sequence
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: Any) -> Any:
        return self.items[int(self.indices[i])]

    def raw(self, i: int) -> bytes:
        return self.items.raw(int(self.indices[i]))


class Joined(Sequence):
    """Sequences one after another."""

    def __init__(self, parts: Sequence[Any]):
        self.parts, self.ends = parts, list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, i: Any) -> Any:
        part, i = self._find(i)
        return self.parts[part][i]

    def raw(self, i: int) -> bytes:
        part, i = self._find(i)
        return self.parts[part].raw(i)

    def _find(self, i: int) -> tuple[int, int]:
        i = range(len(self))[i]
        part = bisect.bisect_right(self.ends, i)
        return part, i - (self.ends[part - 1] if part else 0)


@dataclasses.dataclass(frozen=True)
class Swapped(Sequence):
    """Captions swapped between partners. A partner is computed from the id, without a table."""

    items: Captions
    swap: CaptionSwap

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: Any) -> Any:
        return self.items[self.swap(range(len(self))[i])]
