"""Read tables of image-text pairs (Parquet, CSV and TSV) in ranges of rows.

A CSV of many gigabytes is read once to find byte offsets between images. Parallel workers then read from an offset.
"""

import codecs
import contextlib
import csv
import dataclasses
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nml_jax.errors import UserError
from nml_jax.prepare.image_files import MAX_BYTES, TOO_LARGE, read_file
from nml_jax.prepare.pairs.types import Columns, Pair, Refusal, Shard, Tally, flatten_captions, read_suffix
from nml_jax.prepare.records import RECORDS_PER_SHARD

# Default columns, the first that exists: names of img2dataset, open_clip and Hugging Face.
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "image_path", "filepath", "file_name", "path")
CAPTIONS = ("captions", "caption", "text", "txt", "title")
LINES = ("rows", "refused", "continued", "blank", "header")  # kinds of lines; "continued" continue a cell
MAX_LINE = 1 << 16  # bytes in which a line must end for its end to be known
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2")  # of images


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


def read(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal | Tally]:
    """Yield the pairs of a shard of a table, in the order of the rows; of a CSV or TSV also the count of its lines.

    Raises the same errors as `cut`.
    """
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
        image: number of the column of images, to be set before rows are read.
        position: offset in bytes after the rows read so far.
        line, row: number of lines and rows before `position`.
        counts: the number of LINES of each kind read so far, and of all as "lines". The first shard counts the header.
    """

    image = 0

    def __init__(self, path: str, file: BinaryIO, at: Shard):
        self._file, self._delimiter = file, "\t" if read_suffix(path) == ".tsv" else ","
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        start, head = file.tell(), file.read(MAX_LINE)
        if b"\r" in head and b"\n" not in head:
            raise csv.Error("its lines end with CR alone, so save it with LF or CRLF")
        file.seek(start)
        self.line, self.row, self._counts = 0, at.row, Counter[str]()
        self._rows = self._parse()
        self.header = [name.strip() for name in next(self._rows, [])]
        self._begin = at.line
        if at.line in (0, self.line):
            self._begin = 0
            self._counts = Counter({"header": 1, "continued": self.line - 1})
        if at.start:
            file.seek(at.start)
            self.line = at.line

    @property
    def position(self) -> int:
        return self._file.tell()

    @property
    def counts(self) -> dict[str, int]:
        return {kind: self._counts[kind] for kind in LINES} | {"lines": self.line - self._begin}

    def read_row(self) -> list[str] | Refusal | None:
        """Return the next row that is not blank, the reason to refuse it, or None at the end.

        A quote that is never closed, or that closes rows later, would swallow rows. Only its own line is refused.
        """
        row: list[str] | None = []
        start, line = self.position, self.line
        while row == []:
            start, line = self.position, self.line
            try:
                row = next(self._rows, None)
            except csv.Error as e:
                return self._refuse_line(start, line, str(e))
            self._counts["blank"] += row == []
        if row is None:
            return None
        if self.line > line + 1 and self._is_swallowing(start, row):
            return self._refuse_line(start, line, "a quote opens in it and closes rows later")
        self.row += 1
        fits = len(row) == len(self.header)
        self._counts["rows" if fits else "refused"] += 1
        self._counts["continued"] += self.line - line - 1
        if fits:
            return row
        why = f"line {line + 1}: {len(row)} of {len(self.header)} fields"
        return Refusal(str(self.row - 1), f"the row does not fit its header: {why}")

    def _refuse_line(self, start: int, line: int, why: str) -> Refusal:
        """Go on after the line that begins at byte `start`."""
        self._file.seek(start)
        self._file.readline()
        self.line, self._rows = line + 1, self._parse()
        self.row += 1
        self._counts["refused"] += 1
        return Refusal(str(self.row - 1), f"no row of a table: line {line + 1}: {why}")

    def _is_swallowing(self, start: int, row: list[str]) -> bool:
        """Return whether the lines from byte `start` to the position are rows, though a cell of `row` spans them.

        The first line must be a row by itself, and so must one of the others. The image tells a row from a line of text
        with as many commas: it has the suffix of an image, or that of `row`. In a TSV, and where `row` has no suffix,
        it suffices that all lines have the header's number of fields.
        """
        end = self.position
        self._file.seek(start)
        first, *others = self._file.read(end - start).decode("utf-8", "surrogateescape").rstrip("\r\n").split("\n")
        images = [self._find_image(line) for line in others if line.strip()]
        own = self._find_image(first)
        if own is None:
            return False
        suffix = read_suffix(row[self.image]) if self.image < len(row) else ""
        if not suffix:
            return None not in images
        known = {*SUFFIXES, suffix}
        if read_suffix(own) not in known:
            return False
        rows = [image is not None and (self._delimiter == "\t" or read_suffix(image) in known) for image in images]
        return all(rows) if self._delimiter == "\t" else any(rows)

    def _find_image(self, line: str) -> str | None:
        """Return the cell of the image if the line alone has the header's number of fields, else None."""
        line = line.rstrip("\r")
        splits = [line.split(self._delimiter)]
        with contextlib.suppress(csv.Error):
            splits += csv.reader([line], delimiter=self._delimiter)
        fitting = (cells for cells in splits if len(cells) == len(self.header))
        return next((cells[self.image].strip().strip('"') for cells in fitting), None)

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
    table.image = table.header.index(image)
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
        if table.row > begin.row or not found:
            found.append(dataclasses.replace(begin, stop=table.position))
    again = np.delete(rows, np.unique(images, return_index=True)[1])
    parts = np.split(again, np.searchsorted(again, [shard.row for shard in found[1:]]))
    return [dataclasses.replace(shard, again=tuple(part.tolist())) for shard, part in zip(found, parts, strict=False)]


def _read_csv(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal | Tally]:
    again = set(shard.again)
    with open(shard.path, "rb") as file:
        table = _Table(shard.path, file, shard)
        for run in _group_rows(table, columns, shard.path, shard.stop):
            if isinstance(run, Refusal):
                yield run
            elif run.row in again:
                yield Refusal(str(run.row), "another row with this image came before")
            else:
                yield _make_pair(shard, run.row, run.image, run.captions, run.fields)
        yield Tally("lines", table.counts)
