"""Readers of feature files that hold tables: `.csv`, `.tsv` and `.parquet`, batch by batch."""

import codecs
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from nml_jax.data.features import columns as cells
from nml_jax.data.features.formats import (
    IDS,
    LABELS,
    NO_LABELS,
    Found,
    choose_features,
    choose_label,
    keep_valid_labels,
    list_names,
    refuse_several_labels,
)
from nml_jax.errors import UserError

BATCH_ROWS = 4096  # of a Parquet file in memory
CSV_BYTES = 16 << 20  # of a CSV file in memory; types are told from the first of these blocks


class _Table:
    """Columns of a table, read batch by batch."""

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
        """The features of a batch [n, D], NaN where a cell has none. `start` is the number of its first row."""
        column = batch.column(self._columns[0])
        if cells.is_text(column.type):
            column = cells.from_json(column, f"{self._path}: column {self._columns[0]!r}", start)
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
    """Number of the first row, and columns (all, if none are named), of consecutive rows.

    `types` are those of a CSV file's columns, which it cannot tell by itself. Of a Parquet file only those row groups
    are read that hold `wanted`, sorted, if it is given.
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
        _refuse_words(path, types or {})  # Arrow says neither the row nor the column's name
        raise


def _refuse_words(path: Path, types: Mapping[str, pa.DataType]) -> None:
    """Raises UserError if a cell of a CSV file is not of the column's type, a number or a boolean."""
    names = [name for name, kind in types.items() if not cells.is_text(kind)]
    if names:
        for start, batch in _batches(path, names, dict.fromkeys(names, pa.string())):
            for name in names:
                truths = pa.types.is_boolean(types[name])
                cells.refuse_words(batch.column(name), f"{path}: column {name!r}", start, truths=truths)


def open_table(path: Path, label: str, columns: str, labelled: bool, wanted: Sequence[str] = ()) -> Found:
    """The columns of a table; arguments as of `features.open_features`.

    Raises:
        UserError: there are no rows, the columns of labels or features are not there or ambiguous, two have one name,
            or a cell of them is missing or no number.
        Others, as `feature_formats.reading` catches them: the file is damaged.
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
    if path.suffix.lower() != ".parquet":  # the first block may hold whole numbers only
        numbers = [kind if pa.types.is_boolean(kind) else pa.float64() for kind in kinds]
        types = dict(zip(chosen, [pa.string()] if cells.is_list(first) else numbers, strict=True))
        dtypes = [np.dtype(np.float64)]
    labels = NO_LABELS
    if label_name:
        labels = keep_valid_labels(path, lambda: _read_labels(path, label_name), labels, labelled)
    n = len(labels) if len(labels) else sum(part.num_rows for _, part in _batches(path, chosen, types))
    table = _Table(path, chosen, types, dim)
    return Found(labels, (n, dim), np.result_type(*dtypes), table, label_name or "", chosen, left_out)


def _choose_columns(
    path: Path, batch: pa.RecordBatch, label: str | None, columns: str, wanted: Sequence[str], *, guessed: bool
) -> tuple[str, ...]:
    """The feature columns of a table, by their names and the types in its first batch.

    `guessed`: the label was chosen by its name alone, and a column of words might be it.
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
        if strange and path.suffix.lower() == ".parquet":  # CSV has no types: what is in its cells is seen later
            what = f"{path}: column {strange[0]!r} holds {types[strange[0]]}"
            raise UserError(f"{what}, there were numbers in training", "write the column as numbers")
        return tuple(wanted)
    if lists:
        return (choose_features(path, lists),)
    if missing:
        raise UserError(
            f"{path} lacks the feature columns {list_names(missing)}; it has {list_names(types)}",
            "give every column that there was in training, under its name; their order does not matter",
        )
    for name, kind in others.items():  # a slip among numbers must not drop a column; real text is no feature
        if cells.is_text(kind):
            cells.refuse_slips(batch.column(name)[:1000], f"{path}: column {name!r}")
    chosen = tuple(name for name, kind in others.items() if cells.is_number(kind))
    if not chosen:
        has = list_names(f"{name} ({kind})" for name, kind in types.items())
        raise UserError(f"{path} has no columns of numbers but label and id: {has}", "give a column for every feature")
    if not label and len(doubtful := [name for name in LABELS if name in chosen]) > 1:
        refuse_several_labels(path, doubtful)  # what is no label would be a feature
    if guessed and (
        words := [name for name, kind in others.items() if cells.is_text(kind) or pa.types.is_dictionary(kind)]
    ):
        raise UserError(
            f"{path} has words in column {words[0]!r} and a column {label!r}: either may be the label",
            f"name the label with label=NAME (--config.features.label={label}, which leaves {list_names(words)} out)",
        )
    return chosen


def _read_labels(path: Path, label: str) -> np.ndarray:
    parts = [batch.column(label) for _, batch in _batches(path, [label], {label: pa.string()})]
    parts = [part.dictionary_decode() if pa.types.is_dictionary(part.type) else part for part in parts]
    column = pa.chunked_array(parts)
    text = cells.is_text(column.type)
    missing = np.asarray(column.is_null()) | (np.asarray(column) == "" if text else False)
    if (rows := np.flatnonzero(missing)).size:
        raise UserError(
            f"{path}: {len(rows)} rows have no label in column {label!r}, as row {rows[0]}",
            "give every row a label, or drop these rows",
        )
    if text and path.suffix.lower() != ".parquet":  # CSV has no types
        column = _as_numbers(column)
        text = cells.is_text(column.type)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        column, text = column.cast(pa.large_string()), True
    return np.array(column.to_pylist(), str) if text else column.to_numpy()


def _as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels of text as numbers, if all are whole numbers as a computer writes them, or some are none of classes.

    "007" and "7" are two classes, as are "7" and "7.0": what reads alike as a number need not be the same.
    """
    names = column.unique()
    for kind in (pa.int64(), pa.float64()):
        with contextlib.suppress(pa.ArrowInvalid):
            numbers = names.cast(kind).to_numpy()
            if list(map(str, numbers.tolist())) == names.to_pylist() or (numbers != np.rint(numbers)).any():
                return column.cast(kind)
    return column
