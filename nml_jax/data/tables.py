"""Tables of image-text pairs: Parquet, CSV and TSV, read a range of rows at a time."""

import codecs
import csv
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nml_jax.data.builders import MAX_BYTES, RECORDS_PER_SHARD, TOO_LARGE, read_file
from nml_jax.data.pairs import Columns, Pair, Refusal, Shard, listed
from nml_jax.errors import UserError

# Columns that are taken where none are named, the first that is there: img2dataset's, open_clip's, Hugging Face's.
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "image_path", "filepath", "file_name", "path")
CAPTIONS = ("captions", "caption", "text", "txt", "title")


def cut(whole: Shard, columns: Columns) -> list[Shard]:
    """Cut a table into ranges of RECORDS_PER_SHARD rows.

    Raises:
        UserError: it lacks a column.
        OSError, ValueError, csv.Error: it cannot be read.
    """
    if not whole.path.endswith(".parquet"):
        return _csv_shards(whole, columns)
    with _parquet(whole.path) as file:
        _choose(file.schema_arrow.names, columns, whole.path)
        n = file.metadata.num_rows
    starts = range(0, n, RECORDS_PER_SHARD)
    return [dataclasses.replace(whole, start=i, stop=min(i + RECORDS_PER_SHARD, n), row=i) for i in starts]


def read(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal]:
    """The pairs of a shard of a table, in the order of the rows; what `cut` raises."""
    return (_parquet_pairs if shard.path.endswith(".parquet") else _csv_pairs)(shard, columns)


def _choose(names: list[str], columns: Columns, path: str) -> tuple[str, tuple[str, ...]]:
    """The columns of the image and of the captions in a table that has columns `names`."""
    image = columns.image or next((name for name in IMAGES if name in names), "image")
    captions = columns.captions or (next((name for name in CAPTIONS if name in names), "caption"),)
    for option, name in (("--image", image), *(("--caption", c) for c in captions), *(("", f) for f in columns.fields)):
        if name not in names:
            listed = ", ".join(map(repr, names))
            raise UserError(
                f"{path} has no column {name!r}; its columns are {listed}",
                f"name one of them with {option or '--label or --group'}",
            )
    return image, captions


def _row(shard: Shard, number: int, image: Any, captions: Any, fields: dict[str, Any]) -> Pair | Refusal:
    """A pair from a row of a table. The image is bytes, a path, or a struct of both as Hugging Face writes it."""
    key = str(number)
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if image is None or image in ("", b""):
        return Refusal(key, "no image")
    if isinstance(image, bytes):
        return Pair(key, lambda: (image, TOO_LARGE if len(image) > MAX_BYTES else ""), listed(captions), fields)
    folder = os.path.abspath(os.path.dirname(shard.path))
    path = os.path.normpath(os.path.join(folder, str(image)))
    if os.path.commonpath((folder, path)) != folder or "\0" in str(image):
        return Refusal(key, f"the image's path leads out of the table's folder: {image!a}")
    return Pair(key, lambda: read_file(Path(path)), listed(captions), fields)


def _parquet(path: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def _parquet_pairs(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal]:
    with _parquet(shard.path) as file:
        image, captions = _choose(file.schema_arrow.names, columns, shard.path)
        groups, number, begin = [], 0, None
        for g in range(file.num_row_groups):
            rows = file.metadata.row_group(g).num_rows
            if number < shard.stop and number + rows > shard.start:
                groups.append(g)
                begin = number if begin is None else begin
            number += rows
        number, wanted = begin or 0, list(dict.fromkeys((image, *captions, *columns.fields)))
        for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=wanted, use_threads=False):
            skip, keep = max(shard.start - number, 0), min(shard.stop - number, batch.num_rows)
            if skip < keep:
                part = batch.slice(skip, keep - skip)
                values = {name: _values(part.column(name)) for name in wanted}
                if _is_text(part.column(image).type):
                    values[image] = [v and os.fsdecode(v) for v in values[image]]  # a path
                for i in range(part.num_rows):
                    row = {name: values[name][i] for name in wanted}
                    fields = {name: row[name] for name in columns.fields}
                    yield _row(shard, number + skip + i, row[image], [row[name] for name in captions], fields)
            number += batch.num_rows
            if number >= shard.stop:
                return


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _values(column: Any) -> list[Any]:
    """A column as Python's values; text as bytes, because Arrow does not check that it is UTF-8."""
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
    """The rows of a CSV or TSV file from byte `start` on. Bytes that are not UTF-8 become surrogates.

    Attributes:
        header: names of the columns.
        position: first byte behind the rows read so far.
    """

    def __init__(self, path: str, file: BinaryIO, start: int = 0):
        self._file = file
        lines = (line.decode("utf-8", "surrogateescape") for line in iter(file.readline, b""))
        self._rows = csv.reader(lines, delimiter="\t" if path.endswith(".tsv") else ",")
        self.header = [name.removeprefix("\ufeff").strip() for name in next(self._rows, [])]
        if start:
            file.seek(start)

    @property
    def position(self) -> int:
        return self._file.tell()

    def row(self) -> list[str] | str | None:
        """The next row that is not blank, why it is none, or None at the end."""
        try:
            return next((row for row in self._rows if row), None)
        except csv.Error as e:
            return f"no row of a table: {e}"


def _csv_shards(whole: Shard, columns: Columns) -> list[Shard]:
    found = []
    with open(whole.path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{whole.path} is UTF-16", "save it as UTF-8")
        file.seek(0)
        table = _Table(whole.path, file)
        _choose(table.header, columns, whole.path)
        start, number, first = table.position, 0, 0
        while table.row() is not None:
            number += 1
            if number % RECORDS_PER_SHARD == 0:
                found.append(dataclasses.replace(whole, start=start, stop=table.position, row=first))
                start, first = table.position, number
        if number > first:
            found.append(dataclasses.replace(whole, start=start, stop=table.position, row=first))
    return found


def _csv_pairs(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal]:
    with open(shard.path, "rb") as file:
        table = _Table(shard.path, file, shard.start)
        image, captions = _choose(table.header, columns, shard.path)
        number = shard.row
        while table.position < shard.stop and (row := table.row()) is not None:
            if isinstance(row, str):
                yield Refusal(str(number), row)
            elif len(row) != len(table.header):
                yield Refusal(str(number), f"the row does not fit its header: {len(row)} of {len(table.header)} fields")
            else:
                cells = dict(zip(table.header, row, strict=True))
                fields = {name: cells[name] for name in columns.fields}
                yield _row(shard, number, cells[image], [cells[name] for name in captions], fields)
            number += 1
