"""Read features from the frames and columns of other libraries: pandas, polars, Arrow; none of them is imported."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nml_jax.data.features.columns import is_numeral, quote
from nml_jax.data.features.lists import START, parse_list, squeeze
from nml_jax.errors import UserError

CURE = "give every row a list of numbers of the same length, as np.stack(list(X)) takes them"
LISTS = re.compile(r"object|list|array|fixed_size", re.IGNORECASE)  # how libraries call columns whose cells hold more
WORDS = re.compile(r"object|str|utf8|cat|enum|dictionary", re.IGNORECASE)  # and those that may hold words


def to_matrix(X: Any) -> Any:
    """Return a column of arrays as one array [N, D]; anything else as it is.

    A column is a Series of pandas or polars, a column of Arrow, an array of objects, or a frame with one column. Its
    cells may be arrays, lists, tensors, or lists written as text. A frame with a column for each feature keeps the
    names of its columns for whoever reads it next; one of Arrow becomes [N, D].

    Raises:
        UserError: a cell is missing, holds no numbers, or has another length than the first; a frame has columns of
            arrays or of words beside others, or was not collected yet.
    """
    _check_frame(X)
    cells = _get_cells(X)
    if cells is None or cells.ndim != 1 or cells.dtype.kind not in "OUT" or not len(cells):
        return X if cells is None or cells.ndim == 1 else cells
    first = next((cell for cell in cells if not _is_missing(cell)), None)
    if isinstance(first, str) and "..." in first and START.match(first):
        cause = f"the lists in X were shortened with ... when they were printed, as in row 0: {quote(first)}"
        raise UserError(cause, "take the arrays themselves; in text, json.dumps(list(row)) keeps every number")
    if not _is_array(first):  # a column of words or of single numbers: whoever reads it says so
        return X
    rows = [_read_cell(cell, i) for i, cell in enumerate(cells)]
    if wrong := [i for i, row in enumerate(rows) if row.shape != rows[0].shape]:
        what = f"row {wrong[0]} of X has shape {list(rows[wrong[0]].shape)}, row 0 has {list(rows[0].shape)}"
        raise UserError(what, CURE)
    return np.stack(rows)


def check_filled(y: Any) -> Any:
    """Return labels as they are. Raise UserError if they are a column of words and one is missing."""
    cells = _get_cells(y)
    if cells is None or cells.ndim != 1 or cells.dtype.kind not in "OT":
        return y
    if missing := [i for i, cell in enumerate(cells) if _is_missing(cell)]:
        cause = f"y has NaN or nothing in {len(missing)} rows, such as row {missing[0]}"
        raise UserError(cause, "give every row a label, or drop these rows")
    return y


def _check_frame(X: Any) -> None:
    """Raise UserError if a frame of pandas or polars was not collected, or if columns of it are not features."""
    if hasattr(X, "collect") and hasattr(X, "columns") and not hasattr(X, "shape"):
        raise UserError("X is a lazy frame", "give X.collect()")
    if len(getattr(X, "shape", ())) != 2 or not hasattr(X, "dtypes") or X.shape[1] < 2:
        return
    named = zip(X.columns, map(str, X.dtypes), strict=True)
    doubtful = [name for name, kind in named if LISTS.match(kind) or WORDS.match(kind)]
    firsts = {name: next((cell for cell in X[name] if not _is_missing(cell)), None) for name in doubtful}
    if name := next((name for name, cell in firsts.items() if _is_array(cell)), None):
        raise UserError(
            f"column {name!r} of X holds an array in each row, and X has {X.shape[1]} columns",
            f"give the embedding alone: X[{name!r}], or np.stack(list(X[{name!r}]))",
        )
    for name, cell in firsts.items():
        if isinstance(cell, str) and not is_numeral(cell):
            raise UserError(f"column {name!r} of X holds words, such as {quote(cell)}", "leave it out of X")


def _is_missing(cell: Any) -> bool:
    """Return whether a cell is None, NaN or another library's mark of a missing value."""
    return cell is None or (np.ndim(cell) == 0 and not isinstance(cell, str) and bool(np.any(cell != cell)))


def _get_cells(X: Any) -> np.ndarray | None:
    """Return the cells of a column [N], or a matrix [N, D]; None if X is neither a column nor a table of Arrow."""
    if isinstance(X, np.ndarray):
        return X.reshape(-1) if X.dtype == object and X.shape[1:] == (1,) else X
    shape = getattr(X, "shape", ())
    if hasattr(X, "to_numpy") and len(shape) in (1, 2):
        if shape[1:] not in ((), (1,)):
            return None  # a frame with several columns
        cells = X.to_numpy()
        return cells.reshape(-1) if len(shape) == 2 and cells.dtype == object else None if len(shape) == 2 else cells
    if hasattr(X, "__arrow_c_stream__") or hasattr(X, "__arrow_c_array__"):
        return _read_arrow(X)
    return None


def _read_arrow(X: Any) -> np.ndarray:
    """Return a column [N] or a table of numbers [N, D] that a library gives by Arrow's interface."""
    if isinstance(X, pa.Array | pa.ChunkedArray):
        return X.to_numpy(zero_copy_only=False) if isinstance(X, pa.Array) else X.to_numpy()
    table = pa.table(X)
    columns = [column.to_numpy() for column in table.columns]
    if len(columns) == 1 and columns[0].dtype == object:
        return columns[0]
    return np.stack(columns, 1)


def _is_array(cell: Any) -> bool:
    """Return whether a cell holds several numbers."""
    if isinstance(cell, str):
        return _parse(cell) is not None
    return isinstance(cell, Sequence | np.ndarray) or (hasattr(cell, "__array__") and np.ndim(cell) > 0)


def _parse(text: str) -> np.ndarray | None:
    try:
        return parse_list(text)
    except (ValueError, TypeError):
        return None


def _read_cell(cell: Any, row: int) -> np.ndarray:
    """Return the numbers in a cell, without sides of length 1. Raise UserError if it holds none."""
    try:
        array = parse_list(cell) if isinstance(cell, str) else np.asarray(cell)
    except (ValueError, TypeError):
        array = np.empty(0)
    if array.dtype == object and array.ndim:
        array = np.asarray(array.tolist()) if len({np.shape(x) for x in array}) == 1 else np.empty(0)
    if not array.ndim or not array.size or array.dtype.kind not in "biuf":
        shown = "nothing" if _is_missing(cell) else f"{str(cell)[:40]!r}"
        raise UserError(f"row {row} of X holds {shown}, which is not a list of numbers", CURE)
    return array.reshape(squeeze(array.shape))
