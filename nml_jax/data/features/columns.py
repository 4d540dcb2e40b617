"""Tell columns of numbers and of text apart, and raise errors that name a bad cell."""

import contextlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from nml_jax.errors import UserError

MISSING = tuple(pyarrow.csv.ConvertOptions().null_values)  # how CSV files write a missing value
TRUTHS = (*pyarrow.csv.ConvertOptions().true_values, *pyarrow.csv.ConvertOptions().false_values)
# Numbers as people write them, which float() does not read: 1,234.5, 1'234, 0,5, 12 %.
WRITTEN = re.compile(r"[+-]?\d[\d,'\u00a0\u202f]*([.,]\d+)?([eE][+-]?\d+)?\s*%?")
NUMBERS = "correct the cell; write numbers as 1234.5, with a point and without separators of thousands or units"


def is_number(kind: pa.DataType) -> bool:
    """Return whether `kind` is a type of numbers or booleans."""
    if isinstance(kind, pa.Bool8Type):
        return True
    return any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


def is_text(kind: pa.DataType) -> bool:
    """Return whether `kind` is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def read_numbers(column: pa.Array) -> np.ndarray:
    """Convert a column of numbers to NumPy; missing values become NaN."""
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    return column.to_numpy(zero_copy_only=False)


def check_slips(column: pa.Array, what: str) -> None:
    """Raise UserError if a column of text was meant as numbers: more than half of its cells look like numbers."""
    cells = {i: cell for i, cell in enumerate(column.to_pylist()) if cell is not None and cell not in MISSING}
    wrong = [i for i, cell in cells.items() if not is_numeral(cell)]
    meant = len(cells) - len(wrong) + sum(WRITTEN.fullmatch(cells[i].strip()) is not None for i in wrong)
    if 2 * meant > len(cells):
        if wrong:
            raise UserError(f"{what} holds {quote(cells[wrong[0]])} in row {wrong[0]}, which is not a number", NUMBERS)
        raise UserError(f"{what} holds numbers as text", "write the column as numbers")


def check_words(column: pa.Array, what: str, start: int, *, truths: bool) -> None:
    """Raise UserError, naming the row, if a cell of text is not a number, or not a boolean if `truths`.

    `start` is the number of the first row.
    """
    missing = pc.call_function("is_in", [column], pc.SetLookupOptions(pa.array(MISSING)))
    given = pc.call_function("if_else", [missing, pa.scalar(None, column.type), column])
    with contextlib.suppress(pa.ArrowInvalid):
        given.cast(pa.bool_() if truths else pa.float64())
        return
    for row, cell in enumerate(given.to_pylist(), start):
        if cell is not None and not (cell in TRUTHS if truths else is_numeral(cell)):
            kind = "neither true nor false" if truths else "not a number"
            raise UserError(f"{what} holds {quote(cell)} in row {row}, which is {kind}", NUMBERS)


def quote(cell: str) -> str:
    """Return a cell as an error shows it, 40 characters at most."""
    return repr(cell if len(cell) <= 40 else f"{cell[:40]}…")


def is_numeral(cell: str) -> bool:
    """Return whether float() reads a cell."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
