"""Tell columns of numbers, of lists and of text apart, and raise errors that name a bad cell."""

import contextlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from nml_jax.errors import UserError

LISTS = pa.list_(pa.float64())  # type of a list written as JSON
MISSING = tuple(pyarrow.csv.ConvertOptions().null_values)  # how CSV files write a missing value
TRUTHS = (*pyarrow.csv.ConvertOptions().true_values, *pyarrow.csv.ConvertOptions().false_values)
# Numbers as people write them, which float() does not read: 1,234.5, 1'234, 0,5, 12 %.
WRITTEN = re.compile(r"[+-]?\d[\d,'\u00a0\u202f]*([.,]\d+)?([eE][+-]?\d+)?\s*%?")
NUMBERS = "correct the cell; write numbers as 1234.5, with a point and without separators of thousands or units"


def is_number(kind: pa.DataType) -> bool:
    """Return whether `kind` is a type of numbers or booleans."""
    return any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


def is_list(kind: pa.DataType) -> bool:
    """Return whether `kind` is a list of numbers, of fixed or any length."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests) and is_number(kind.value_type)


def is_text(kind: pa.DataType) -> bool:
    """Return whether `kind` is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def find_kind(column: pa.Array) -> tuple[pa.DataType, int]:
    """Return the type of a column and the length of its first list, or 0. Lists of numbers as JSON have type LISTS.

    Empty cells are skipped.
    """
    first = next((value for cell in column if (value := cell.as_py()) not in (None, "")), None)
    kind = column.type
    if is_text(kind) and first:
        with contextlib.suppress(ValueError, TypeError):
            first = json.loads(first)
            if isinstance(first, list):
                kind = pa.scalar(first, LISTS).type
    return kind, len(first) if first and is_list(kind) else 0


def parse_lists(column: pa.Array, what: str, start: int) -> pa.Array:
    """Parse a column of JSON lists as LISTS. `what` names it in errors; `start` is the number of its first row.

    Raises:
        UserError: a cell is not a list of numbers.
    """
    try:
        return pa.array([json.loads(cell or "null") for cell in column.to_pylist()], LISTS)
    except (ValueError, TypeError) as e:  # Arrow's errors are both
        if len(column) == 1:
            raise UserError(
                f"{what} holds {_quote(column[0].as_py())} in row {start}, which is not a list of numbers",
                "write every list as JSON does: [0.1, 0.2]",
            ) from e
        for i in range(len(column)):
            parse_lists(column[i : i + 1], what, start + i)
        raise


def read_numbers(column: pa.Array) -> np.ndarray:
    """Convert a column of numbers to NumPy; missing values become NaN."""
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    return column.to_numpy(zero_copy_only=False)


def check_slips(column: pa.Array, what: str) -> None:
    """Raise UserError if a column of text was meant as numbers: more than half of its cells look like numbers."""
    cells = {i: cell for i, cell in enumerate(column.to_pylist()) if cell is not None and cell not in MISSING}
    wrong = [i for i, cell in cells.items() if not _is_numeral(cell)]
    meant = len(cells) - len(wrong) + sum(WRITTEN.fullmatch(cells[i].strip()) is not None for i in wrong)
    if 2 * meant > len(cells):
        if wrong:
            raise UserError(f"{what} holds {_quote(cells[wrong[0]])} in row {wrong[0]}, which is not a number", NUMBERS)
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
        if cell is not None and not (cell in TRUTHS if truths else _is_numeral(cell)):
            kind = "neither true nor false" if truths else "not a number"
            raise UserError(f"{what} holds {_quote(cell)} in row {row}, which is {kind}", NUMBERS)


def _quote(cell: str) -> str:
    """Return a cell as an error shows it, 40 characters at most."""
    return repr(cell if len(cell) <= 40 else f"{cell[:40]}…")


def _is_numeral(cell: str) -> bool:
    """Return whether float() reads a cell."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
