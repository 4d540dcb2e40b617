"""Read tables of image-text pairs (Parquet, CSV and TSV) in ranges of rows.

A CSV of many gigabytes is read once to find byte offsets between images. Parallel workers then read from an offset.
"""

import codecs
import csv
import dataclasses
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nml_jax.errors import UserError
from nml_jax.prepare.pairs.types import Columns, Pair, Refusal, Shard, flatten_captions, read_suffix
from nml_jax.prepare.records import MAX_BYTES, RECORDS_PER_SHARD, TOO_LARGE, read_file

# Default columns, the first that exists: names of img2dataset, open_clip and Hugging Face.
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "image_path", "filepath", "file_name", "path")
CAPTIONS = ("captions", "caption", "text", "txt", "title")


def cut(whole: Shard, columns: Columns) -> list[Shard]:
    """Cut a table into ranges of about RECORDS_PER_SHARD rows.

    Parquet with images inside is cut between its row groups, because a group can only be read whole. CSV and TSV are
    cut between images.

    Raises:
        UserError: the table is empty, lacks a column, or has two columns of the same name.
        OSError, ValueError, csv.Error: the table cannot be read.
    """
    if read_suffix(whole.path) != ".parquet":
        return _cut_csv(whole, columns)
    with _open_parquet(whole.path) as file:
        image, _ = _choose_columns(file.schema_arrow.names, columns, whole.path)
        n, starts, end = file.metadata.num_rows, [0], 0
        if _is_text(file.schema_arrow.field(image).type):  # paths are small: reading a group twice is cheap
            starts = list(range(0, n, RECORDS_PER_SHARD))
        else:
            for rows in (file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)):
                if end > starts[-1] and end + rows - starts[-1] > RECORDS_PER_SHARD:
                    starts.append(end)
                end += rows
    stops = [*starts[1:], n]
    return [dataclasses.replace(whole, start=i, stop=j, row=i) for i, j in zip(starts, stops, strict=True) if i < j]


def read(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal]:
    """Yield the pairs of a shard of a table, in the order of the rows. Raises the same errors as `cut`."""
    return (_read_parquet if read_suffix(shard.path) == ".parquet" else _read_csv)(shard, columns)


def read_fields(shard: Shard, columns: Columns) -> Iterator[dict[str, Any]]:
    """Yield the fields of the rows of a shard of a Parquet file, without reading other columns."""
    with _open_parquet(shard.path) as file:
        for _, row in _read_parquet_rows(file, shard, columns.fields):
            yield row


def _choose_columns(names: list[str], columns: Columns, path: str) -> tuple[str, tuple[str, ...]]:
    """Choose the columns of image and captions in a table with the columns `names`."""
    if not names:
        raise UserError(f"{path} is empty", "leave it out, or give a table with a row of column names")
    image = columns.image or next((name for name in IMAGES if name in names), "image")
    captions = columns.captions or (next((name for name in CAPTIONS if name in names), "caption"),)
    for option, name in (("--image", image), *(("--caption", c) for c in captions), *(("", f) for f in columns.fields)):
        if name not in names:
            listed = ", ".join(map(repr, names))
            raise UserError(
                f"{path} has no column {name!r}; its columns are {listed}",
                f"name one of them with {option or '--label or --group'}",
            )
        if names.count(name) > 1:
            raise UserError(f"{path} has {names.count(name)} columns {name!r}", "rename all but one of them")
    return image, captions


def _make_pair(shard: Shard, number: int, image: Any, captions: Any, fields: dict[str, Any]) -> Pair | Refusal:
    """Make a pair from a row of a table. The image is bytes, a path, or Hugging Face's struct of both."""
    key = str(number)
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if image is None or image in ("", b""):
        return Refusal(key, "no image")
    if isinstance(image, bytes):
        return Pair(
            key, lambda: (image, TOO_LARGE if len(image) > MAX_BYTES else ""), flatten_captions(captions), fields
        )
    folder = os.path.abspath(os.path.dirname(shard.path))
    path = os.path.normpath(os.path.join(folder, str(image)))
    if os.path.commonpath((folder, path)) != folder or "\0" in str(image):
        return Refusal(key, f"the image's path leads out of the table's folder: {image!a}")
    return Pair(key, lambda: read_file(Path(path)), flatten_captions(captions), fields)


def _open_parquet(path: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def _read_parquet(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal]:
    with _open_parquet(shard.path) as file:
        image, captions = _choose_columns(file.schema_arrow.names, columns, shard.path)
        paths = _is_text(file.schema_arrow.field(image).type)
        for number, row in _read_parquet_rows(file, shard, (image, *captions, *columns.fields)):
            fields = {name: row[name] for name in columns.fields}
            content = os.fsdecode(row[image]) if paths and row[image] else row[image]
            yield _make_pair(shard, number, content, [row[name] for name in captions], fields)


def _read_parquet_rows(file: Any, shard: Shard, names: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each row of a shard and its values in the columns `names`. Read only its row groups."""
    groups, number, begin = [], 0, None
    for g in range(file.num_row_groups):
        rows = file.metadata.row_group(g).num_rows
        if number < shard.stop and number + rows > shard.start:
            groups.append(g)
            begin = number if begin is None else begin
        number += rows
    number, wanted = begin or 0, list(dict.fromkeys(names))
    for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=wanted, use_threads=False):
        skip, keep = max(shard.start - number, 0), min(shard.stop - number, batch.num_rows)
        if skip < keep:
            values = [_list_values(batch.slice(skip, keep - skip).column(name)) for name in wanted]
            for i, row in enumerate(zip(*values, strict=True), number + skip):
                yield i, dict(zip(wanted, row, strict=True))
        number += batch.num_rows
        if number >= shard.stop:
            return


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _list_values(column: Any) -> list[Any]:
    """Convert a column to Python values. Text becomes bytes, because Arrow does not check that it is UTF-8."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    if _is_text(kind):
        column = column.cast(pa.large_binary())
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type):
        column = column.cast(pa.large_list(pa.large_binary()))
    return column.to_pylist()


class _Table:
    """A reader of a CSV or TSV file from byte `start` on. Bytes that are not UTF-8 become surrogates.

    Attributes:
        header: names of the columns.
        position: offset in bytes after the rows read so far.
        line, row: number of lines and rows before `position`.
    """

    def __init__(self, path: str, file: BinaryIO, at: Shard):
        self._file, self._delimiter = file, "\t" if read_suffix(path) == ".tsv" else ","
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        self.line, self.row = 0, at.row
        self._rows = self._parse()
        self.header = [name.strip() for name in next(self._rows, [])]
        if at.start:
            file.seek(at.start)
            self.line = at.line

    @property
    def position(self) -> int:
        return self._file.tell()

    def read_row(self) -> list[str] | Refusal | None:
        """Return the next row that is not blank, the reason to refuse it, or None at the end.

        A quote that is never closed would swallow the rest of the file. Only its own line is refused.
        """
        while True:
            start, line = self.position, self.line
            try:
                row = next(self._rows, None)
            except csv.Error as e:
                row = Refusal(str(self.row), f"no row of a table: line {line + 1}: {e}")
                self._file.seek(start)
                self._file.readline()
                self.line, self._rows = line + 1, self._parse()
            if row:
                self.row += 1
            if row or row is None:
                break
        if isinstance(row, list) and len(row) != len(self.header):
            fits = f"{len(row)} of {len(self.header)} fields"
            return Refusal(str(self.row - 1), f"the row does not fit its header: line {line + 1}: {fits}")
        return row

    def _parse(self) -> Iterator[list[str]]:
        return csv.reader(self._read_lines(), delimiter=self._delimiter, strict=True)

    def _read_lines(self) -> Iterator[str]:
        while line := self._file.readline():
            self.line += 1
            yield line.decode("utf-8", "surrogateescape")


class _Run(NamedTuple):
    """Consecutive rows with the same image and fields. The first row is at byte `start`, line `line` and row `row`."""

    start: int
    line: int
    row: int
    image: str
    fields: dict[str, Any]
    captions: list[str]


def _group_rows(table: _Table, columns: Columns, path: str, stop: float = float("inf")) -> Iterator[_Run | Refusal]:
    """Yield the runs that begin before byte `stop`. A refused row does not end a run."""
    image, captions = _choose_columns(table.header, columns, path)
    run = None
    while (start := table.position) < stop:
        at = start, table.line, table.row
        if (row := table.read_row()) is None:
            break
        if isinstance(row, Refusal):
            yield row
            continue
        cells = dict(zip(table.header, row, strict=True))
        fields, texts = {name: cells[name] for name in columns.fields}, [cells[name] for name in captions]
        if run and cells[image] and (run.image, run.fields) == (cells[image], fields):
            run.captions.extend(texts)
            continue
        if run:
            yield run
        run = _Run(*at, cells[image], fields, texts)
    if run:
        yield run


def _cut_csv(whole: Shard, columns: Columns) -> list[Shard]:
    """Cut a CSV file into shards. Record which images come again, since no worker reads the whole table."""
    found, images, rows = [], array("q"), array("q")
    with open(whole.path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{whole.path} is UTF-16", "save it as UTF-8")
        file.seek(0)
        table = _Table(whole.path, file, whole)
        begin = dataclasses.replace(whole, start=table.position, line=table.line)
        for run in _group_rows(table, columns, whole.path):
            if isinstance(run, Refusal):
                continue
            if run.row - begin.row >= RECORDS_PER_SHARD:
                found.append(dataclasses.replace(begin, stop=run.start))
                begin = dataclasses.replace(whole, start=run.start, line=run.line, row=run.row)
            if run.image:
                images.append(hash(run.image))  # eight bytes per image, however long its path
                rows.append(run.row)
        if table.row > begin.row:
            found.append(dataclasses.replace(begin, stop=table.position))
    again = np.delete(rows, np.unique(images, return_index=True)[1])
    parts = np.split(again, np.searchsorted(again, [shard.row for shard in found[1:]]))
    return [dataclasses.replace(shard, again=tuple(part.tolist())) for shard, part in zip(found, parts, strict=False)]


def _read_csv(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal]:
    again = set(shard.again)
    with open(shard.path, "rb") as file:
        for run in _group_rows(_Table(shard.path, file, shard), columns, shard.path, shard.stop):
            if isinstance(run, Refusal):
                yield run
            elif run.row in again:
                yield Refusal(str(run.row), "another row with this image came before")
            else:
                yield _make_pair(shard, run.row, run.image, run.captions, run.fields)
