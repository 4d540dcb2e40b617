"""Describe open feature files: one file, or several that are read as one."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from nml_jax.data.features.formats import Store, read_errors
from nml_jax.errors import UserError
from nml_jax.hashes import hash_bytes, hash_file, hash_text

LARGE = 1 << 30  # bytes above which a fingerprint reads only the ends of a file
ENDS = 16 << 20  # bytes of each end
BLOCK_BYTES = 64 << 20  # bytes of float32 values in a block of `read`
BLOCK_ROWS, BLOCK_VALUES = 16_384, 1 << 26  # most rows and values in a block of other passes over all rows


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """An open feature file of N rows, V stored views of each and D features.

    Attributes:
        spec: as given. path: the file of the features.
        labels: [N], integers, strings or bools as in the file; [0] if it has none and none are needed.
        shape: (N, V, D).
        dtype: dtype of the stored values. scale: real value = stored value × scale.
        label, columns: names of the columns used in a table; "" and () for arrays.
        left_out: names of its other columns. ids: why some of them were taken for ids.
        class_names: names of the classes that labels number; () if the file has none. They are a JSON list under
            "class_names" in the metadata of a .safetensors file, an array "class_names" in an .npz, or Hugging Face's
            ClassLabel in the metadata of a .parquet file.
    """

    spec: str
    path: Path
    labels: np.ndarray
    shape: tuple[int, int, int]
    dtype: np.dtype
    scale: float
    label: str
    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    store: Store = dataclasses.field(repr=False)
    ids: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def views(self) -> int:
        return self.shape[1]

    @property
    def dim(self) -> int:
        return self.shape[2]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the D features; () for arrays and lists, which have none."""
        return self.columns if len(self.columns) == self.dim else ()

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Read the rows `index` (integers in [0, N), any order), float32 [n, V, D]. A table is scanned once.

        Raises:
            IndexError: an index is out of range.
            UserError: the file is damaged, or a value is missing, NaN or infinite.
        """
        index = np.asarray(index, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, not {index.min()} to {index.max()}")
        with read_errors(self.path):
            return self._values(self.store.take(index), index)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all rows in order as (number of the first, float32 [size, V, D]). The last block may be smaller.

        Raises:
            UserError: the file is damaged, or a value is missing, NaN or infinite.
        """
        with read_errors(self.path):
            start = 0
            for stored in self.store.scan(size):
                yield start, self._values(stored, range(start, start + len(stored)))
                start += len(stored)
            if start != len(self):
                raise ValueError(f"it has {start:,} rows now, and had {len(self):,} when it was opened")

    def read(self) -> np.ndarray:
        """Read all rows, float32 [N, V, D]. Raise what `blocks` raises."""
        out = np.empty(self.shape, np.float32)
        for start, block in self.blocks(max(1, BLOCK_BYTES // (4 * self.views * self.dim))):
            out[start : start + len(block)] = block
        return out

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content; for a pair, of both files' digests.

        For a file above 1 GiB it covers only size, modification time (ns) and the first and last 16 MiB.
        """
        digests = []
        for path in self.files:
            if (status := path.stat()).st_size <= LARGE:
                digests.append(hash_file(path))
                continue
            with path.open("rb") as f:
                first = f.read(ENDS)
                f.seek(-ENDS, os.SEEK_END)
                digests.append(hash_bytes(f"{status.st_size} {status.st_mtime_ns} ".encode() + first + f.read()))
        return digests[0] if len(digests) == 1 else hash_text("".join(digests))

    @functools.cached_property
    def row_hashes(self) -> np.ndarray:
        """Hashes of the first views, uint64 [N]. Rows with equal bits have equal hashes, others almost never.

        Raises what `blocks` raises.
        """
        parts = []
        for _, block in self.blocks(count_block_rows(self.views, self.dim)):
            digests = [hashlib.blake2b(row, digest_size=8).digest() for row in np.ascontiguousarray(block[:, 0])]
            parts.append(np.frombuffer(b"".join(digests), "<u8"))
        return np.concatenate(parts)

    def _values(self, stored: np.ndarray, index: np.ndarray | range) -> np.ndarray:
        """Convert stored values [n, ...] of the rows `index` to real values, float32 [n, V, D]."""
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            if stored.dtype.itemsize <= 4:  # wider types are scaled first, or they could overflow
                stored = stored.astype(np.float32)
            values = stored if self.scale == 1 else stored * self.scale
            values = values.astype(np.float32, copy=False).reshape(len(index), self.views, self.dim)
        if not (finite := np.isfinite(values).all((1, 2))).all():
            bad = np.flatnonzero(~finite)
            some = f" in this block (of {len(self):,} in the file)" if len(index) < len(self) else ""
            raise UserError(
                f"{self.path}: {len(bad)} of {len(index):,} rows{some} hold missing, NaN or infinite values "
                f"(as float32): rows {', '.join(str(index[i]) for i in bad[:5])}{', …' * (len(bad) > 5)}",
                "repair these rows where the features were made, or drop them and their labels",
            )
        return values


@dataclasses.dataclass(frozen=True, eq=False)
class Joined(Features):
    """Several open files whose rows follow each other, as one. `path` is the folder, or the spec as given."""

    parts: tuple[Features, ...] = ()

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Read the rows `index`, as `Features.rows` does."""
        index = np.asarray(index, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, not {index.min()} to {index.max()}")
        out, start = np.empty((len(index), *self.shape[1:]), np.float32), 0
        for part in self.parts:
            if (mine := (index >= start) & (index < start + len(part))).any():
                out[mine] = part.rows(index[mine] - start)
            start += len(part)
        return out

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all rows in order, as `Features.blocks` does; a block may hold rows of two files."""
        held: list[np.ndarray] = []
        start = count = 0
        for part in self.parts:
            for _, block in part.blocks(size):
                left = block
                while len(left):
                    held.append(left[: size - count])
                    left = left[len(held[-1]) :]
                    count += len(held[-1])
                    if count == size:
                        yield start, np.concatenate(held)
                        start, held, count = start + count, [], 0
        if held:
            yield start, np.concatenate(held)


def count_block_rows(views: int, dim: int) -> int:
    """Return how many rows [views, dim] make a block that fits in memory; at least one."""
    return max(1, min(BLOCK_ROWS, BLOCK_VALUES // (views * dim)))
