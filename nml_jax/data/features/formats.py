"""Share what all formats of feature files need: choices by name, valid labels, errors of damaged files."""

import contextlib
import lzma
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import ml_dtypes
import numpy as np
import pyarrow as pa
from safetensors import SafetensorError

from nml_jax import console
from nml_jax.data.features.checks import check_exact
from nml_jax.errors import UserError
from nml_jax.processes.limits import read_memory_limit

LABELS = ("label", "labels", "y", "target", "class")  # the default names of labels
FEATURES = ("features", "X", "x", "embeddings", "embedding")  # preferred if several arrays could be the features
NO_LABELS = np.empty(0, np.int64)
SURROGATES = (0xD800, 0xE000)  # halves of characters in UTF-16, which are none by themselves
LONGEST = 1 << 16  # bytes of one label at most: a longer one is not a name


T = TypeVar("T")


class Store(Protocol):
    """Access to stored values [n, ...]: rows by index, or all rows in order, `size` at a time."""

    def take(self, index: np.ndarray) -> np.ndarray: ...
    def scan(self, size: int) -> Iterator[np.ndarray]: ...


class Content(NamedTuple):
    """The features and labels of a file. `label`, `columns`, `left_out` and `ids` are names of columns in a table.

    ids: why each column was taken for an id; they are among those left out.
    """

    labels: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    store: Store
    label: str = ""
    columns: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    ids: Mapping[str, str] = MappingProxyType({})


def find_format(path: Path) -> str:
    """Return the format that a file's name says: its last suffix in lower case; of packed text, that before .gz.

    The suffixes .ndjson and .jsonl are one format, as are .arrow, .feather and .ipc.
    """
    name = path.name.lower()
    inner = Path(name.removesuffix(".gz")).suffix
    suffix = inner if inner in (".csv", ".tsv", ".jsonl", ".ndjson") else Path(name).suffix
    return {".ndjson": ".jsonl", ".feather": ".arrow", ".ipc": ".arrow"}.get(suffix, suffix)


def is_text_table(path: Path) -> bool:
    """Return whether a file is a table of text, whose cells have no types."""
    return find_format(path) in (".csv", ".tsv")


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn what the readers raise on a damaged file into a UserError that names it."""
    try:
        yield
    except MemoryError as e:  # Arrow's, too
        raise UserError(f"{path} does not fit into memory: {e}", "give it more memory, or fewer rows or columns") from e
    except (
        *(OSError, ValueError, EOFError, RuntimeError, OverflowError, struct.error),
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, SafetensorError, pa.ArrowException),
    ) as e:
        message = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"cannot read {path}: {message}", "repair the file, or write it again") from e


def check_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    """Return labels [N] as integers, strings or bools. Raise UserError for any other dtype or shape."""
    check_label_shape(labels.shape, path)
    if labels.dtype.kind == "U":
        check_unicode(labels, path)
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8")
    if labels.dtype.kind == "f" or labels.dtype == ml_dtypes.bfloat16:
        stored, labels = labels, labels.astype(np.float64)
        whole = np.isfinite(labels) & (labels == np.rint(labels))
        if not whole.all():
            bad = np.flatnonzero(~whole)
            raise UserError(
                f"{path}: {len(bad)} labels are not classes, as in row {bad[0]}: {labels[bad[0]]}",
                "give every row a class, as a whole number or text; --config.features.regression=True predicts numbers",
            )
        check_exact(stored, f"{path}: ")
        return labels.astype(np.int64)
    if labels.dtype.kind not in "biuU":
        raise UserError(f"{path}: the labels have dtype {labels.dtype}", "save them as integers or as text (dtype=str)")
    return np.asarray(labels)


def check_scores(labels: np.ndarray, path: Path) -> np.ndarray:
    """Return labels [N] that are scores as float32. Raise UserError if one is not a finite number."""
    check_label_shape(labels.shape, path)
    kind = labels.dtype.kind
    if kind not in "iufUS" and labels.dtype != ml_dtypes.bfloat16:
        raise UserError(f"{path}: the scores have dtype {labels.dtype}", "save them as real numbers")
    try:
        scores = labels.astype(np.float64)
    except ValueError:
        cells = labels.astype(str).tolist()
        row = next(i for i, cell in enumerate(cells) if _read_number(cell) is None)
        raise UserError(
            f"{path}: row {row} has {cells[row]!r} where a number is to be predicted",
            "correct the cell, name another column with features.label, or leave features.regression=False for classes",
        ) from None
    if not (finite := np.isfinite(scores)).all():
        row = int(finite.argmin())
        raise UserError(f"{path}: row {row} has the score {scores[row]}", "repair the row, or leave it out")
    return scores.astype(np.float32)


def _read_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def check_unicode(texts: np.ndarray, path: Path) -> None:
    """Raise UserError if texts of a NumPy dtype hold a code that is not a character, as in a damaged file."""
    if not texts.size or not texts.dtype.itemsize:
        return
    codes = np.ascontiguousarray(texts).view(np.dtype(np.uint32).newbyteorder(texts.dtype.byteorder))
    wrong = (codes > sys.maxunicode) | ((codes >= SURROGATES[0]) & (codes < SURROGATES[1]))
    if wrong.any():
        row = int(wrong.argmax()) * 4 // texts.dtype.itemsize
        raise UserError(f"{path}: the text in row {row} is not Unicode", "repair the file, or write it again")


def check_label_shape(shape: tuple[int, ...], path: Path) -> None:
    """Raise UserError unless labels of that shape are [N]."""
    if len(shape) != 1:
        cure = "give class numbers [rows]"
        if len(shape) == 2:
            cure += ": labels.reshape(-1)" if shape[1] == 1 else ": labels.argmax(1), if they are one-hot"
        raise UserError(f"{path}: the labels have shape {list(shape)}", cure)


def check_label_bytes(size: float, path: Path) -> None:
    """Raise UserError, before labels are read, if one takes more than LONGEST bytes."""
    if size > LONGEST:
        raise UserError(
            f"{path}: each label takes {size:,.0f} bytes, {LONGEST:,} at most",
            "give the numbers or the names of the classes",
        )


def check_label_memory(rows: int, size: float, path: Path) -> None:
    """Raise UserError, before labels are read, if `rows` of them, of `size` bytes each, do not fit into memory twice.

    They are copied at least once: a few kilobytes of a file may stand for more labels than any memory holds.
    """
    limit = read_memory_limit()
    if 2 * rows * size > limit:
        raise UserError(
            f"{path}: {rows:,} labels of {size:,.0f} bytes take {rows * size / 2**30:,.1f} GiB, and this process may "
            f"use {limit / 2**30:,.1f} GiB",
            "give shorter names or fewer rows, or more memory",
        )


def check_count(labels: int, rows: int, spec: object) -> None:
    """Raise UserError unless a file has as many labels as rows."""
    if labels != rows:
        raise UserError(f"{spec} has {rows} rows of features and {labels} labels", "give one label for every row")


def check_class_names(path: Path, names: Sequence[Any]) -> tuple[str, ...]:
    """Return the class names that a file holds. Raise UserError if they are not distinct strings."""
    other = [name for name in names if not isinstance(name, str)]
    twice = [] if other else [name for name, count in Counter(names).items() if count > 1]
    if other or twice:
        what = f"{twice[0]!r} twice" if twice else f"{other[0]!r}, which is not a string"
        raise UserError(
            f"{path}: class_names in its metadata hold {what}",
            "write them as a JSON list of distinct strings, one for every class",
        )
    return tuple(names)


def keep_valid_labels(path: Path, read: Callable[[], T], none: T, labelled: bool) -> T:
    """Return what `read` does. If labels are not needed (`labelled` is False), log its UserError and return `none`."""
    try:
        with read_errors(path):
            return read()
    except UserError as e:
        if labelled:
            raise
        console.notice(f"labels are not used: {e.cause}")
        return none


def choose_label(path: Path, names: Iterable[str], label: str, labelled: bool) -> str | None:
    """Return the name of the label array or column; None if there is none and none is needed.

    Raises:
        UserError: `label` is missing, no label is found though one is needed (`labelled`), or any of several may be
            it. In the last case, if none is needed, a line is logged and None returned.
    """
    names = list(names)
    matches = [name for name in ([label] if label else LABELS) if name in names]
    if len(matches) > 1:
        return keep_valid_labels(path, lambda: raise_several_labels(path, matches), None, labelled)
    if not matches and (labelled or label):
        has = f"has no {label!r}" if label else f"has none of {', '.join(LABELS)}"
        cure = "name its labels with label=NAME (--config.features.label=NAME)"
        if is_text_table(path):
            cure += "; the first line must name the columns"
        raise UserError(f"{path} {has}; it has {list_names(names)}", cure)
    return matches[0] if matches else None


def raise_several_labels(path: Path, names: list[str]) -> NoReturn:
    """Raise UserError because any of `names` may be the labels."""
    raise UserError(
        f"{path}: any of {list_names(names)} may be the labels",
        f"name them with label=NAME (--config.features.label={names[0]})",
    )


def choose_features(path: Path, candidates: list[str]) -> str:
    """Return the only candidate, or the first of FEATURES among several. Raise UserError if none of them is there."""
    preferred = [name for name in FEATURES if name in candidates]
    if len(candidates) > 1 and not preferred:
        raise UserError(
            f"{path}: any of {list_names(candidates)} may be the features",
            "name one with columns=NAME (--config.features.columns=NAME)",
        )
    return (preferred or candidates)[0]


def list_names(names: Iterable[str]) -> str:
    """Return names as an error shows them, twelve at most."""
    return console.shorten(map(repr, names))
