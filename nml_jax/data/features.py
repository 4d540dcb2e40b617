"""Feature files that somebody else wrote: `.npy` pairs, `.npz`, `.safetensors`, `.csv`, `.tsv` and `.parquet`.

Opening a file reads its labels and the shape of its features. The features themselves stay on disk: `.npy`,
`.safetensors` and uncompressed members of an `.npz` are mapped, Parquet and CSV are read batch by batch; a compressed
member of an `.npz` alone is read whole, at its first use.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Literal, NamedTuple, Protocol

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from safetensors import SafetensorError, safe_open

from nml_jax.errors import UserError

SUFFIXES = (".npy", ".npz", ".safetensors", ".csv", ".tsv", ".parquet")
LABELS = ("label", "labels", "y", "target", "class")  # taken where none is named, the first that is there
FEATURES = ("features", "X", "x", "embeddings")  # preferred where several arrays could be the features
IDS = ("id", "ids", "index", "", "Unnamed: 0", "__index_level_0__")  # no features; the last three are pandas' indices
LARGE = 1 << 30  # bytes above which a fingerprint reads the ends of a file only
ENDS = 16 << 20  # bytes of each end
BLOCK_BYTES = 64 << 20  # of float32 values in a block of `read`
BATCH_ROWS = 4096  # of a Parquet file in memory
CSV_BYTES = 16 << 20  # of a CSV file in memory; types are told from the first of these blocks

SAFETENSORS = {
    **{"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64, "BOOL": np.bool_},
    **{"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64},
    **{"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64},
}


class _Store(Protocol):
    """Where the stored values lie: [n, ...] of rows by index, or of all rows in order, `size` at a time."""

    def take(self, index: np.ndarray) -> np.ndarray: ...
    def scan(self, size: int) -> Iterator[np.ndarray]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """An open feature file of N rows, V stored views of each and D features.

    Attributes:
        spec: as given. path: the file of the features.
        labels: [N], integers, strings or bools as in the file; [0] where it has none and none were asked for.
        shape: (N, V, D).
        dtype: of the stored values. scale: real value = stored value × scale.
        columns: names of the columns of a table; () for arrays.
        class_names: JSON list under "class_names" in the metadata of a .safetensors file; () where there is none.
    """

    spec: str
    path: Path
    labels: np.ndarray
    shape: tuple[int, int, int]
    dtype: np.dtype
    scale: float
    columns: tuple[str, ...]
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    store: _Store = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def views(self) -> int:
        return self.shape[1]

    @property
    def dim(self) -> int:
        return self.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all features as float32."""
        return math.prod(self.shape) * 4

    def rows(self, index: np.ndarray) -> np.ndarray:
        """The rows `index` (integers in [0, N), any order), float32 [n, V, D]. A table is scanned for them, once.

        Raises:
            IndexError: an index is out of range.
            UserError: the file is damaged, or a value is missing, NaN or infinite.
        """
        index = np.asarray(index, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, not {index.min()} to {index.max()}")
        with _reading(self.path):
            return self._values(self.store.take(index), index)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in order: number of the first, and float32 [size, V, D]; the last block may be smaller.

        Raises:
            UserError: the file is damaged, or a value is missing, NaN or infinite.
        """
        with _reading(self.path):
            start = 0
            for stored in self.store.scan(size):
                yield start, self._values(stored, range(start, start + len(stored)))
                start += len(stored)

    def read(self) -> np.ndarray:
        """All rows, float32 [N, V, D]; what `blocks` raises."""
        out = np.empty(self.shape, np.float32)
        for start, block in self.blocks(max(1, BLOCK_BYTES // (4 * self.views * self.dim))):
            out[start : start + len(block)] = block
        return out

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content, of both files' digests for a pair.

        Of a file above 1 GiB only size, time of change (ns) and the first and last 16 MiB count.
        """
        digests = []
        for path in self.files:
            with path.open("rb") as f:
                if (status := os.fstat(f.fileno())).st_size > LARGE:
                    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} ".encode() + f.read(ENDS))
                    f.seek(-ENDS, os.SEEK_END)
                    digest.update(f.read())
                else:
                    digest = hashlib.file_digest(f, "sha256")
            digests.append(digest.hexdigest())
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _values(self, stored: np.ndarray, index: np.ndarray | range) -> np.ndarray:
        """Stored values [n, ...] of the rows `index` as real ones, float32 [n, V, D]."""
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            if stored.dtype.itemsize <= 4:  # wider ones are scaled first: they could overflow
                stored = stored.astype(np.float32)
            values = stored if self.scale == 1 else stored * self.scale
            values = values.astype(np.float32, copy=False).reshape(len(index), self.views, self.dim)
        if not (finite := np.isfinite(values).all((1, 2))).all():
            bad = np.flatnonzero(~finite)
            raise UserError(
                f"{self.path}: {len(bad)} of {len(index)} rows hold missing, NaN or infinite values (as float32): "
                f"rows {', '.join(str(index[i]) for i in bad[:5])}{', …' * (len(bad) > 5)}",
                "repair these rows where the features were made, or drop them and their labels",
            )
        return values


def open_features(
    spec: str, *, label: str = "", columns: str = "", scale: float = 1.0, labelled: bool = True
) -> Features:
    """Open a feature file.

    Arrays are features [N, D] or [N, V, D] and labels [N]; a table has a column of labels, and either a column of lists
    or a column per feature. CSV and TSV need a first line of column names; a list is written as JSON, "[0.1, 0.2]".

    Args:
        spec: FILE, or "FEATURES.npy,LABELS.npy".
        label: name of the label array or column. "": the first there is of label, labels, y, target, class.
        columns: name of the feature array or column. "": the only 2-D or 3-D array, or the only list column; of several
            the one called features, X, x or embeddings; in a table without lists all columns of numbers, except those
            that are named like labels (as above) or ids (id, ids, index, and the index that pandas writes).
        scale: real value = stored value × scale.
        labelled: False: the file may be without labels.

    Raises:
        UserError: the file is missing, empty, damaged or of an unknown format; it does not say which array is which;
            shapes, dtypes or labels are not as above.
    """
    paths = _paths(spec)
    for path in paths:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}", "give the path of a feature file")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes)", "write it again where the features were made")
    path, suffix = paths[0], paths[0].suffix.lower()
    if suffix not in SUFFIXES or (len(paths) > 1 and {p.suffix.lower() for p in paths} != {".npy"}):
        raise UserError(
            f"{spec} is no feature file of a known format: {', '.join(SUFFIXES)}, or FEATURES.npy,LABELS.npy",
            "save the features in one of them; examples/export_features.py writes .safetensors",
        )
    if not math.isfinite(scale) or scale == 0:
        raise UserError(f"scale is {scale}", "give the number that turns stored values into real ones; 1 leaves them")
    with _reading(path):
        if suffix in (".csv", ".tsv", ".parquet"):
            found = _open_table(path, label, columns, labelled)
        else:
            found = _open_arrays(paths, label, columns, labelled)
        labels = _checked_labels(found.labels, path)
    shape = found.shape if len(found.shape) == 3 else (found.shape[0], 1, *found.shape[1:])
    if len(shape) != 3 or 0 in shape[1:]:
        raise UserError(
            f"{path}: the features have shape {list(found.shape)}",
            "give them as [rows, features], or as [rows, views, features]",
        )
    if shape[0] == 0:
        raise UserError(f"{path} has no rows", "write it again where the features were made")
    if found.dtype.kind not in "fiub" and found.dtype != ml_dtypes.bfloat16:
        raise UserError(
            f"{path}: the features are of dtype {found.dtype}, not real numbers",
            "save them as float32; bfloat16 survives in .safetensors only, objects and complex numbers nowhere",
        )
    if len(labels) != shape[0] and (labelled or len(labels)):
        raise UserError(
            f"{spec} has {shape[0]} rows of features and {len(labels)} labels", "give one label for every row"
        )
    return Features(
        spec, path, labels, shape, found.dtype, scale, found.columns, found.class_names, tuple(paths), found.store
    )


def check_alike(train: Features, other: Features) -> None:
    """Check that the features of `other` mean what those of `train` do.

    Raises:
        UserError: they differ in width, in the columns' names or order, or number their classes differently.
    """
    if train.dim != other.dim:
        raise UserError(
            f"{other.path} has {other.dim} features per row, {train.path} has {train.dim}",
            "use features of the same encoder and layer for both",
        )
    if len(train.columns) == len(other.columns) > 1 and train.columns != other.columns:
        mine, its = next(pair for pair in zip(train.columns, other.columns, strict=True) if pair[0] != pair[1])
        raise UserError(
            f"{other.path} has column {its!r} where {train.path} has {mine!r}", "use the same columns, in one order"
        )
    for i, (mine, its) in enumerate(zip(train.class_names, other.class_names, strict=False)):
        if mine != its:
            raise UserError(
                f"{other.path} calls class {i} {its!r}, {train.path} calls it {mine!r}",
                "number the classes alike in both; examples/export_features.py does so with --like",
            )


def classes(labels: np.ndarray, what: str = "training") -> np.ndarray:
    """The classes among `labels`, sorted, each once: [K], of the labels' dtype.

    Raises:
        UserError: there is only one.
    """
    found = np.unique(labels)
    if len(found) < 2:
        raise UserError(
            f"{what}: all {len(labels)} labels are {', '.join(map(repr, found.tolist())) or 'missing'}",
            "give data of at least two classes",
        )
    return found


def encode(labels: np.ndarray, classes: np.ndarray, what: str) -> np.ndarray:
    """Positions of `labels` [N] in the sorted `classes` [K], int32 [N]. `what` names the labels in errors.

    Raises:
        UserError: a label is none of the classes, or is text where they are numbers.
    """
    if (labels.dtype.kind == "U") != (classes.dtype.kind == "U"):
        kinds = [f"{'text' if a.dtype.kind == 'U' else 'numbers'}, as {a[:1].tolist()}" for a in (labels, classes)]
        raise UserError(f"{what}: labels are {kinds[0]}; in training they are {kinds[1]}", "write both the same way")
    places = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    if not (known := classes[places] == labels).all():
        new = np.unique(labels[~known]).tolist()
        raise UserError(
            f"{what}: {(~known).sum()} of {len(labels)} rows have classes that training never saw: "
            f"{', '.join(map(repr, new[:5]))}{', …' * (len(new) > 5)}",
            "drop these rows, or add rows of these classes to the training file",
        )
    return places.astype(np.int32)


def _paths(spec: str) -> list[Path]:
    """The files of a spec. A comma separates two, unless it belongs to the name of a file that exists."""
    whole = Path(spec).expanduser()
    cuts = [(spec[:i], spec[i + 1 :]) for i, character in enumerate(spec) if character == ","]
    if not cuts or whole.exists():
        return [whole]
    pairs = [[Path(part.strip()).expanduser() for part in cut] for cut in cuts]
    return next((pair for pair in pairs if all(p.is_file() for p in pair)), pairs[0])


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the readers raise on a damaged file into a UserError that names it."""
    try:
        yield
    except (
        *(OSError, ValueError, EOFError, RuntimeError),
        *(zipfile.BadZipFile, zlib.error, SafetensorError, pa.ArrowException),
    ) as e:
        said = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"cannot read {path}: {said}", "mend that place, or write the file again as a whole") from e


class _Found(NamedTuple):
    """What a format's reader found."""

    labels: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    store: _Store
    columns: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def _checked_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    """Labels as integers, strings or bools [N]."""
    if labels.ndim != 1:
        cure = "give class numbers [rows]"
        if labels.ndim == 2:
            cure += ": labels.reshape(-1)" if labels.shape[1] == 1 else ": labels.argmax(1), if they are one-hot"
        raise UserError(f"{path}: the labels have shape {list(labels.shape)}", cure)
    if labels.dtype == ml_dtypes.bfloat16:
        labels = labels.astype(np.float32)
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8")
    if labels.dtype.kind == "f":
        whole = (np.abs(labels) < 2**53) & (labels == np.rint(labels))  # neither NaN nor infinity is
        if not whole.all():
            bad = np.flatnonzero(~whole)
            raise UserError(
                f"{path}: {len(bad)} labels are no classes, as row {bad[0]}, {labels[bad[0]]}",
                "give a class, a whole number or text, for every row; numbers to be predicted are not supported",
            )
        return labels.astype(np.int64)
    if labels.dtype.kind not in "biuU":
        raise UserError(
            f"{path}: the labels are of dtype {labels.dtype}", "save them as integers or as text (dtype=str)"
        )
    return np.asarray(labels)


def _choose_label(path: Path, names: Iterable[str], label: str, labelled: bool) -> str | None:
    """The name of the label array or column, None where there is none and need be none."""
    names = list(names)
    found = next((name for name in ([label] if label else LABELS) if name in names), None)
    if found is None and (labelled or label):
        has = f"has no {label!r}" if label else f"has none of {', '.join(LABELS)}"
        cure = "name its labels with label=NAME (--config.features.label=NAME)"
        if path.suffix.lower() in (".csv", ".tsv"):
            cure += "; the first line must name the columns"
        raise UserError(f"{path} {has}; it has {_listed(names)}", cure)
    return found


def _choose_features(path: Path, candidates: list[str]) -> str:
    """The one candidate, or the one that is named like features."""
    preferred = [name for name in FEATURES if name in candidates]
    if len(candidates) > 1 and not preferred:
        raise UserError(
            f"{path}: any of {_listed(candidates)} may be the features",
            "name one with columns=NAME (--config.features.columns=NAME)",
        )
    return (preferred or candidates)[0]


def _listed(names: Iterable[str]) -> str:
    shown = list(map(repr, names))
    return ", ".join(shown[:12]) + f" and {len(shown) - 12} more" * (len(shown) > 12) or "nothing"


# Arrays


class _Entry(NamedTuple):
    """An array of a file: what its header says, and how to get its values."""

    dtype: np.dtype
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


class _Array:
    """An array that is mapped, or loaded at its first use."""

    def __init__(self, load: Callable[[], np.ndarray]):
        self._load = load

    def take(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(self._load()[index])

    def scan(self, size: int) -> Iterator[np.ndarray]:
        array = self._load()
        for start in range(0, len(array), size):
            yield np.asarray(array[start : start + size])


def _open_arrays(paths: list[Path], label: str, columns: str, labelled: bool) -> _Found:
    path, metadata = paths[0], {}
    if path.suffix.lower() == ".npy":
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(p.open("rb")) for p in paths]
            entries: dict[str, _Entry] = dict(zip(("features", "labels"), map(_npy, paths, files), strict=False))
        label, columns = "labels" * (len(paths) > 1), "features"
        if labelled and not label:
            raise UserError(f"{path} has no labels", f"give both files: {path},LABELS.npy")
    elif path.suffix.lower() == ".npz":
        entries = _npz(path)
    else:
        entries, metadata = _safetensors(path)
    label_name = _choose_label(path, entries, label, labelled)
    candidates = [columns] if columns else [n for n, e in entries.items() if n != label_name and len(e.shape) in (2, 3)]
    if not candidates or candidates[0] not in entries:
        has = ", ".join(f"{name!r} {list(entry.shape)}" for name, entry in entries.items())
        raise UserError(
            f"{path} has no {repr(columns) if columns else '2-D or 3-D array of features'}; it has {has or 'nothing'}",
            "save the features as an array [rows, features], or name it with columns=NAME",
        )
    features = entries[_choose_features(path, candidates)]
    labels = np.empty(0, np.int64)
    if label_name:
        entry = entries[label_name]
        if entry.dtype.hasobject:
            raise UserError(
                f"{path}: the labels are Python objects, which only pickle could read",
                "save them as text or integers: np.asarray(labels, dtype=str)",
            )
        labels = np.array(entry.load()) if math.prod(entry.shape) else np.empty(entry.shape, entry.dtype)
    names = metadata.get("class_names", "")
    names = tuple(json.loads(names)) if names.startswith("[") else ()
    return _Found(labels, features.shape, features.dtype, _Array(features.load), class_names=names)


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int, order: Literal["C", "F"] = "C") -> _Entry:
    missing = offset + math.prod(shape) * dtype.itemsize - path.stat().st_size
    if missing > 0 and not dtype.hasobject:
        raise ValueError(f"it is cut short by {missing} bytes")
    return _Entry(dtype, shape, functools.cache(lambda: np.memmap(path, dtype, "r", offset, shape, order)))


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and dtype."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _npy(path: Path, file: IO[bytes]) -> _Entry:
    """The array that begins where `file` stands."""
    shape, fortran, dtype = _npy_header(file)
    return _mapped(path, dtype, shape, file.tell(), "F" if fortran else "C")


def _npz(path: Path) -> dict[str, _Entry]:
    entries = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                continue
            if member.compress_type == zipfile.ZIP_STORED:
                file.seek(member.header_offset + 26)  # the local header: 26 bytes, the lengths of a name and extras
                file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
                entries[name] = _npy(path, file)
            else:
                with archive.open(member) as header:
                    shape, _, dtype = _npy_header(header)
                entries[name] = _Entry(dtype, shape, functools.cache(functools.partial(_inflate, path, name)))
    return entries


def _inflate(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return archive[name]


def _safetensors(path: Path) -> tuple[dict[str, _Entry], Mapping[str, str]]:
    """Arrays and metadata: 8 bytes of length, a JSON header of that length, then the data."""
    with safe_open(path, "numpy"):  # it checks lengths, offsets and shapes
        pass
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata, entries = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS:
            raise ValueError(f"{name!r} is of dtype {entry['dtype']}, not one of {', '.join(SAFETENSORS)}")
        dtype, offset = np.dtype(SAFETENSORS[entry["dtype"]]), 8 + length + entry["data_offsets"][0]
        entries[name] = _mapped(path, dtype, tuple(entry["shape"]), offset)
    return entries, metadata


# Tables


class _Table:
    """Columns of a table, read batch by batch."""

    def __init__(self, path: Path, columns: tuple[str, ...], types: Mapping[str, pa.DataType], dim: int):
        self._path, self._columns, self._types, self._dim = path, columns, types, dim

    def take(self, index: np.ndarray) -> np.ndarray:
        order = np.argsort(index, kind="stable")
        wanted = index[order]
        out = np.empty((len(index), self._dim))
        for start, batch in _batches(self._path, self._columns, self._types, wanted):
            a, b = np.searchsorted(wanted, (start, start + batch.num_rows))
            if a < b:
                out[order[a:b]] = self._matrix(batch, start)[wanted[a:b] - start]
            if b == len(wanted):
                break
        return out

    def scan(self, size: int) -> Iterator[np.ndarray]:
        held, count = [], 0
        for start, batch in _batches(self._path, self._columns, self._types):
            part = self._matrix(batch, start)
            while len(part):
                held.append(part[: size - count])
                part = part[len(held[-1]) :]
                count += len(held[-1])
                if count == size:
                    yield np.concatenate(held)
                    held, count = [], 0
        if held:
            yield np.concatenate(held)

    def _matrix(self, batch: pa.RecordBatch, start: int) -> np.ndarray:
        """The features of a batch [n, D], NaN where a cell has none. `start` is the number of its first row."""
        column = batch.column(self._columns[0])
        if _is_text(column.type):
            column = _from_json(column)
        if not _is_list(column.type):
            return np.stack([_numbers(batch.column(name)) for name in self._columns], 1)
        lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy()
        if (wrong := np.flatnonzero(lengths != self._dim)).size:
            row = wrong[0]
            raise UserError(
                f"{self._path}: row {start + row} of {self._columns[0]!r} has {lengths[row]} values, not {self._dim}",
                "give every row a list of the same length",
            )
        return _numbers(column.flatten()).reshape(-1, self._dim)


def _batches(
    path: Path,
    columns: Iterable[str] = (),
    types: Mapping[str, pa.DataType] | None = None,
    wanted: np.ndarray | None = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Number of the first row, and columns (all, if none are named), of consecutive rows.

    `types` are those of a CSV file's columns, which it cannot tell by itself. Of a Parquet file only those row groups
    are read that hold `wanted`, sorted, if it is given.
    """
    columns, start = list(columns), 0
    if path.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if wanted is None or np.diff(np.searchsorted(wanted, (start, end))):
                    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns or None):
                        yield start, batch
                        start += batch.num_rows
                start = end
        return
    with pyarrow.csv.open_csv(
        path,
        pyarrow.csv.ReadOptions(block_size=CSV_BYTES),
        pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True),
        pyarrow.csv.ConvertOptions(include_columns=columns, column_types=types),
    ) as reader:
        for batch in reader:
            yield start, batch
            start += batch.num_rows


def _open_table(path: Path, label: str, columns: str, labelled: bool) -> _Found:
    batch = next((batch for _, batch in _batches(path) if batch.num_rows), None)
    if batch is None:
        raise UserError(f"{path} has no rows", "write it again where the features were made")
    names = batch.schema.names
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"{path} has several columns {_listed(doubled)}", "rename all but one of each")
    label_name = _choose_label(path, names, label, labelled)
    chosen = _choose_columns(path, batch, label_name, columns)
    first = _as_lists(batch.column(chosen[0])[:1])
    dim = len(first[0].as_py() or ()) if _is_list(first.type) else len(chosen)
    kinds = [first.type.value_type] if _is_list(first.type) else [batch.schema.field(name).type for name in chosen]
    dtypes = [np.dtype(np.float64 if pa.types.is_decimal(kind) else kind.to_pandas_dtype()) for kind in kinds]
    types = {}
    if path.suffix.lower() != ".parquet":  # the first block may hold whole numbers only
        types = {name: pa.string() if _is_list(first.type) else pa.float64() for name in chosen}
        dtypes = [np.dtype(np.float64)]
    labels = _read_labels(path, label_name) if label_name else np.empty(0, np.int64)
    n = len(labels) if label_name else sum(part.num_rows for _, part in _batches(path, chosen, types))
    return _Found(labels, (n, dim), np.result_type(*dtypes), _Table(path, chosen, types, dim), chosen)


def _choose_columns(path: Path, batch: pa.RecordBatch, label: str | None, columns: str) -> tuple[str, ...]:
    """The feature columns of a table, by their names and the types in its first batch."""
    types = {name: _as_lists(batch.column(name)[:1]).type for name in batch.schema.names}
    if columns:
        if columns not in types or not _is_number(types[columns]) | _is_list(types[columns]):
            what = f"column {columns!r} holds {types[columns]}" if columns in types else f"no column {columns!r}"
            numbers = _listed(name for name, kind in types.items() if _is_number(kind) or _is_list(kind))
            raise UserError(f"{path}: {what}", f"name a column of numbers or of lists of numbers: {numbers}")
        return (columns,)
    others = {name: kind for name, kind in types.items() if name != label and name not in (*LABELS, *IDS)}
    if lists := [name for name, kind in others.items() if _is_list(kind)]:
        return (_choose_features(path, lists),)
    for name, kind in others.items():  # a slip among numbers must not drop a column; real text is no feature
        if _is_text(kind):
            cells = batch.column(name)[:1000].fill_null("").to_pylist()
            wrong = [i for i, cell in enumerate(cells) if not _is_numeral(cell)]
            if 2 * len(wrong) < len(cells):
                raise UserError(
                    f"{path}: column {name!r} holds {cells[wrong[0]]!r} in row {wrong[0]}, numbers elsewhere"
                    if wrong
                    else f"{path}: column {name!r} holds numbers as text",
                    "correct the cell, or write the column as numbers",
                )
    chosen = tuple(name for name, kind in others.items() if _is_number(kind))
    if not chosen:
        has = _listed(f"{name} ({kind})" for name, kind in types.items())
        raise UserError(f"{path} has no columns of numbers but label and id: {has}", "give a column for every feature")
    return chosen


def _read_labels(path: Path, label: str) -> np.ndarray:
    parts = [batch.column(label) for _, batch in _batches(path, [label], {label: pa.string()})]
    parts = [part.dictionary_decode() if pa.types.is_dictionary(part.type) else part for part in parts]
    column = pa.chunked_array(parts)
    text = _is_text(column.type)
    missing = np.asarray(column.is_null()) | (np.asarray(column) == "" if text else False)
    if (rows := np.flatnonzero(missing)).size:
        raise UserError(
            f"{path}: {len(rows)} rows have no label in column {label!r}, as row {rows[0]}",
            "give every row a label, or drop these rows",
        )
    if text and path.suffix.lower() != ".parquet":  # CSV has no types: whole numbers are numbers
        for kind in (pa.int64(), pa.float64(), pa.bool_()):
            with contextlib.suppress(pa.ArrowInvalid):
                return column.cast(kind).to_numpy()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        column, text = column.cast(pa.large_string()), True
    return np.array(column.to_pylist(), str) if text else column.to_numpy()


def _is_numeral(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_number(kind: pa.DataType) -> bool:
    return any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


def _is_list(kind: pa.DataType) -> bool:
    """Whether `kind` is a list of numbers, of fixed or any length."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests) and _is_number(kind.value_type)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _as_lists(column: pa.Array) -> pa.Array:
    """A column whose first cell is a list written as JSON, as lists; any other column as it is."""
    if _is_text(column.type):
        with contextlib.suppress(ValueError):
            if isinstance(json.loads(column[0].as_py() or ""), list):
                return _from_json(column)
    return column


def _from_json(column: pa.Array) -> pa.Array:
    return pa.array([json.loads(cell or "null") for cell in column.to_pylist()], pa.list_(pa.float64()))


def _numbers(column: pa.Array) -> np.ndarray:
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    return column.to_numpy(zero_copy_only=False)
