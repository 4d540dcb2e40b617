"""Readers of feature files that hold arrays: `.npy` pairs, `.npz` and `.safetensors`, mapped where they can be."""

import functools
import json
import math
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Literal, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import safe_open

from nml_jax.data.features.formats import (
    NO_LABELS,
    Found,
    Store,
    choose_features,
    choose_label,
    keep_valid_labels,
    read_errors,
)
from nml_jax.errors import UserError

SAFETENSORS = {
    **{"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64, "BOOL": np.bool_},
    **{"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64},
    **{"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64},
}


PACKED_ROWS = 4096  # of a compressed array in memory
CHECKED_BYTES = 1 << 20  # in memory, of a stored array whose checksum is taken


class _Entry(NamedTuple):
    """An array of a file: what its header says, and how to get its values, all at once and row by row."""

    dtype: np.dtype
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    rows: Store


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


class _Packed:
    """A compressed member of an `.npz`, in C order, inflated from its beginning whenever it is read."""

    def __init__(self, path: Path, member: str):
        self._path, self._member = path, member

    def take(self, index: np.ndarray) -> np.ndarray:
        order = np.argsort(index, kind="stable")
        wanted, out, start = index[order], None, 0
        for block in self.scan(PACKED_ROWS):
            out = np.empty((len(index), *block.shape[1:]), block.dtype) if out is None else out
            a, b = np.searchsorted(wanted, (start, start + len(block)))
            out[order[a:b]] = block[wanted[a:b] - start]
            start += len(block)
            if b == len(wanted):
                break
        assert out is not None  # there are rows, or nobody would ask for some
        return out

    def scan(self, size: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as file:
            shape, _, dtype = _npy_header(file)
            for start in range(0, shape[0], size):
                block = (min(size, shape[0] - start), *shape[1:])
                data = file.read(math.prod(block) * dtype.itemsize)
                yield np.frombuffer(data, dtype).reshape(block)


def open_arrays(paths: list[Path], label: str, columns: str, labelled: bool) -> Found:
    """The arrays of a file, or of a pair of `.npy`; arguments as of `features.open_features`.

    Raises:
        UserError: the labels or features are not there, several arrays may be the features, the labels are objects, or
            the names of the classes are not distinct strings.
        Others, as `feature_formats.reading` catches them: the file is damaged.
    """
    path, metadata = paths[0], {}
    if path.suffix.lower() == ".npy":
        entries: dict[str, _Entry] = {}
        for name, part in zip(("features", "labels"), paths, strict=False):
            with read_errors(part), part.open("rb") as file:
                entries[name] = _npy(part, file)
        label, columns = "labels" * (len(paths) > 1), "features"
        if labelled and not label:
            raise UserError(f"{path} has no labels", f"give both files: {path},LABELS.npy")
    elif path.suffix.lower() == ".npz":
        entries = _npz(path)
    else:
        entries, metadata = _safetensors(path)
    label_name = choose_label(path, entries, label, labelled)
    candidates = [columns] if columns else [n for n, e in entries.items() if n != label_name and len(e.shape) in (2, 3)]
    if not candidates or candidates[0] not in entries:
        has = ", ".join(f"{name!r} {list(entry.shape)}" for name, entry in entries.items())
        raise UserError(
            f"{path} has no {repr(columns) if columns else '2-D or 3-D array of features'}; it has {has or 'nothing'}",
            "save the features as an array [rows, features], or name it with columns=NAME",
        )
    features = entries[choose_features(path, candidates)]
    labels, names = NO_LABELS, ()
    if label_name:
        labels, names = keep_valid_labels(
            paths[-1],
            lambda: (_labels(paths[-1], entries[label_name]), _class_names(path, metadata)),
            (labels, names),
            labelled,
        )
    return Found(labels, features.shape, features.dtype, features.rows, class_names=names)


def _labels(path: Path, entry: _Entry) -> np.ndarray:
    if entry.dtype.hasobject:
        raise UserError(
            f"{path}: the labels are Python objects, which only pickle could read",
            "save them as text or integers: np.asarray(labels, dtype=str)",
        )
    return np.array(entry.load()) if math.prod(entry.shape) else np.empty(entry.shape, entry.dtype)


def _class_names(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What the metadata name the classes; () where that is nothing, or no list.

    Raises:
        UserError: the list is not of distinct strings. ValueError: it is no JSON.
    """
    text = metadata.get("class_names", "")
    if not text.startswith("["):
        return ()
    names = json.loads(text)
    other = [name for name in names if not isinstance(name, str)]
    twice = [] if other else [name for name, count in Counter(names).items() if count > 1]
    if other or twice:
        what = f"{twice[0]!r} twice" if twice else f"{other[0]!r}, which is no text"
        raise UserError(
            f"{path}: class_names in its metadata hold {what}",
            "write them as a JSON list of different texts, one for every class",
        )
    return tuple(names)


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int, order: Literal["C", "F"] = "C") -> _Entry:
    missing = offset + math.prod(shape) * dtype.itemsize - path.stat().st_size
    if missing > 0 and not dtype.hasobject:
        raise ValueError(f"it is cut short by {missing} bytes")
    load = functools.cache(lambda: np.memmap(path, dtype, "r", offset, shape, order))
    return _Entry(dtype, shape, load, _Array(load))


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
    """The arrays of an archive.

    What is read of a member is compared with its checksum: of a compressed one whenever it is read to its end; of a
    mapped one at its first use, for which all of it is read once, in order, as the first pass of training does.
    """
    entries = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                continue
            if member.compress_type == zipfile.ZIP_STORED:
                file.seek(member.header_offset + 26)  # the local header: 26 bytes, the lengths of a name and extras
                file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
                entry = _npy(path, file)
                load = functools.cache(functools.partial(_checked, path, member.filename, entry.load))
                entries[name] = entry._replace(load=load, rows=_Array(load))
            else:
                with archive.open(member) as header:
                    shape, fortran, dtype = _npy_header(header)
                load = functools.partial(_inflate, path, name)
                rows = _Array(functools.cache(load)) if fortran else _Packed(path, member.filename)
                entries[name] = _Entry(dtype, shape, load, rows)
    return entries


def _checked(path: Path, member: str, load: Callable[[], np.ndarray]) -> np.ndarray:
    """What `load` returns. Raises BadZipFile if the member has another checksum than its archive says."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        while file.read(CHECKED_BYTES):
            pass
    return load()


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
