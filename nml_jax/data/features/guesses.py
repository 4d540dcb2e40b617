"""Guess from names and cells what a column of a table is: an id, or an embedding that cannot be read."""

import base64
import contextlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from nml_jax.data.features.columns import is_number, is_text
from nml_jax.data.features.lists import SAMPLE, find_numbers, is_list

ID_WORDS = {"id", "ids", "idx", "index", "row", "key", "uuid", "guid"}
ANYWHERE = {"id", "ids", "idx", "uuid", "guid"}  # they mean an id wherever they stand in a name
COUNTED = {"number", "num", "no", "nr", "level"}  # what may follow "row" or "index"
THINGS = "row|sample|image|img|item|user|doc|document|file|record|patient|customer|product|object|entry|text|video"
GLUED = re.compile(rf"({THINGS})({'|'.join(sorted(ID_WORDS))}|no|num|number)", re.IGNORECASE)
ALWAYS = re.compile(r"|unnamed: 0|__index_level_\d+__", re.IGNORECASE)  # pandas' indices
PERHAPS = re.compile(r"unnamed: \d+([._]\d+)*|level_\d+", re.IGNORECASE)
BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
FEWEST = 8  # rows that must count up before a column is taken for an id

NAMES = {"emb", "embs", "embed", "embedding", "embeddings", "vector", "vectors", "vec", "vecs", "features", "feature",
         "feat", "feats", "representation", "representations", "encoding", "encodings", "latent", "latents", "hidden",
         "activations"}  # fmt: skip
# Types of floats, and the sizes that nine of ten numbers of an embedding have in them.
FLOATS = {"<f4": (1e-9, 1e6), "<f8": (1e-9, 1e6), "<f2": (1e-3, 64)}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
ITEM = rf"(?:{NUMBER}|nan|inf|\.\.\.)"
NUMBERS = re.compile(rf"\s*[\[({{<]*\s*{ITEM}(?:[\s,;|\[\]()]+{ITEM})+[\s\])}}>]*", re.IGNORECASE)
ARRAY_FILE = re.compile(r".+\.(npy|npz|pt|pth|safetensors|bin|h5)", re.IGNORECASE)


def is_embedding_name(name: str) -> bool:
    """Return whether a column's name says that it holds an embedding."""
    return not NAMES.isdisjoint(_split_words(name))


def is_id(name: str, column: pa.Array) -> bool:
    """Return whether a column is an id by its name. Names such as `mass_index` are not, where there are fractions."""
    words = _split_words(name)
    if ALWAYS.fullmatch(name.strip()) or name.strip().lower() in ID_WORDS:
        return True
    last = [word for word in words if not word.isdigit() and word not in COUNTED][-1:]
    perhaps = not ANYWHERE.isdisjoint(words) or (last and last[0] in ID_WORDS) or GLUED.fullmatch(name.strip())
    return bool(perhaps or PERHAPS.fullmatch(name.strip())) and not _has_fractions(column)


def _split_words(name: str) -> list[str]:
    """Split a name at signs, digits and capitals: "sampleID_2" is sample, id, 2."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def _has_fractions(column: pa.Array) -> bool:
    """Return whether a column holds numbers that are not whole, or lists that are not of whole numbers."""
    numbers = find_numbers(column.type)
    if numbers is not None:
        return not pa.types.is_integer(numbers)
    if is_text(column.type):
        return any("[" in cell and "." in cell for cell in column[:SAMPLE].drop_null().to_pylist())
    if not pa.types.is_floating(column.type) and not pa.types.is_decimal(column.type):
        return False
    values = column.drop_null().cast(pa.float64()).to_numpy()
    return bool((values != np.rint(values)).any())


class Counter:
    """Find out, block by block, whether a column of whole numbers counts up, as ids do."""

    def __init__(self):
        self.rows, self._first, self._last, self._step, self._even, self._up = 0, 0.0, 0.0, 0.0, True, True

    def add(self, values: np.ndarray) -> bool:
        """Take the next rows [n]. Return False once it is clear that the column does not count up."""
        if not self._up or not len(values):
            return self._up
        values = values.astype(np.float64)
        if not self.rows:
            self._first = values[0]
        steps = np.diff(values, prepend=[self._last] if self.rows else [])
        self._up = bool(np.isfinite(values).all() and (values == np.rint(values)).all() and (steps > 0).all())
        if len(steps) and self._up:
            self._step = self._step or steps[0]
            self._even = self._even and bool((steps == self._step).all())
        self.rows, self._last = self.rows + len(values), values[-1]
        return self._up

    def counts(self) -> bool:
        """Return whether the rows so far count up: by one step, or with few gaps, as rows of a part of a set do."""
        dense = self._last - self._first <= 4 * (self.rows - 1)
        return self._up and self.rows >= FEWEST and (self._even or dense)


def find_counting(blocks: Iterable[np.ndarray]) -> list[int]:
    """Return the positions of features that count up as ids do, in the first views of blocks [n, V, D]."""
    counters: dict[int, Counter] = {}
    for i, block in enumerate(blocks):
        rows = block[:, 0]
        counters = counters if i else {j: Counter() for j in range(rows.shape[1])}
        counters = {j: counter for j, counter in counters.items() if counter.add(rows[:, j])}
        if not counters:
            break
    return [j for j, counter in counters.items() if counter.counts()]


def measure_unread(name: str, column: pa.Array) -> int:
    """Return how many numbers a cell holds if a column that cannot be read looks like an embedding, else 0."""
    named, kind, cells = is_embedding_name(name), column.type, column[:SAMPLE].drop_null()
    if not len(cells):
        return int(named)  # nothing but missing cells
    if is_text(kind):
        return _count_written(cells.to_pylist(), named=named)
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        width = _count_fields(kind, cells)
    elif any(test(kind) for test in BINARY):
        width = _count_floats(cells.to_pylist(), named=named)
    elif is_list(kind):
        texts = is_text(kind.value_type) and _are_most(cells.flatten().to_pylist(), NUMBER)
        width = _count(cells.to_pylist()) if texts else 0
    elif find_numbers(kind) is None:  # such as dates, categories and UUIDs
        return 0
    else:
        width = 0  # tensors of three sides, such as images
    return max(width, int(named and (_holds_numbers(kind) or any(test(kind) for test in BINARY))))


def _holds_numbers(kind: pa.DataType) -> bool:
    """Return whether there are numbers in a type, at whatever depth."""
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_numbers(kind.storage_type)
    if is_list(kind):
        return _holds_numbers(kind.value_type)
    if pa.types.is_map(kind):
        return _holds_numbers(kind.item_type)
    if pa.types.is_struct(kind):
        return any(_holds_numbers(kind.field(i).type) for i in range(kind.num_fields))
    return is_number(kind)


def _count(cells: Sequence) -> int:
    """Return how many numbers the first list that is not empty holds, at whatever depth."""

    def size(value: object) -> int:
        return sum(map(size, value)) if isinstance(value, list) else 1

    return next((n for cell in cells if (n := size(cell))), 0)


def _count_fields(kind: pa.DataType, cells: pa.Array) -> int:
    """Return how many numbers a cell of a struct or map holds."""
    if pa.types.is_map(kind):
        return max(map(len, cells.to_pylist())) if is_number(kind.item_type) else 0
    fields = [kind.field(i) for i in range(kind.num_fields)]
    if any(find_numbers(field.type) is not None for field in fields):  # such as {indices, values}
        return max((_count([cell[f.name]]) for cell in cells.to_pylist()[:1] for f in fields), default=0)
    return len(fields) if len(fields) > 1 and all(is_number(field.type) for field in fields) else 0


def _count_floats(cells: Sequence[bytes], *, named: bool) -> int:
    """Return how many numbers bytes of one length hold. Without a telling name, they must look like floats.

    Bytes that are not numbers, such as keys, have exponents of all sizes when they are read as floats.
    """
    sizes, data = {len(cell) for cell in cells}, b"".join(cells)
    if len(sizes) != 1 or not data or data.isascii():
        return max(sizes) // 4 if named else 0
    for dtype, (least, most) in FLOATS.items():
        if min(sizes) % np.dtype(dtype).itemsize:
            continue
        with np.errstate(invalid="ignore"):
            size = np.abs(np.frombuffer(data, dtype).astype(np.float64))
        size = size[size != 0]
        if len(size) > 16 and ((size > least) & (size < most)).mean() > 0.9:
            return min(sizes) // np.dtype(dtype).itemsize
    return min(sizes) // 4 if named else 0


def _count_written(cells: Sequence[str], *, named: bool) -> int:
    """Return how many numbers a text holds, where most cells are numbers in a row, or an encoded or separate array."""
    if _are_most(cells, NUMBERS.pattern):
        count = max(len(re.findall(NUMBER, cell)) for cell in cells)
        bare = not any(cell.lstrip()[:1] in tuple("[({<") for cell in cells)
        telephone = bare and (count < 4 or not any("." in cell for cell in cells))  # or a date, or a place
        return 0 if telephone and not named else count
    if named and _are_most(cells, ARRAY_FILE.pattern):
        return 1
    with contextlib.suppress(ValueError):  # not base64
        return _count_floats([base64.b64decode(cell, validate=True) for cell in cells], named=False)
    return 0


def _are_most(cells: Sequence[str | None], pattern: str) -> bool:
    """Return whether more than half of the cells match the whole pattern."""
    given = [cell for cell in cells if cell]
    return 2 * sum(re.fullmatch(pattern, cell, re.IGNORECASE) is not None for cell in given) > len(given)
