"""Share what all formats of feature files need: choices by name, valid labels, errors of damaged files."""

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, TypeVar

import ml_dtypes
import numpy as np
import pyarrow as pa
from safetensors import SafetensorError

from nml_jax import console
from nml_jax.errors import UserError

LABELS = ("label", "labels", "y", "target", "class")  # the default names of labels
FEATURES = ("features", "X", "x", "embeddings")  # preferred if several arrays could be the features
NO_LABELS = np.empty(0, np.int64)
IDS = (
    "id",
    "ids",
    "index",
    "",
    "Unnamed: 0",
    "__index_level_0__",
)  # never features; the last three are pandas' indices


T = TypeVar("T")


class Store(Protocol):
    """Access to stored values [n, ...]: rows by index, or all rows in order, `size` at a time."""

    def take(self, index: np.ndarray) -> np.ndarray: ...
    def scan(self, size: int) -> Iterator[np.ndarray]: ...


class Content(NamedTuple):
    """The features and labels of a file. `label`, `columns` and `left_out` are names of columns in a table."""

    labels: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    store: Store
    label: str = ""
    columns: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn what the readers raise on a damaged file into a UserError that names it."""
    try:
        yield
    except (
        *(OSError, ValueError, EOFError, RuntimeError),
        *(zipfile.BadZipFile, zlib.error, SafetensorError, pa.ArrowException),
    ) as e:
        message = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"cannot read {path}: {message}", "repair the file, or write it again") from e


def check_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    """Return labels [N] as integers, strings or bools. Raise UserError for any other dtype or shape."""
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
        whole = (np.abs(labels) < 2**53) & (labels == np.rint(labels))  # False for NaN and infinity
        if not whole.all():
            bad = np.flatnonzero(~whole)
            raise UserError(
                f"{path}: {len(bad)} labels are not classes, as in row {bad[0]}: {labels[bad[0]]}",
                "give every row a class, as a whole number or text; regression is not supported",
            )
        return labels.astype(np.int64)
    if labels.dtype.kind not in "biuU":
        raise UserError(f"{path}: the labels have dtype {labels.dtype}", "save them as integers or as text (dtype=str)")
    return np.asarray(labels)


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
        if path.suffix.lower() in (".csv", ".tsv"):
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
    shown = list(map(repr, names))
    return ", ".join(shown[:12]) + f" and {len(shown) - 12} more" * (len(shown) > 12) or "nothing"
