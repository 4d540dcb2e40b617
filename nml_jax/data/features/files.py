"""Read feature files of users: `.npy` pairs, `.npz`, `.safetensors`, `.csv`, `.tsv` and `.parquet`.

Opening a file reads its labels and the shape of its features. The features stay on disk. `.npy`, `.safetensors` and
uncompressed members of an `.npz` are memory-mapped. Parquet, CSV and compressed members of an `.npz` are read batch by
batch. Only a compressed member in Fortran order is read whole, at its first use.
"""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from nml_jax import console, inputs
from nml_jax.data import class_names
from nml_jax.data.features.arrays import open_arrays
from nml_jax.data.features.formats import (
    NO_LABELS,
    Store,
    check_count,
    check_labels,
    keep_valid_labels,
    list_names,
    read_errors,
)
from nml_jax.data.features.tables import open_table
from nml_jax.errors import UserError
from nml_jax.hashes import hash_bytes, hash_file, hash_text

SUFFIXES = (".npy", ".npz", ".safetensors", ".csv", ".tsv", ".parquet")
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


def open_features(
    spec: str,
    *,
    label: str = "",
    columns: str = "",
    scale: float = 1.0,
    labelled: bool = True,
    wanted: Sequence[str] = (),
) -> Features:
    """Open a feature file. For a table, log once which columns are used and which are left out.

    Arrays are features [N, D] or [N, V, D] and labels [N]. A table has a column of labels and either a column of lists
    or one column per feature. CSV and TSV need a first line of column names, and write lists as JSON, "[0.1, 0.2]", or
    as NumPy prints them. Cells may be tensors or lists of lists, too: [1, D] is D features, [V, D] is V views of them.
    Labels in them are text, unless all are whole numbers without leading zeros and the like. Spellings of one label are
    one (data/class_names.py).

    Args:
        spec: FILE, or "FEATURES.npy,LABELS.npy".
        label: name of the label array or column. "": the only one of label, labels, y, target, class.
        columns: name of the feature array or column; in a table also names and patterns of columns of numbers, as in
            "f*,age". "": the only 2-D or 3-D array or the only column of lists; among several the one called features,
            X, x, embeddings or embedding; in a table without lists all columns of numbers and booleans except the label
            and ids, which `guesses.is_id` finds by name, and columns of whole numbers that count up.
        scale: real value = stored value × scale.
        labelled: False if the file may lack labels. Labels with blanks or other faults are then dropped with a notice.
        wanted: names of the D feature columns of a table, which may be in any order; (): as `columns` says. Arrays and
            lists have no such names and are taken as they are.

    Raises:
        UserError: the file is missing, empty, damaged or of an unknown format; it is ambiguous which array or column
            holds the features or labels; shapes, dtypes or labels are not as above.
    """
    paths = inputs.split_pair(spec)
    for path in paths:
        if path == Path():  # from "X.npy,"
            raise UserError(f"{spec!r} lacks the name of a file", "give FILE, or FEATURES.npy,LABELS.npy")
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}", "give the path of a feature file")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes)", "write it again where the features were made")
    path, suffix = paths[0], paths[0].suffix.lower()
    if suffix not in SUFFIXES or (len(paths) > 1 and {p.suffix.lower() for p in paths} != {".npy"}):
        raise UserError(
            f"{spec} is not a feature file of a known format: {', '.join(SUFFIXES)}, or FEATURES.npy,LABELS.npy",
            "save the features in one of them; examples/export_features.py writes .safetensors",
        )
    if not math.isfinite(scale) or scale == 0:
        raise UserError(f"scale is {scale}", "give the factor from stored values to real ones; 1 keeps them")
    with read_errors(path):
        if suffix in (".csv", ".tsv", ".parquet"):
            content = open_table(path, label, columns, labelled, wanted)
            used = f"label {content.label!r}, " if content.label else "no label, "
            console.notice_once(
                f"{path}: {used}features {list_names(content.columns)}; left out: {list_names(content.left_out)}"
            )
            if content.ids:
                why = ", ".join(f"{name!r} ({reason})" for name, reason in [*content.ids.items()][:12])
                console.notice_once(f"{path}: taken for ids: {why}; --config.features.columns keeps a column")
        else:
            content = open_arrays(paths, label, columns, labelled)
        labels = keep_valid_labels(paths[-1], lambda: check_labels(content.labels, paths[-1]), NO_LABELS, labelled)
    labels = class_names.clean_labels(labels, f"{paths[-1]}, labels")
    shape = content.shape if len(content.shape) == 3 else (*content.shape[:1], 1, *content.shape[1:])
    if len(shape) != 3 or 0 in shape[1:]:
        raise UserError(
            f"{path}: the features have shape {list(content.shape)}",
            "give them as [rows, features], or as [rows, views, features]",
        )
    if shape[1] > 1:
        console.notice_once(f"{path}: {shape[1]} views of each row, and only the first is scored")
    if shape[0] == 0:
        raise UserError(f"{path} has no rows", "write it again where the features were made")
    if content.dtype.kind not in "fiub" and content.dtype != ml_dtypes.bfloat16:
        raise UserError(
            f"{path}: the features have dtype {content.dtype}, not real numbers",
            "save them as float32; bfloat16 works only in .safetensors",
        )
    if labelled or len(labels):
        labels = keep_valid_labels(path, lambda: _with_count(labels, shape[0], spec), NO_LABELS, labelled)
    names = content.label, content.columns, content.left_out, content.class_names
    return Features(spec, path, labels, shape, content.dtype, scale, *names, tuple(paths), content.store, content.ids)


def _with_count(labels: np.ndarray, rows: int, spec: str) -> np.ndarray:
    """Return the labels. Raise UserError unless there is one for every row."""
    check_count(len(labels), rows, spec)
    return labels


def count_block_rows(views: int, dim: int) -> int:
    """Return how many rows [views, dim] make a block that fits in memory; at least one."""
    return max(1, min(BLOCK_ROWS, BLOCK_VALUES // (views * dim)))


def check_alike(train: Features, other: Features) -> None:
    """Check that the features of `other` mean what those of `train` do.

    Raises:
        UserError: they differ in width or column names, or share one scale though one holds whole numbers and the
            other fractions.
    """
    if train.dim != other.dim:
        raise UserError(
            f"{other.path} has {other.dim} features per row, {train.path} has {train.dim}",
            "use features of the same encoder and layer for both",
        )
    if len(train.columns) == len(other.columns) > 1 and train.columns != other.columns:
        mine, its = next(pair for pair in zip(train.columns, other.columns, strict=True) if pair[0] != pair[1])
        raise UserError(
            f"{other.path} has column {its!r} where {train.path} has {mine!r}", "use the same columns in both"
        )
    if train.scale != 1 and (train.dtype.kind in "iub") != (other.dtype.kind in "iub"):
        raise UserError(
            f"{other.path} holds {other.dtype}, {train.path} {train.dtype}, and one scale, {train.scale:g}, for both",
            "store both with the same dtype, or write real values and leave the scale at 1",
        )


def translate_labels(train: Features, other: Features) -> np.ndarray:
    """Return the labels of `other` as `train` writes them: [N], matched by name where the files name their classes.

    Where only one of two files with numbers names them, a line is logged.

    Raises:
        UserError: a label cannot be matched, because it has no name or because training has no class of that name.
    """
    labels, mine, its = other.labels, train.class_names, other.class_names
    mine, its = (names if of.labels.dtype.kind in "iu" else () for names, of in ((mine, train), (its, other)))
    same = all(a == b for a, b in zip(mine, its, strict=False))
    if mine and its and same:
        return labels
    named = len(labels) and 0 <= labels.min() <= labels.max() < len(its) if its else False
    if mine and its and not named:
        i, a, b = next((i, a, b) for i, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b)
        raise UserError(
            f"{other.path} calls class {i} {b!r}, {train.path} calls it {a!r}, and labels without a name cannot be "
            f"matched: {labels.max()}",
            "number the classes the same way in both; examples/export_features.py does so with --like",
        )
    if named and (mine or train.labels.dtype.kind == "U"):
        labels = np.array(its)[labels]
    if mine and labels.dtype.kind == "U":
        return _match_names(labels, mine, train, other)
    if bool(mine) != bool(its) and labels.dtype.kind in "iu" and train.labels.dtype.kind in "iu":
        bare, named = (other, train) if mine else (train, other)
        console.notice_once(f"{bare.path} does not name its classes: its numbers are taken as those of {named.path}")
    return labels


def _match_names(labels: np.ndarray, names: tuple[str, ...], train: Features, other: Features) -> np.ndarray:
    """Return labels of text as positions in `names`; unchanged if not one is a name, such as "0"."""
    values, rows = np.unique(labels, return_inverse=True)
    place = {name: i for i, name in enumerate(names)}
    new = [value for value in values.tolist() if value not in place]
    if len(new) == len(values):
        return labels
    if new:
        raise UserError(
            f"{other.path} has the classes {list_names(new)}, which {train.path} does not name",
            "drop their rows, or add rows of these classes to the training file",
        )
    console.notice_once(f"{other.path}: its classes are matched to those of {train.path} by name")
    return np.array([place[value] for value in values.tolist()], np.int64)[rows]


def find_classes(labels: np.ndarray, what: str = "training") -> np.ndarray:
    """Return the distinct classes of `labels`, sorted: [K], with the labels' dtype.

    Raises:
        UserError: there is only one.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UserError(
            f"{what}: all {len(labels)} labels are {', '.join(map(repr, classes.tolist())) or 'missing'}",
            "give data of at least two classes",
        )
    return classes


def encode(labels: np.ndarray, classes: np.ndarray, what: str) -> np.ndarray:
    """Return the positions of `labels` [N] in the sorted `classes` [K], int32 [N]. `what` names the labels in errors.

    Raises:
        UserError: a label is not one of the classes.
    """
    find = {label: place for place, label in enumerate(classes.tolist())}.get  # exact even between int64 and uint64
    if "U" in labels.dtype.kind + classes.dtype.kind:  # each table decides alone if its labels are numbers
        find, labels = class_names.NameIndex(classes.tolist()).find, labels.astype(str)
    values, rows = np.unique(labels, return_inverse=True)
    found = map(find, values.tolist())
    places = np.array([-1 if place is None else place for place in found], np.int32)
    if new := values[places < 0].tolist():
        raise UserError(
            f"{what}: {(places[rows] < 0).sum()} of {len(labels)} rows have classes that training never saw: "
            f"{', '.join(map(repr, new[:5]))}{', …' * (len(new) > 5)}",
            "drop these rows, or add rows of these classes to the training file",
        )
    return places[rows]
