"""Read tables of every format as batches of rows: CSV, TSV, JSON lines, Parquet and Arrow's IPC formats."""

import functools
import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet

from nml_jax.data.features import columns as cells
from nml_jax.data.features.formats import find_format
from nml_jax.data.features.lists import is_list
from nml_jax.errors import UserError

TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".arrow")  # formats, as `find_format` returns them
BATCH_ROWS = 4096  # rows of a Parquet or Arrow file in memory at a time
TEXT_BYTES = 16 << 20  # bytes of a text file in memory at a time; the first block decides the types
FEATHER_1 = b"FEA1"  # how a file of the first version of Feather begins

Types = Mapping[str, pa.DataType]


def scan_batches(
    path: Path,
    columns: Sequence[str] = (),
    types: Types | None = None,
    wanted: np.ndarray | None = None,
    *,
    coded: bool = False,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield consecutive rows: the number of the first, and their columns (all if none are named).

    Args:
        types: types of a CSV file's columns. In a file of JSON lines they say which columns hold numbers. Other
            files have types of their own.
        wanted: sorted rows. If given, only the parts of a Parquet or Arrow file that hold them are read.
        coded: read the texts of a Parquet file as codes and a dictionary, so that each takes memory once.
    """
    kind, columns = find_format(path), list(columns)
    if kind == ".parquet":
        yield from _scan_parquet(path, columns, wanted, coded)
    elif kind == ".arrow":
        yield from _scan_arrow(path, columns, wanted)
    elif kind == ".jsonl":
        yield from _count_rows(_open_json(path, columns, types or {}))
    else:
        yield from _scan_csv(path, columns, types or {})


def read_metadata(path: Path) -> Mapping[bytes, bytes]:
    """Return the metadata of the schema of a Parquet or Arrow file; nothing for other formats."""
    if find_format(path) == ".parquet":
        return pyarrow.parquet.read_schema(path).metadata or {}
    return _open_arrow(path).schema.metadata or {} if find_format(path) == ".arrow" else {}


def _count_rows(batches: Iterator[pa.RecordBatch] | pa.RecordBatchReader) -> Iterator[tuple[int, pa.RecordBatch]]:
    start = 0
    for batch in batches:
        yield start, batch
        start += batch.num_rows


def _is_wanted(wanted: np.ndarray | None, start: int, end: int) -> bool:
    """Return whether one of the sorted rows lies in start to end, or whether all are wanted."""
    return wanted is None or bool(np.diff(np.searchsorted(wanted, (start, end)))[0])


def _scan_parquet(
    path: Path, columns: list[str], wanted: np.ndarray | None, coded: bool = False
) -> Iterator[tuple[int, pa.RecordBatch]]:
    start, texts = 0, []
    if coded:
        texts = [field.name for field in pyarrow.parquet.read_schema(path) if cells.is_text(field.type)]
    chosen = [name for name in texts if name in columns]
    with pyarrow.parquet.ParquetFile(path, memory_map=True, read_dictionary=chosen) as file:
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if _is_wanted(wanted, start, end):
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns or None):
                    yield start, batch
                    start += batch.num_rows
                if start != end:
                    raise ValueError(f"row group {group} lacks {end - start} of the rows that its metadata claim")
            start = end


def _scan_arrow(path: Path, columns: list[str], wanted: np.ndarray | None) -> Iterator[tuple[int, pa.RecordBatch]]:
    reader = _open_arrow(path)
    if isinstance(reader, pa.RecordBatchReader):
        stored = iter(reader)
    else:
        stored = map(reader.get_batch, range(reader.num_record_batches))
    for first, whole in _count_rows(stored):
        if not _is_wanted(wanted, first, first + whole.num_rows):
            continue
        chosen = whole.select(columns) if columns else whole
        chosen.validate(full=True)  # its buffers are used as they lie in the file
        for start in range(0, chosen.num_rows, BATCH_ROWS):
            yield first + start, chosen.slice(start, BATCH_ROWS)


def _open_arrow(path: Path) -> pa.RecordBatchReader | pa.ipc.RecordBatchFileReader:
    """Open a file in either of Arrow's IPC formats. Raise UserError for the first version of Feather."""
    file = pa.memory_map(str(path))
    if (head := file.read(6)).startswith(FEATHER_1):
        raise UserError(f"{path} is in version 1 of Feather", "write it with version=2, or as parquet")
    file.seek(0)
    return pyarrow.ipc.open_file(file) if head == b"ARROW1" else pyarrow.ipc.open_stream(file)


def _scan_csv(path: Path, columns: list[str], types: Types) -> Iterator[tuple[int, pa.RecordBatch]]:
    try:
        with pyarrow.csv.open_csv(
            path,
            pyarrow.csv.ReadOptions(block_size=TEXT_BYTES),
            pyarrow.csv.ParseOptions(delimiter="\t" if find_format(path) == ".tsv" else ",", newlines_in_values=True),
            pyarrow.csv.ConvertOptions(include_columns=columns, column_types=types),
        ) as reader:
            yield from _count_rows(reader)
    except pa.ArrowInvalid:
        _check_words(path, types)  # Arrow names neither the row nor the column
        raise


def _check_words(path: Path, types: Types) -> None:
    """Raise UserError if a cell in a CSV column of numbers or booleans is something else."""
    names = [name for name, kind in types.items() if not cells.is_text(kind)]
    if names:
        for start, batch in _scan_csv(path, names, dict.fromkeys(names, pa.string())):
            for name in names:
                truths = pa.types.is_boolean(types[name])
                cells.check_words(batch.column(name), f"{path}: column {name!r}", start, truths=truths)


def _open_json(path: Path, columns: list[str], types: Types) -> pa.RecordBatchReader:
    """Open a file of JSON lines. Its first block decides the types, and numbers may have fractions in later ones."""
    known = _infer_schema(path, path.stat().st_mtime_ns)
    options = pyarrow.json.ReadOptions(block_size=TEXT_BYTES, use_threads=False)
    if not columns:
        return pyarrow.json.open_json(path, options)
    fields = []
    for name in columns:
        kind = known.field(name).type
        numbers = name in types and not cells.is_text(types[name])
        fields.append(pa.field(name, _allow_fractions(kind) if numbers else kind))
    parse = pyarrow.json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore")
    return pyarrow.json.open_json(path, options, parse)


@functools.lru_cache(maxsize=64)
def _infer_schema(path: Path, _: int) -> pa.Schema:
    """Return the schema of the first block of a file of JSON lines. The second argument is when it was changed.

    Raises:
        UserError: a line is null. Arrow 26 crashes with a segmentation fault where a block begins with one.
    """
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
        _refuse_null_lines(path, file)
    return pyarrow.json.open_json(path, pyarrow.json.ReadOptions(block_size=TEXT_BYTES, use_threads=False)).schema


def _refuse_null_lines(path: Path, file: Iterable[bytes]) -> None:
    """Raise UserError if a line of JSON lines, which may be the first of a block, begins with null.

    A null within an object that is written on several lines is sound, and a later block cannot begin before TEXT_BYTES.
    """
    first, size = True, 0
    for number, line in enumerate(file, 1):
        size += len(line)
        for part in line.split(b"\r"):
            start = part.lstrip(b" \t\n\xef\xbb\xbf")
            inside = not first and size <= TEXT_BYTES and start[4:].lstrip().startswith((b",", b"}", b"]"))
            if start.startswith(b"null") and not inside:
                raise UserError(f"{path}: line {number} is null, not an object", "remove the line")
            first = first and not start


def _allow_fractions(kind: pa.DataType) -> pa.DataType:
    """Return a type with float64 in place of integers, in lists too."""
    if is_list(kind):
        return pa.list_(_allow_fractions(kind.value_type))
    return pa.float64() if pa.types.is_integer(kind) else kind
