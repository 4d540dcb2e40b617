"""Read cells that hold lists of numbers: Arrow's lists and tensors, and lists written as text."""

import contextlib
import json
import math
import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nml_jax.data.features.columns import is_number, is_text, quote, read_numbers
from nml_jax.errors import UserError

DEEPEST = 8  # lists within each other
SAMPLE = 100  # cells that tell what a column of text holds
WRAPPED = re.compile(r"(?:\w+\.)?(?:array|ndarray|tensor|Tensor)\((?=\[)(.*)\)", re.DOTALL)
SCALAR = re.compile(r"(?:np|numpy)\.(?:float|int|uint|bool)\w*\(([^()]*)\)")  # how NumPy 2 prints numbers in a list
START = re.compile(r"\s*[\[atnT\d.+-]")  # how the text of a list begins
BARE = 8  # numbers that a list has at least that is written without brackets
MISSING = ("None", "null", "NA", "<NA>")
JSON_CURE = "write every list as JSON does: [0.1, 0.2]"


class Lists(NamedTuple):
    """What the cells of a column hold.

    kind: type of the numbers.
    full: lengths of the lists, from the outermost; of a tensor the number of its values.
    shape: shape of a cell without sides of length 1: (D,), or (V, D).
    plain: whether the cells are flat lists, in Arrow or as JSON.
    """

    kind: pa.DataType
    full: tuple[int, ...]
    shape: tuple[int, ...]
    plain: bool


def is_list(kind: pa.DataType) -> bool:
    """Return whether `kind` is a list of anything, of fixed or any length."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in (*tests, pa.types.is_list_view, pa.types.is_large_list_view))


def find_numbers(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of the numbers in lists, or in lists of lists; None if they hold something else."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if not is_list(kind):
        return None
    while is_list(kind):
        kind = kind.value_type
    return kind if is_number(kind) else None


def describe_lists(column: pa.Array) -> Lists | None:
    """Return what the cells hold if they are lists of numbers of one shape [D] or [V, D], else None.

    The first cell that is not empty decides. A text column holds lists if at least half of its first cells do.
    """
    if is_text(column.type):
        return _describe_texts(column)
    kind = find_numbers(column.type)
    if kind is None or not (rows := column.drop_null()[:1]):
        return None
    if isinstance(column.type, pa.FixedShapeTensorType):
        order = column.type.permutation or range(len(column.type.shape))
        shape = squeeze([column.type.shape[i] for i in order])
        return Lists(kind, (math.prod(shape),), shape, False) if 0 < len(shape) < 3 and math.prod(shape) else None
    full, values = [], _get_storage(rows)
    while is_list(values.type):
        lengths = np.unique(_count_values(values))
        if len(lengths) != 1:
            return None
        full.append(int(lengths[0]))
        values = values.flatten()
    shape = squeeze(full)
    return Lists(kind, tuple(full), shape, len(full) == 1) if math.prod(full) and len(shape) < 3 else None


def _describe_texts(column: pa.Array) -> Lists | None:
    cells = [cell for cell in column[:SAMPLE].to_pylist() if cell]
    found = []
    for cell in cells if any(START.match(c) for c in cells) else ():
        with contextlib.suppress(ValueError, TypeError):
            found.append((parse_list(cell), cell))
    found = [(array, cell) for array, cell in found if array.size and len(squeeze(array.shape)) < 3]
    if not found or 2 * len(found) < len(cells):
        return None
    array, cell = found[0]
    return Lists(pa.float64(), array.shape, squeeze(array.shape), array.ndim == 1 and _is_json(cell))


def read_lists(column: pa.Array, lists: Lists, path: object, name: str, start: int) -> np.ndarray:
    """Return the numbers of a column [n, *lists.shape]; missing ones are NaN.

    Args:
        path, name: of the file and the column, for errors.
        start: number of the first row in the file.

    Raises:
        UserError: a cell is empty, has another shape, or is not a list of numbers.
    """
    if is_text(column.type):
        cells = [_read_text(cell, lists, path, name, start + i) for i, cell in enumerate(column.to_pylist())]
        return np.stack(cells) if cells else np.empty((0, *lists.shape))
    values, per_row = _get_storage(column), 1
    for length in lists.full:
        counts = _count_values(values)
        if (wrong := np.flatnonzero(counts != length)).size:
            row = start + int(wrong[0]) // per_row
            _raise_length(path, name, row, int(counts[wrong[0]]), length)
        values, per_row = values.flatten(), per_row * length
    numbers = read_numbers(values)
    if isinstance(column.type, pa.FixedShapeTensorType):
        order = column.type.permutation or range(len(column.type.shape))
        numbers = numbers.reshape(-1, *column.type.shape).transpose(0, *(1 + i for i in order))
    return numbers.reshape(-1, *lists.shape)


def _read_text(cell: str | None, lists: Lists, path: object, name: str, row: int) -> np.ndarray:
    try:
        array = parse_list(cell) if cell else np.empty(0)
    except (ValueError, TypeError) as e:
        cause = f"{path}: column {name!r} holds {quote(str(cell))} in row {row}, which "
        cause += "was shortened with ... when it was printed" if "..." in str(cell) else "is not a list of numbers"
        raise UserError(cause, JSON_CURE) from e
    shape = squeeze(array.shape)
    if len(shape) == len(lists.shape) == 1 and shape != lists.shape:
        _raise_length(path, name, row, array.size, lists.shape[0])
    if shape != lists.shape:
        what = f"{path}: row {row} of {name!r} has shape {list(shape)}, not {list(lists.shape)}"
        raise UserError(what, "give every row a list of the same length")
    return array.reshape(shape)


def _raise_length(path: object, name: str, row: int, found: int, wanted: int) -> None:
    cause = f"{path}: row {row} of {name!r} has {found} values, not {wanted}"
    raise UserError(cause, "give every row a list of the same length")


def parse_list(text: str) -> np.ndarray:
    """Return a list of numbers, float64, that is written as JSON, as Python, NumPy or PyTorch print it, or bare.

    Raises:
        ValueError, TypeError: it is something else, is ragged, or was shortened with "...".
    """
    try:
        return _to_array(json.loads(text))
    except json.JSONDecodeError:
        text = SCALAR.sub(r"\1", text.strip())
    except (RecursionError, OverflowError) as e:
        raise ValueError("not a list of numbers") from e
    if wrapped := WRAPPED.fullmatch(text):
        text = wrapped[1][: wrapped[1].rindex("]") + 1]  # what follows are dtype=..., device=...
    if not (text.startswith("[") and text.endswith("]")):
        return _parse_bare(text)
    whole: list = []
    stack = [whole]
    for token in re.findall(r"[\[\]]|[^\s,\[\]]+", text):
        if token == "[":
            stack[-1].append([])
            stack.append(stack[-1][-1])
        elif token == "]":
            stack.pop()
        else:
            stack[-1].append(math.nan if token in MISSING else float(token))
        if not 0 < len(stack) <= DEEPEST:
            raise ValueError("a bracket too many")
    if len(stack) != 1 or len(whole) != 1:
        raise ValueError("a bracket too few")
    return _to_array(whole[0])


def _parse_bare(text: str) -> np.ndarray:
    """Return the numbers of a list without brackets, separated by spaces, commas or semicolons; BARE of them or more.

    Raises:
        ValueError: they are fewer, as in "1,234,567" or a size of an image, or something else.
    """
    tokens = text.split(";") if ";" in text else re.split(r"\s*,\s*|\s+", text.strip())
    if len(tokens) < BARE:
        raise ValueError("not in brackets")
    return np.array([math.nan if token.strip() in MISSING else float(token) for token in tokens])


def _to_array(value: object) -> np.ndarray:
    """Convert nested lists of numbers. Raise ValueError if they are ragged, or hold text."""
    array = np.asarray(value) if isinstance(value, list) else np.asarray("")
    if array.dtype.kind not in "biufO":
        raise ValueError("not numbers")
    if array.dtype == object and any(isinstance(x, str) for x in array.ravel()):  # text beside null
        raise ValueError("not numbers")
    return array.astype(np.float64)


def squeeze(shape: tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """Return a shape without sides of length 1, but with one side at least."""
    return tuple(side for side in shape if side != 1) or (1,)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _get_storage(column: pa.Array) -> pa.Array:
    """Return what an extension array stores; another array itself."""
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _count_values(lists: pa.Array) -> np.ndarray:
    """Return the lengths of lists, 0 where one is missing."""
    return pc.call_function("list_value_length", [lists]).fill_null(0).to_numpy()
