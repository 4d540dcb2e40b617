"""Read feature files that hold arrays: `.npy` pairs, `.npz` and `.safetensors`, memory-mapped where possible."""

import functools
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Literal, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import safe_open

from nml_jax.data.features.formats import (
    NO_LABELS,
    Content,
    Store,
    check_class_names,
    check_count,
    check_label_bytes,
    check_label_memory,
    check_label_shape,
    check_unicode,
    choose_features,
    choose_label,
    keep_valid_labels,
    read_errors,
)
from nml_jax.data.npy import read_header
from nml_jax.errors import UserError

SAFETENSORS = {
    **{"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64, "BOOL": np.bool_},
    **{"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64},
    **{"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64},
}


PACKED_ROWS = 4096  # rows of a compressed array in memory at a time
CHECKED_BYTES = 1 << 20  # bytes in memory while a checksum is computed
DEFLATED = 1032  # bytes that one byte of a deflated member can stand for, at most


class _Entry(NamedTuple):
    """An array in a file: its dtype and shape, `load` for the whole array, and `rows` for some rows."""

    dtype: np.dtype
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    rows: Store


class _Array:
    """A store of an array that is mapped or loaded at its first use."""

    def __init__(self, load: Callable[[], np.ndarray]):
        self._load = load

    def take(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(self._load()[index])

    def scan(self, size: int) -> Iterator[np.ndarray]:
        array = self._load()
        for start in range(0, len(array), size):
            yield np.asarray(array[start : start + size])


class _Packed:
    """A store of a compressed member of an `.npz` in C order. Every read inflates it from its beginning."""

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
        assert out is not None  # a file without rows is not opened
        return out

    def scan(self, size: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as file:
            shape, _, dtype, length = read_header(file)
            file.seek(length)
            for start in range(0, shape[0], size):
                block = (min(size, shape[0] - start), *shape[1:])
                data = file.read(math.prod(block) * dtype.itemsize)
                yield np.frombuffer(data, dtype).reshape(block)


def open_arrays(paths: list[Path], label: str, columns: str, labelled: bool) -> Content:
    """Find the features and labels in a file or a pair of `.npy`. The arguments are those of `files.open_features`.

    Raises:
        UserError: there are no labels or features, several arrays may be the features, the labels are objects, or
            the class names are not distinct strings.
        Other errors, which `formats.read_errors` catches: the file is damaged.
    """
    path, metadata = paths[0], {}
    if path.suffix.lower() == ".npy":
        entries: dict[str, _Entry] = {}
        for name, part in zip(("features", "labels"), paths, strict=False):
            with read_errors(part), part.open("rb") as file:
                entries[name] = _describe_npy(part, file)
        label, columns = "labels" * (len(paths) > 1), "features"
        if labelled and not label:
            raise UserError(f"{path} has no labels", f"give both files: {path},LABELS.npy")
    elif path.suffix.lower() == ".npz":
        entries = _describe_npz(path)
    else:
        entries, metadata = _describe_safetensors(path)
    label_name = choose_label(path, entries, label, labelled)
    candidates = [columns] if columns else [n for n, e in entries.items() if n != label_name and len(e.shape) in (2, 3)]
    if not candidates or candidates[0] not in entries:
        has = ", ".join(f"{name!r} {list(entry.shape)}" for name, entry in entries.items())
        raise UserError(
            f"{path} has no {repr(columns) if columns else '2-D or 3-D array of features'}; it has {has or 'nothing'}",
            "save the features as an array [rows, features], or name their array with columns=NAME",
        )
    features = entries[choose_features(path, candidates)]
    labels, names = NO_LABELS, ()
    if label_name:
        labels, names = keep_valid_labels(
            paths[-1],
            lambda: (
                _load_labels(paths[-1], entries[label_name], features),
                _load_class_names(path, entries) or _parse_class_names(path, metadata),
            ),
            (labels, names),
            labelled,
        )
    return Content(labels, features.shape, features.dtype, features.rows, class_names=names)


def read_flat_arrays(path: Path, rows: int) -> dict[str, np.ndarray]:
    """Return the arrays [N] of an archive that have a value for each of its N rows, and no Python objects.

    Raises:
        UserError: the file is damaged.
    """
    with read_errors(path):
        entries = _describe_npz(path) if path.suffix.lower() == ".npz" else _describe_safetensors(path)[0]
        flat = {name: e for name, e in entries.items() if e.shape == (rows,) and not e.dtype.hasobject}
        return {name: np.asarray(e.load()) for name, e in flat.items()}


def _load_labels(path: Path, entry: _Entry, features: _Entry) -> np.ndarray:
    """Load the labels. What a header can tell is checked before: a small archive may unpack to many gigabytes."""
    if entry.dtype.hasobject:
        raise UserError(
            f"{path}: the labels are Python objects, which need pickle to read",
            "save them as text or integers: np.asarray(labels, dtype=str)",
        )
    check_label_shape(entry.shape, path)
    check_label_bytes(entry.dtype.itemsize, path)
    if len(features.shape) in (2, 3):
        check_count(entry.shape[0], features.shape[0], path)
    check_label_memory(entry.shape[0], entry.dtype.itemsize, path)
    return np.array(entry.load()) if math.prod(entry.shape) else np.empty(entry.shape, entry.dtype)


def _load_class_names(path: Path, entries: Mapping[str, _Entry]) -> tuple[str, ...]:
    """Return the class names in the array "class_names" of an archive; () if there is no such array of text.

    Raises:
        UserError: two of them are equal.
    """
    entry = entries.get("class_names")
    if path.suffix.lower() != ".npz" or entry is None or entry.dtype.kind != "U" or len(entry.shape) != 1:
        return ()
    check_label_bytes(entry.dtype.itemsize, path)
    names = np.array(entry.load())
    check_unicode(names, path)
    return check_class_names(path, names.tolist())


def _parse_class_names(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the class names in the metadata; () if there is no list of them.

    Raises:
        UserError: they are not distinct strings.
        ValueError: the list is not valid JSON.
    """
    text = metadata.get("class_names", "")
    if not text.startswith("["):
        return ()
    return check_class_names(path, json.loads(text))


def _map_array(
    path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int, order: Literal["C", "F"] = "C"
) -> _Entry:
    missing = offset + math.prod(shape) * dtype.itemsize - path.stat().st_size
    if missing > 0 and not dtype.hasobject:
        raise ValueError(f"it is cut short by {missing} bytes")
    load = functools.cache(lambda: np.memmap(path, dtype, "r", offset, shape, order))
    return _Entry(dtype, shape, load, _Array(load))


def _describe_npy(path: Path, file: IO[bytes]) -> _Entry:
    """Describe the .npy array that begins at the position of `file`."""
    start = file.tell()
    shape, fortran, dtype, length = read_header(file)
    return _map_array(path, dtype, shape, start + length, "F" if fortran else "C")


def _describe_npz(path: Path) -> dict[str, _Entry]:
    """Describe the arrays of an archive.

    Checksums are verified: for a compressed member whenever it is read to its end, for a mapped one at its first use,
    which reads all of it once, in order.
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
                entry = _describe_npy(path, file)
                _check_sizes(member, math.prod(entry.shape) * entry.dtype.itemsize, entry.dtype)
                load = functools.cache(functools.partial(_load_checked, path, member.filename, entry.load))
                entries[name] = entry._replace(load=load, rows=_Array(load))
            else:
                with archive.open(member) as header:
                    shape, fortran, dtype, length = read_header(header)
                _check_sizes(member, length + math.prod(shape) * dtype.itemsize, dtype)
                load = functools.partial(_inflate, path, name)
                rows = _Array(functools.cache(load)) if fortran else _Packed(path, member.filename)
                entries[name] = _Entry(dtype, shape, load, rows)
    return entries


def _check_sizes(member: zipfile.ZipInfo, claimed: int, dtype: np.dtype) -> None:
    """Raise ValueError if a member of an archive cannot hold the array that its header claims, of `claimed` bytes."""
    most = member.file_size
    if member.compress_type == zipfile.ZIP_DEFLATED:
        most = min(most, member.compress_size * DEFLATED)
    if claimed > most and not dtype.hasobject:
        raise ValueError(f"{member.filename} claims {claimed:,} bytes, and cannot hold more than {most:,}")


def _load_checked(path: Path, member: str, load: Callable[[], np.ndarray]) -> np.ndarray:
    """Return what `load` does. Raise BadZipFile if the member does not match its checksum in the archive."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        while file.read(CHECKED_BYTES):
            pass
    return load()


def _inflate(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return archive[name]


def _describe_safetensors(path: Path) -> tuple[dict[str, _Entry], Mapping[str, str]]:
    """Describe arrays and return metadata. The file is 8 bytes of length, a JSON header of that length, then data."""
    with safe_open(path, "numpy"):  # checks lengths, offsets and shapes
        pass
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata, entries = header.pop("__metadata__", None) or {}, {}
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS:
            raise ValueError(f"{name!r} has dtype {entry['dtype']}, not one of {', '.join(SAFETENSORS)}")
        dtype, offset = np.dtype(SAFETENSORS[entry["dtype"]]), 8 + length + entry["data_offsets"][0]
        entries[name] = _map_array(path, dtype, tuple(entry["shape"]), offset)
    return entries, metadata
