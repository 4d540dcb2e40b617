"""Readers of feature files that hold tables: `.csv`, `.tsv` and `.parquet`, batch by batch."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from nml_jax.data.feature_formats import (
    IDS,
    LABELS,
    NO_LABELS,
    Found,
    choose_features,
    choose_label,
    labels_if_valid,
    listed,
    several_labels,
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
        if _is_text(column.type):
            column = _from_json(column)
        if not _is_list(column.type):
            return np.stack([_numbers(batch.column(name)) for name in self._columns], 1)
        lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy()
        if (wrong := np.flatnonzero(lengths != self._dim)).size:
            row = wrong[0]
            raise UserError(
                f"{self._path}: row {start + row} of {self._columns[0]!r} has {lengths[row]} values, not {self._dim}",
                "give every row a list of the same length",
            )
        return _numbers(column.flatten()).reshape(-1, self._dim)


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
    with pyarrow.csv.open_csv(
        path,
        pyarrow.csv.ReadOptions(block_size=CSV_BYTES),
        pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True),
        pyarrow.csv.ConvertOptions(include_columns=columns, column_types=types),
    ) as reader:
        for batch in reader:
            yield start, batch
            start += batch.num_rows


def open_table(path: Path, label: str, columns: str, labelled: bool, wanted: Sequence[str] = ()) -> Found:
    """The columns of a table; arguments as of `features.open_features`.

    Raises:
        UserError: there are no rows, the columns of labels or features are not there or ambiguous, two have one name,
            or a cell of them is missing or no number.
        Others, as `feature_formats.reading` catches them: the file is damaged.
    """
    batch = next((batch for _, batch in _batches(path) if batch.num_rows), None)
    if batch is None:
        raise UserError(f"{path} has no rows", "write it again where the features were made")
    names = batch.schema.names
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"{path} has several columns {listed(doubled)}", "rename all but one of each")
    label_name = choose_label(path, [name for name in names if name not in wanted], label, labelled)
    chosen = _choose_columns(path, batch, label_name, columns, wanted, guessed=labelled and not label)
    left_out = tuple(name for name in names if name not in (*chosen, label_name))
    first = _as_lists(batch.column(chosen[0])[:1])
    dim = len(first[0].as_py() or ()) if _is_list(first.type) else len(chosen)
    kinds = [first.type.value_type] if _is_list(first.type) else [batch.schema.field(name).type for name in chosen]
    dtypes = [np.dtype(np.float64 if pa.types.is_decimal(kind) else kind.to_pandas_dtype()) for kind in kinds]
    types = {}
    if path.suffix.lower() != ".parquet":  # the first block may hold whole numbers only
        numbers = [kind if pa.types.is_boolean(kind) else pa.float64() for kind in kinds]
        types = dict(zip(chosen, [pa.string()] if _is_list(first.type) else numbers, strict=True))
        dtypes = [np.dtype(np.float64)]
    labels = NO_LABELS
    if label_name:
        labels = labels_if_valid(lambda: _read_labels(path, label_name), labels, labelled)
    n = len(labels) if len(labels) else sum(part.num_rows for _, part in _batches(path, chosen, types))
    table = _Table(path, chosen, types, dim)
    return Found(labels, (n, dim), np.result_type(*dtypes), table, label_name or "", chosen, left_out)


def _choose_columns(
    path: Path, batch: pa.RecordBatch, label: str | None, columns: str, wanted: Sequence[str], *, guessed: bool
) -> tuple[str, ...]:
    """The feature columns of a table, by their names and the types in its first batch.

    `guessed`: the label was chosen by its name alone, and a column of words might be it.
    """
    types = {name: _as_lists(batch.column(name)[:1]).type for name in batch.schema.names}
    if columns:
        if columns not in types or not _is_number(types[columns]) | _is_list(types[columns]):
            what = f"column {columns!r} holds {types[columns]}" if columns in types else f"no column {columns!r}"
            numbers = listed(name for name, kind in types.items() if _is_number(kind) or _is_list(kind))
            raise UserError(f"{path}: {what}", f"name a column of numbers or of lists of numbers: {numbers}")
        return (columns,)
    others = {name: kind for name, kind in types.items() if name != label and name not in IDS}
    lists = [name for name, kind in others.items() if _is_list(kind)]
    missing = [name for name in wanted if name not in types]
    if wanted and not missing:
        return tuple(wanted)
    if lists:
        return (choose_features(path, lists),)
    if missing:
        raise UserError(
            f"{path} lacks the feature columns {listed(missing)}; it has {listed(types)}",
            "give every column that there was in training, under its name; their order does not matter",
        )
    for name, kind in others.items():  # a slip among numbers must not drop a column; real text is no feature
        if _is_text(kind):
            cells = batch.column(name)[:1000].fill_null("").to_pylist()
            wrong = [i for i, cell in enumerate(cells) if not _is_numeral(cell)]
            if 2 * len(wrong) < len(cells):
                raise UserError(
                    f"{path}: column {name!r} holds {cells[wrong[0]]!r} in row {wrong[0]}, numbers elsewhere"
                    if wrong
                    else f"{path}: column {name!r} holds numbers as text",
                    "correct the cell, or write the column as numbers",
                )
    chosen = tuple(name for name, kind in others.items() if _is_number(kind))
    if not chosen:
        has = listed(f"{name} ({kind})" for name, kind in types.items())
        raise UserError(f"{path} has no columns of numbers but label and id: {has}", "give a column for every feature")
    if not label and len(doubtful := [name for name in LABELS if name in chosen]) > 1:
        several_labels(path, doubtful)  # what is no label would be a feature
    if guessed and (words := [name for name, kind in others.items() if _is_text(kind) or pa.types.is_dictionary(kind)]):
        raise UserError(
            f"{path} has words in column {words[0]!r} and a column {label!r}: either may be the label",
            f"name the label with label=NAME (--config.features.label={label}, which leaves {listed(words)} out)",
        )
    return chosen


def _read_labels(path: Path, label: str) -> np.ndarray:
    parts = [batch.column(label) for _, batch in _batches(path, [label], {label: pa.string()})]
    parts = [part.dictionary_decode() if pa.types.is_dictionary(part.type) else part for part in parts]
    column = pa.chunked_array(parts)
    text = _is_text(column.type)
    missing = np.asarray(column.is_null()) | (np.asarray(column) == "" if text else False)
    if (rows := np.flatnonzero(missing)).size:
        raise UserError(
            f"{path}: {len(rows)} rows have no label in column {label!r}, as row {rows[0]}",
            "give every row a label, or drop these rows",
        )
    if text and path.suffix.lower() != ".parquet":  # CSV has no types
        column = _as_numbers(column)
        text = _is_text(column.type)
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


def _is_numeral(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_number(kind: pa.DataType) -> bool:
    return any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


def _is_list(kind: pa.DataType) -> bool:
    """Whether `kind` is a list of numbers, of fixed or any length."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests) and _is_number(kind.value_type)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _as_lists(column: pa.Array) -> pa.Array:
    """A column whose first cell is a list written as JSON, as lists; any other column as it is."""
    if _is_text(column.type):
        with contextlib.suppress(ValueError):
            if isinstance(json.loads(column[0].as_py() or ""), list):
                return _from_json(column)
    return column


def _from_json(column: pa.Array) -> pa.Array:
    return pa.array([json.loads(cell or "null") for cell in column.to_pylist()], pa.list_(pa.float64()))


def _numbers(column: pa.Array) -> np.ndarray:
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    return column.to_numpy(zero_copy_only=False)
