"""Read feature files that hold tables, `.csv`, `.tsv` and `.parquet`, batch by batch."""

import codecs
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from nml_jax.data import class_names
from nml_jax.data.features import columns as cells
from nml_jax.data.features.formats import (
    IDS,
    LABELS,
    NO_LABELS,
    Content,
    choose_features,
    choose_label,
    keep_valid_labels,
    list_names,
    raise_several_labels,
)
from nml_jax.errors import UserError

BATCH_ROWS = 4096  # rows of a Parquet file in memory at a time
CSV_BYTES = 16 << 20  # bytes of a CSV file in memory at a time; the first block decides the types


class _Table:
    """A store of the columns of a table, read batch by batch."""

    def __init__(self, path: Path, columns: tuple[str, ...], types: Mapping[str, pa.DataType], dim: int):
        self._path, self._columns, self._types, self._dim = path, columns, types, dim

    def take(self, index: np.ndarray) -> np.ndarray:
        order = np.argsort(index, kind="stable")
        wanted = index[order]
        out = np.empty((len(index), self._dim))
        for start, batch in _batches(self._path, self._columns, self._types, wanted):
            a, b = np.searchsorted(wanted, (start, start + batch.num_rows))
            if a < b:
                out[order[a:b]] = self._matrix(batch, start)[wanted[a:b] - start]
            if b == len(wanted):
                break
        return out

    def scan(self, size: int) -> Iterator[np.ndarray]:
        held, count = [], 0
        for start, batch in _batches(self._path, self._columns, self._types):
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
        """Return the features of a batch [n, D], NaN for empty cells. `start` is the number of its first row."""
        column = batch.column(self._columns[0])
        if cells.is_text(column.type):
            column = cells.parse_lists(column, f"{self._path}: column {self._columns[0]!r}", start)
        if not cells.is_list(column.type):
            return np.stack([cells.read_numbers(batch.column(name)) for name in self._columns], 1)
        lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy()
        if (wrong := np.flatnonzero(lengths != self._dim)).size:
            row = wrong[0]
            raise UserError(
                f"{self._path}: row {start + row} of {self._columns[0]!r} has {lengths[row]} values, not {self._dim}",
                "give every row a list of the same length",
            )
        return cells.read_numbers(column.flatten()).reshape(-1, self._dim)


def _batches(
    path: Path,
    columns: Iterable[str] = (),
    types: Mapping[str, pa.DataType] | None = None,
    wanted: np.ndarray | None = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield consecutive rows: the number of the first, and their columns (all if none are named).

    Args:
        types: types of a CSV file's columns. A Parquet file has its own.
        wanted: sorted rows. If given, only the row groups of a Parquet file that hold them are read.
    """
    columns, start = list(columns), 0
    if path.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if wanted is None or np.diff(np.searchsorted(wanted, (start, end))):
                    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns or None):
                        yield start, batch
                        start += batch.num_rows
                start = end
        return
    try:
        with pyarrow.csv.open_csv(
            path,
            pyarrow.csv.ReadOptions(block_size=CSV_BYTES),
            pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True),
            pyarrow.csv.ConvertOptions(include_columns=columns, column_types=types),
        ) as reader:
            for batch in reader:
                yield start, batch
                start += batch.num_rows
    except pa.ArrowInvalid:
        _check_words(path, types or {})  # Arrow names neither the row nor the column
        raise


def _check_words(path: Path, types: Mapping[str, pa.DataType]) -> None:
    """Raise UserError if a cell in a CSV column of numbers or booleans is something else."""
    names = [name for name, kind in types.items() if not cells.is_text(kind)]
    if names:
        for start, batch in _batches(path, names, dict.fromkeys(names, pa.string())):
            for name in names:
                truths = pa.types.is_boolean(types[name])
                cells.check_words(batch.column(name), f"{path}: column {name!r}", start, truths=truths)


def open_table(path: Path, label: str, columns: str, labelled: bool, wanted: Sequence[str] = ()) -> Content:
    """Find the features and labels in a table. The arguments are those of `files.open_features`.

    Raises:
        UserError: there are no rows, the columns of labels or features are missing or ambiguous, two columns have one
            name, or a cell is empty or not a number.
        Other errors, which `formats.read_errors` catches: the file is damaged.
    """
    if path.suffix.lower() != ".parquet":
        with path.open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UserError(f"{path} is UTF-16", "save it as UTF-8")
    batch = next((batch for _, batch in _batches(path) if batch.num_rows), None)
    if batch is None:
        raise UserError(f"{path} has no rows", "write it again where the features were made")
    names = batch.schema.names
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"{path} has several columns {list_names(doubled)}", "rename all but one of each")
    label_name = choose_label(path, [name for name in names if name not in wanted], label, labelled)
    chosen = _choose_columns(path, batch, label_name, columns, wanted, guessed=labelled and not label)
    left_out = tuple(name for name in names if name not in (*chosen, label_name))
    first, dim = cells.find_kind(batch.column(chosen[0]))
    dim = dim if cells.is_list(first) else len(chosen)
    kinds = [first.value_type] if cells.is_list(first) else [batch.schema.field(name).type for name in chosen]
    dtypes = [np.dtype(np.float64 if pa.types.is_decimal(kind) else kind.to_pandas_dtype()) for kind in kinds]
    types = {}
    if path.suffix.lower() != ".parquet":  # the first block may hold only whole numbers
        numbers = [kind if pa.types.is_boolean(kind) else pa.float64() for kind in kinds]
        types = dict(zip(chosen, [pa.string()] if cells.is_list(first) else numbers, strict=True))
        dtypes = [np.dtype(np.float64)]
    labels = NO_LABELS
    if label_name:
        labels = keep_valid_labels(path, lambda: _read_labels(path, label_name), labels, labelled)
    n = len(labels) if len(labels) else sum(part.num_rows for _, part in _batches(path, chosen, types))
    table = _Table(path, chosen, types, dim)
    return Content(labels, (n, dim), np.result_type(*dtypes), table, label_name or "", chosen, left_out)


def _choose_columns(
    path: Path, batch: pa.RecordBatch, label: str | None, columns: str, wanted: Sequence[str], *, guessed: bool
) -> tuple[str, ...]:
    """Choose the feature columns of a table by their names and their types in its first batch.

    `guessed` means that the label was chosen by its name alone, so a column of words may be the label instead.
    """
    types = {name: cells.find_kind(batch.column(name))[0] for name in batch.schema.names}
    if columns:
        if columns not in types or not cells.is_number(types[columns]) | cells.is_list(types[columns]):
            what = f"column {columns!r} holds {types[columns]}" if columns in types else f"no column {columns!r}"
            numbers = list_names(name for name, kind in types.items() if cells.is_number(kind) or cells.is_list(kind))
            raise UserError(f"{path}: {what}", f"name a column of numbers or of lists of numbers: {numbers}")
        return (columns,)
    others = {name: kind for name, kind in types.items() if name != label and name not in IDS}
    lists = [name for name, kind in others.items() if cells.is_list(kind)]
    missing = [name for name in wanted if name not in types]
    if wanted and not missing:
        strange = [name for name in wanted if not cells.is_number(types[name])]
        if strange and path.suffix.lower() == ".parquet":  # the cells of CSV files are checked later
            what = f"{path}: column {strange[0]!r} holds {types[strange[0]]}"
            raise UserError(f"{what}; in training it held numbers", "write the column as numbers")
        return tuple(wanted)
    if lists:
        return (choose_features(path, lists),)
    if missing:
        raise UserError(
            f"{path} lacks the feature columns {list_names(missing)}; it has {list_names(types)}",
            "give every column of the training file under its name, in any order",
        )
    for name, kind in others.items():  # one bad cell must not drop a column of numbers
        if cells.is_text(kind):
            cells.check_slips(batch.column(name)[:1000], f"{path}: column {name!r}")
    chosen = tuple(name for name, kind in others.items() if cells.is_number(kind))
    if not chosen:
        has = list_names(f"{name} ({kind})" for name, kind in types.items())
        raise UserError(
            f"{path} has no columns of numbers besides label and id: {has}", "give a column for every feature"
        )
    if not label and len(doubtful := [name for name in LABELS if name in chosen]) > 1:
        raise_several_labels(path, doubtful)  # the others would become features
    if guessed and (
        words := [name for name, kind in others.items() if cells.is_text(kind) or pa.types.is_dictionary(kind)]
    ):
        raise UserError(
            f"{path} has words in column {words[0]!r} and a column {label!r}: either may be the label",
            f"name the label with label=NAME (--config.features.label={label}, which leaves {list_names(words)} out)",
        )
    return chosen


def _read_labels(path: Path, label: str) -> np.ndarray:
    """Read a column of labels [N]. Raise UserError if one is missing."""
    parts = [batch.column(label) for _, batch in _batches(path, [label], {label: pa.string()})]
    parts = [part.dictionary_decode() if pa.types.is_dictionary(part.type) else part for part in parts]
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
    if text and path.suffix.lower() != ".parquet":  # CSV has no types
        column = _convert_numbers(column)
        text = cells.is_text(column.type)
    return np.array(column.to_pylist(), str) if text else column.to_numpy()


def _merge_spellings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace every label by the name of its class (`class_names.merge_spellings`)."""
    merged = class_names.merge_spellings(name for name in column.unique().to_pylist() if name is not None)
    if all(name == other for name, other in merged.items()):
        return column
    return pa.chunked_array([pa.array(map(merged.get, column.to_pylist()), column.type)])


def _convert_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert labels of text to numbers if printing the numbers gives the same texts, or if some are fractions.

    So "007" stays a text, if it is no second spelling of "7". Fractions are rejected later.
    """
    names = column.unique()
    for kind in (pa.int64(), pa.float64()):
        with contextlib.suppress(pa.ArrowInvalid):
            numbers = names.cast(kind).to_numpy()
            if list(map(str, numbers.tolist())) == names.to_pylist() or (numbers != np.rint(numbers)).any():
                return column.cast(kind)
    return column
