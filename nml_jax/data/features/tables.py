"""Find the features and labels in tables, and read them batch by batch (scans.py)."""

import codecs
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from nml_jax.data import class_names
from nml_jax.data.features import columns as cells
from nml_jax.data.features.checks import is_swallowing
from nml_jax.data.features.choose import check_header, choose_columns
from nml_jax.data.features.formats import (
    NO_LABELS,
    Content,
    check_class_names,
    check_label_bytes,
    check_label_memory,
    choose_label,
    find_format,
    is_text_table,
    keep_valid_labels,
    list_names,
    read_errors,
)
from nml_jax.data.features.guesses import Counter
from nml_jax.data.features.lists import Lists, read_lists
from nml_jax.data.features.scans import read_metadata, scan_batches
from nml_jax.errors import UserError
from nml_jax.spreadsheet import restore_cell

LINE_BYTES = 1 << 20  # bytes of a first line that are looked at
MARKS = (b";", b"\t", b",", b"|")  # between cells
UTF32 = 4  # bytes of a character in NumPy
NUMBER_BYTES = 8  # bytes of a label that is a number
BREAK = pc.MatchSubstringOptions("\n")
PAGE_BYTES = 1 << 16  # bytes a row that the pages of a column may take besides its values


class _Table:
    """A store of the columns of a table, read batch by batch."""

    def __init__(self, path: Path, columns: tuple[str, ...], types: Mapping[str, pa.DataType], lists: Lists | None):
        self._path, self._columns, self._types, self._lists = path, columns, types, lists

    def take(self, index: np.ndarray) -> np.ndarray:
        order = np.argsort(index, kind="stable")
        wanted = index[order]
        out, b = np.empty((len(index), *(self._lists.shape if self._lists else (len(self._columns),)))), 0
        for start, batch in scan_batches(self._path, self._columns, self._types, wanted):
            a, b = np.searchsorted(wanted, (start, start + batch.num_rows))
            if a < b:
                out[order[a:b]] = self._matrix(batch, start)[wanted[a:b] - start]
            if b == len(wanted):
                break
        if b < len(wanted):
            raise ValueError(f"row {wanted[b]} has gone since it was opened")
        return out

    def scan(self, size: int) -> Iterator[np.ndarray]:
        held, count = [], 0
        for start, batch in scan_batches(self._path, self._columns, self._types):
            part = self._matrix(batch, start)
            while len(part):
                held.append(part[: size - count])
                part = part[len(held[-1]) :]
                count += len(held[-1])
                if count == size:
                    yield np.concatenate(held)
                    held, count = [], 0
        if held:
            yield np.concatenate(held)

    def _matrix(self, batch: pa.RecordBatch, start: int) -> np.ndarray:
        """Return the features of a batch [n, D] or [n, V, D], NaN for empty cells. Its first row has number `start`."""
        if self._lists is None:
            return np.stack([cells.read_numbers(batch.column(name)) for name in self._columns], 1)
        return read_lists(batch.column(self._columns[0]), self._lists, self._path, self._columns[0], start)


def open_table(
    path: Path, label: str, columns: str, labelled: bool, wanted: Sequence[str] = (), group: str = ""
) -> Content:
    """Find the features and labels in a table. The arguments are those of `files.open_features`.

    Raises:
        UserError: there are no rows, the columns of labels or features are missing or ambiguous, two columns have one
            name, the first line of a CSV is not one of names, or a cell is empty or not a number.
        Other errors, which `formats.read_errors` catches: the file is damaged.
    """
    text = is_text_table(path)
    if text:
        _check_encoding(path)
    batch = next((batch for _, batch in scan_batches(path) if batch.num_rows), None)
    if batch is None:
        raise UserError(f"{path} has no rows", "write it again where the features were made")
    names = batch.schema.names
    if text:
        check_header(path, batch, label, wanted)
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"{path} has several columns {list_names(doubled)}", "rename all but one of each")
    label_name = choose_label(path, [name for name in names if name not in wanted], label, labelled)
    choice = choose_columns(path, batch, label_name, columns, wanted, guessed=labelled and not label, group=group)
    if choice.guessed:
        choice = choice.drop_ids(_find_counting(path, batch, choice.columns))
    chosen, lists = choice.columns, choice.lists
    left_out = tuple(name for name in names if name not in (*chosen, label_name))
    kinds = [lists.kind] if lists else [batch.schema.field(name).type for name in chosen]
    dtypes = [_to_dtype(kind) for kind in kinds]
    types = {}
    if text or find_format(path) == ".jsonl":  # the first block may hold only whole numbers
        numbers = [kind if pa.types.is_boolean(kind) else pa.float64() for kind in kinds]
        types = dict(zip(chosen, [pa.string()] if lists and text else numbers, strict=True))
        dtypes = [np.dtype(np.float64)]
    labels, class_names = NO_LABELS, ()
    if label_name:
        named = _find_class_names(path, label_name)
        labels, class_names = keep_valid_labels(
            path, lambda: _check_named(path, _read_labels(path, label_name), named), (labels, class_names), labelled
        )
    n = len(labels) if len(labels) else sum(part.num_rows for _, part in scan_batches(path, chosen, types))
    if text:
        _check_quotes(path, batch, n)
    shape = (n, *(lists.shape if lists else (len(chosen),)))
    table = _Table(path, chosen, types, lists)
    return Content(
        labels, shape, np.result_type(*dtypes), table, label_name or "", chosen, left_out, class_names, choice.ids
    )


def _check_encoding(path: Path) -> None:
    """Raise UserError if a CSV or TSV file is UTF-16, or separates its cells by another mark, as other locales do."""
    with pa.input_stream(str(path)) as file:
        line = file.read(LINE_BYTES).split(b"\n", 1)[0]
    if line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise UserError(f"{path} is UTF-16", "save it as UTF-8")
    wanted, name = (b"\t", "tabs") if find_format(path) == ".tsv" else (b",", "commas")
    if wanted not in line and (other := max(MARKS, key=line.count)) in line:
        raise UserError(
            f"{path} separates its cells by {other.decode()!r}, not by {name}",
            "save it with commas (.csv) or tabs (.tsv) between the cells, and points in numbers",
        )


def _check_quotes(path: Path, first: pa.RecordBatch, rows: int) -> None:
    """Raise UserError if a quote opens in one row of a CSV or TSV file and closes rows later, so that these are lost.

    Only a file whose lines are not one for each row is looked at again.
    """
    lines, last = 0, b"\n"
    with pa.input_stream(str(path)) as file:
        while block := file.read(LINE_BYTES):
            lines, last = lines + block.count(b"\n"), block
    if lines + (not last.endswith(b"\n")) == rows + 1:  # with the line of names
        return
    starts = list(map(_find_start, first.columns))
    names = [name for name, start in zip(first.schema.names, starts, strict=True) if start != "0"]
    mark = "\t" if find_format(path) == ".tsv" else ","
    for start, part in scan_batches(path, names, dict.fromkeys(names, pa.string())) if names else ():
        for name in names:
            several = pc.call_function("match_substring", [part.column(name)], BREAK).fill_null(False)
            for row in np.flatnonzero(several).tolist():
                cell = part.column(name)[row].as_py()
                if is_swallowing(cell, first.schema.names.index(name), mark, starts):
                    raise UserError(
                        f"{path}: a quote opens in row {start + row}, column {name!r}, and closes "
                        f"{cell.count(chr(10))} lines later, so that these rows would be lost",
                        "close the quote in its row, or remove it; within a quoted cell, write it twice",
                    )


def _find_start(column: pa.Array) -> str:
    """Return how the cells of a column of text begin: "0" as numbers, "[" as lists, "" in any way."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return "0"
    filled = column.drop_null().to_pylist() if cells.is_text(column.type) else []
    return "[" if filled and all(cell.startswith("[") for cell in filled) else ""


def list_columns(path: Path) -> list[str]:
    """Return the names of the columns of a table. Raise UserError if it is damaged or has no rows."""
    with read_errors(path):
        batch = next((batch for _, batch in scan_batches(path)), None)
    return batch.schema.names if batch is not None else []


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the cells of some columns, [N] each: text as it stands in a table of text, else values; None if missing.

    Raises:
        UserError: the file is damaged.
    """
    found: dict[str, list[Any]] = {name: [] for name in names}
    with read_errors(path):
        for _, batch in scan_batches(path, names, dict.fromkeys(names, pa.string())):
            for name in names:
                cells = batch.column(name).to_pylist()
                found[name] += map(restore_cell, cells) if is_text_table(path) else cells
    return found


def _to_dtype(kind: pa.DataType) -> np.dtype:
    """Return the dtype that numbers of an Arrow type have in NumPy."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return np.dtype(np.float64 if pa.types.is_decimal(kind) else kind.to_pandas_dtype())


def _find_counting(path: Path, batch: pa.RecordBatch, columns: Sequence[str]) -> list[str]:
    """Return the columns of whole numbers that count up from the first row to the last, as numbers of rows do."""

    def count(part: pa.RecordBatch, counters: dict[str, Counter]) -> dict[str, Counter]:
        return {name: c for name, c in counters.items() if c.add(cells.read_numbers(part.column(name)))}

    kinds = {name: batch.schema.field(name).type for name in columns}
    whole = [name for name, kind in kinds.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    left = list(count(batch, {name: Counter() for name in whole}))  # those that the first rows leave
    counters = {name: Counter() for name in left}
    for _, part in scan_batches(path, left, dict.fromkeys(left, pa.float64())) if left else ():
        if not (counters := count(part, counters)):
            break
    return [name for name, counter in counters.items() if counter.counts()]


def _find_class_names(path: Path, label: str) -> tuple[str, ...]:
    """Return the names that Hugging Face's ClassLabel gives the label's numbers in a file's metadata."""
    metadata = read_metadata(path)
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        if feature["_type"] == "ClassLabel":
            return check_class_names(path, feature["names"] or ())
    return ()


def _check_named(path: Path, labels: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels and the names of their classes. Raise UserError if a number has no name, such as -1."""
    if not names or labels.dtype.kind not in "iu":
        return labels, ()
    if (wrong := np.flatnonzero((labels < 0) | (labels >= len(names)))).size:
        row = wrong[0]
        raise UserError(
            f"{path}: {len(wrong)} labels have no name among the {len(names)} classes in its metadata, as in row "
            f"{row}: {labels[row]}",
            "give every row a label (-1 means none), or drop these rows",
        )
    return labels, names


def _read_labels(path: Path, label: str) -> np.ndarray:
    """Read a column of labels [N]. Raise UserError if one is missing."""
    if find_format(path) == ".parquet":
        _check_label_size(path, label)
    batches = (batch for _, batch in scan_batches(path, [label], {label: pa.string()}, coded=True))
    parts = list(_check_lengths(path, (batch.column(label) for batch in batches)))
    parts = [_decode(part) if pa.types.is_dictionary(part.type) else part for part in parts]
    column = pa.chunked_array(parts)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        column = column.cast(pa.large_string())
    text = cells.is_text(column.type)
    column = _merge_spellings(column) if text else column
    missing = np.asarray(column.is_null()) | (np.asarray(column) == "" if text else False)
    if (rows := np.flatnonzero(missing)).size:
        raise UserError(
            f"{path}: {len(rows)} rows have no label in column {label!r}, such as row {rows[0]}",
            "give every row a label, or drop these rows",
        )
    if text and is_text_table(path):  # CSV has no types
        column = _convert_numbers(_restore_cells(column))
        text = cells.is_text(column.type)
    return np.array(column.to_pylist(), str) if text else column.to_numpy()


def _decode(part: pa.DictionaryArray) -> pa.Array:
    """Return the values that codes stand for. Arrow has no way to look up its views of text, which polars writes."""
    names = part.dictionary.cast(pa.large_string()) if cells.is_text(part.dictionary.type) else part.dictionary
    return pa.DictionaryArray.from_arrays(part.indices, names).dictionary_decode()


def _check_lengths(path: Path, parts: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """Yield the parts of a column of labels. Raise UserError if texts are too long, or too many of that length.

    In memory every text takes the room of the longest, and a dictionary in the file may hold a long one once.
    """
    rows, longest = 0, 0
    for part in parts:
        texts = part.dictionary if pa.types.is_dictionary(part.type) else part
        if cells.is_text(texts.type):
            sizes = pc.call_function("binary_length", [texts.drop_null().cast(pa.large_string())])
            longest = max(longest, int(sizes.to_numpy().max(initial=0)))
            rows += len(part)
            check_label_bytes(longest, path)
            check_label_memory(rows, UTF32 * longest, path)
        yield part


def _merge_spellings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace every label by the name of its class (`class_names.merge_spellings`)."""
    merged = class_names.merge_spellings(name for name in column.unique().to_pylist() if name is not None)
    if all(name == other for name, other in merged.items()):
        return column
    return pa.chunked_array([pa.array(map(merged.get, column.to_pylist()), column.type)])


def _check_label_size(path: Path, label: str) -> None:
    """Raise UserError if a label takes more bytes than a name does, as the metadata of a Parquet file says.

    Or if there are more than fit into memory: equal rows take next to nothing in a file.
    """
    metadata = pyarrow.parquet.read_metadata(path)
    check_label_memory(metadata.num_rows, NUMBER_BYTES, path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == label)
    check_label_bytes(size / max(metadata.num_rows, 1) - PAGE_BYTES, path)


def _restore_cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return labels without the apostrophes that keep a spreadsheet from taking them for formulas."""
    names = {name: restore_cell(name) for name in column.unique().to_pylist()}
    if all(name == restored for name, restored in names.items()):
        return column
    return pa.chunked_array([pa.array(map(names.get, column.to_pylist()), column.type)])


def _convert_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert labels of text to numbers if printing the numbers gives the same texts, or if some are fractions.

    So "007" stays a text, if it is not a second spelling of "7". Fractions are rejected later.
    """
    names = column.unique()
    for kind in (pa.int64(), pa.float64()):
        with contextlib.suppress(pa.ArrowInvalid):
            numbers = names.cast(kind).to_numpy()
            if list(map(str, numbers.tolist())) == names.to_pylist() or (numbers != np.rint(numbers)).any():
                return column.cast(kind)
    return column
