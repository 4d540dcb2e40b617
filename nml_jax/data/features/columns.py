"""Columns of tables: which hold numbers, which lists of them, and what is named where a cell is neither."""

import contextlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from nml_jax.errors import UserError

LISTS = pa.list_(pa.float64())  # what a list written as JSON becomes
MISSING = tuple(pyarrow.csv.ConvertOptions().null_values)  # how CSV writes that there is no value
TRUTHS = (*pyarrow.csv.ConvertOptions().true_values, *pyarrow.csv.ConvertOptions().false_values)
# Numbers as people write them and computers do not read them: 1,234.5, 1'234, 0,5, 12 %.
WRITTEN = re.compile(r"[+-]?\d[\d,'\u00a0\u202f]*([.,]\d+)?([eE][+-]?\d+)?\s*%?")
NUMBERS = "correct the cell; write numbers as 1234.5, with a point and without separators of thousands or units"


def is_number(kind: pa.DataType) -> bool:
    return any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether `kind` is a list of numbers, of fixed or any length."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests) and is_number(kind.value_type)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def find_kind(column: pa.Array) -> tuple[pa.DataType, int]:
    """The type of a column, LISTS where it holds lists of numbers as JSON, and the length of its first list, or 0.

    Cells without a value say nothing of either.
    """
    first = next((value for cell in column if (value := cell.as_py()) not in (None, "")), None)
    kind = column.type
    if is_text(kind) and first:
        with contextlib.suppress(ValueError, TypeError):
            first = json.loads(first)
            if isinstance(first, list):
                kind = pa.scalar(first, LISTS).type
    return kind, len(first) if first and is_list(kind) else 0


def from_json(column: pa.Array, what: str, start: int) -> pa.Array:
    """A column of text as LISTS. `what` names it, and `start` is the number of its first row.

    Raises:
        UserError: a cell is no list of numbers.
    """
    try:
        return pa.array([json.loads(cell or "null") for cell in column.to_pylist()], LISTS)
    except (ValueError, TypeError) as e:  # Arrow's errors are both
        if len(column) == 1:
            raise UserError(
                f"{what} holds {_shown(column[0].as_py())} in row {start}, which is no list of numbers",
                "write every list as JSON does: [0.1, 0.2]",
            ) from e
        for i in range(len(column)):
            from_json(column[i : i + 1], what, start + i)
        raise


def read_numbers(column: pa.Array) -> np.ndarray:
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    return column.to_numpy(zero_copy_only=False)


def refuse_slips(column: pa.Array, what: str) -> None:
    """Raises UserError if a column of text was meant to be of numbers: more than half of its cells are."""
    cells = {i: cell for i, cell in enumerate(column.to_pylist()) if cell is not None and cell not in MISSING}
    wrong = [i for i, cell in cells.items() if not _is_numeral(cell)]
    meant = len(cells) - len(wrong) + sum(WRITTEN.fullmatch(cells[i].strip()) is not None for i in wrong)
    if 2 * meant > len(cells):
        if wrong:
            raise UserError(f"{what} holds {_shown(cells[wrong[0]])} in row {wrong[0]}, which is no number", NUMBERS)
        raise UserError(f"{what} holds numbers as text", "write the column as numbers")


def refuse_words(column: pa.Array, what: str, start: int, *, truths: bool) -> None:
    """Raises UserError, which names the row, if a cell of text is no number, or with `truths` neither true nor false.

    `start` is the number of the first row.
    """
    missing = pc.call_function("is_in", [column], pc.SetLookupOptions(pa.array(MISSING)))
    given = pc.call_function("if_else", [missing, pa.scalar(None, column.type), column])
    with contextlib.suppress(pa.ArrowInvalid):
        given.cast(pa.bool_() if truths else pa.float64())
        return
    for row, cell in enumerate(given.to_pylist(), start):
        if cell is not None and not (cell in TRUTHS if truths else _is_numeral(cell)):
            kind = "neither true nor false" if truths else "no number"
            raise UserError(f"{what} holds {_shown(cell)} in row {row}, which is {kind}", NUMBERS)


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else f"{cell[:40]}…")


def _is_numeral(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
