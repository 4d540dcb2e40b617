"""Check features and labels from files and arrays: finite, varied, and exact where they are class numbers."""

import contextlib
import csv
from collections.abc import Iterable, Sequence

import ml_dtypes
import numpy as np

from nml_jax import console
from nml_jax.errors import UserError


def check_finite(X: np.ndarray) -> np.ndarray:
    """Return X [N, D] as float32. Raise UserError, naming the first bad row, if a value is not finite as float32."""
    with np.errstate(over="ignore"):
        narrow = X.astype(np.float32, copy=False)
    if not (good := np.isfinite(narrow).all(1)).all():
        row = int(good.argmin())
        value = X[row][~np.isfinite(narrow[row])][0]
        what = "NaN" if np.isnan(value) else f"{value:g} (infinity in float32)"
        raise UserError(f"row {row} of X holds {what}, {(~good).sum()} rows in all", "repair or drop these rows")
    return narrow


def check_varied(blocks: Iterable[np.ndarray], what: str) -> None:
    """Raise UserError if every feature is constant: all rows [..., D] of `what`, two or more, are equal."""
    first, count = None, 0
    for block in blocks:
        rows = block.reshape(-1, block.shape[-1])
        first = rows[:1] if first is None else first
        if (rows != first).any():
            return
        count += len(rows)
    if count > 1:
        raise UserError(f"{what}: every feature is constant", "check how the features were made: all rows are equal")


def check_exact(labels: np.ndarray, what: str = "") -> None:
    """Raise UserError if labels of a floating-point dtype may have been rounded to another class.

    Whole numbers are exact up to 2⁸ in bfloat16, 2¹¹ in float16, 2²⁴ in float32 and 2⁵³ in float64.

    Args:
        labels: [N], of a floating-point dtype. NaN is left to the caller.
        what: begins the error.
    """
    limit = 2.0 ** (ml_dtypes.finfo(labels.dtype).nmant + 1)
    sizes = np.abs(labels.astype(np.float64))
    if (sizes == limit).any():  # the next number is rounded to it
        console.notice_once(
            f"{what}labels of {limit:,.0f} in {labels.dtype} are taken as they are; if some were {limit + 1:,.0f} "
            "before they were rounded, save the labels as integers"
        )
    if (wrong := np.flatnonzero(sizes > limit)).size:
        row = wrong[0]
        raise UserError(
            f"{what}{len(wrong)} labels are not exact in {labels.dtype}, as in row {row}: {float(labels[row]):g}; "
            f"whole numbers are up to {limit:,.0f}",
            "save the labels as integers, from where they were still integers",
        )


def is_swallowing(cell: str, column: int, mark: str, starts: Sequence[str]) -> bool:
    """Return whether a cell of several lines of a CSV is a stray quote that swallowed rows.

    Either a line within it is a row by itself, or its first and its last line are, with the cells around it.

    Args:
        cell: its text.
        column: its number.
        mark: what separates cells.
        starts: for each column of the table how its cells begin: "0" as numbers, "[" as lists, "" in any way.
    """
    first, *middle, last = cell.split("\n")
    if any(_is_row(line, mark, starts) for line in middle):
        return True
    return _is_row(first, mark, starts[column:]) and _is_row(last, mark, starts[: column + 1])


def _is_row(line: str, mark: str, starts: Sequence[str]) -> bool:
    """Return whether a line has as many cells as columns, and numbers and lists where they have some."""
    line = line.rstrip("\r")
    splits = [line.split(mark)]
    with contextlib.suppress(csv.Error):
        splits += csv.reader([line], delimiter=mark)
    return any(len(cells) == len(starts) and all(map(_begins, cells, starts)) for cells in splits)


def _begins(cell: str, start: str) -> bool:
    """Return whether a cell is empty or begins as those of its column do."""
    if start != "0":
        return not cell or cell.startswith(start)
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True
