"""Read features from the frames and columns of other libraries: pandas, polars, Arrow; none of them is imported."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nml_jax.data.features.lists import parse_list, squeeze
from nml_jax.errors import UserError

CURE = "give every row a list of numbers of the same length, as np.stack(list(X)) takes them"


def to_matrix(X: Any) -> Any:
    """Return a column of arrays as one array [N, D]; anything else as it is.

    A column is a Series of pandas or polars, a column of Arrow, an array of objects, or a frame with one column. Its
    cells may be arrays, lists, tensors, or lists written as text. A frame with a column for each feature keeps the
    names of its columns for whoever reads it next; one of Arrow becomes [N, D].

    Raises:
        UserError: a cell is missing, holds no numbers, or has another length than the first.
    """
    cells = _get_cells(X)
    if cells is None or cells.ndim != 1 or cells.dtype.kind not in "OUT" or not len(cells):
        return X if cells is None or cells.ndim == 1 else cells
    if not _is_array(cells[0]):  # a column of words or of single numbers: whoever reads it says so
        return X
    rows = [_read_cell(cell, i) for i, cell in enumerate(cells)]
    if wrong := [i for i, row in enumerate(rows) if row.shape != rows[0].shape]:
        what = f"row {wrong[0]} of X has shape {list(rows[wrong[0]].shape)}, row 0 has {list(rows[0].shape)}"
        raise UserError(what, CURE)
    return np.stack(rows)


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
        shown = "nothing" if cell is None else f"{str(cell)[:40]!r}"
        raise UserError(f"row {row} of X holds {shown}, which is not a list of numbers", CURE)
    return array.reshape(squeeze(array.shape))
