"""The types of image-text sources: pairs, refusals, columns and shards."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".tar", ".parquet", ".csv", ".tsv")


class Refusal(NamedTuple):
    """The reason why a pair is refused. If the key is "", why a file cannot be read (to its end)."""

    key: str
    reason: str


class Tally(NamedTuple):
    """What a shard holds, counted by kind. `what` is "lines" of a CSV or TSV, or "members" of a tar."""

    what: str
    counts: Mapping[str, int]


class Pair(NamedTuple):
    """An image with its captions, not yet checked.

    Attributes:
        key: the KEY of a tar's members, or the number of the (first) row in a table, from 0.
        image: function that reads the image and returns (bytes, "") or (b"", the reason to refuse it).
        captions: str, or bytes that should be UTF-8.
        fields: the columns of `Columns.fields`, or all of KEY.json.
    """

    key: str
    image: Callable[[], tuple[bytes, str]]
    captions: list[Any]
    fields: dict[str, Any]


class Found(NamedTuple):
    """The files in the sources.

    Attributes:
        files: (split, path, name) of every source file; names are paths below the common folder of all sources.
        strays: (name, reason) of every other file or folder that does not belong beside one.
        left_out: reason -> number of the files that belong beside a source, are hidden or are the system's.
    """

    files: list[tuple[str, Path, str]]
    strays: list[tuple[str, str]]
    left_out: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns or fields to read. None: the usual names (see `build`)."""

    image: str | None = None
    captions: tuple[str, ...] | None = None
    fields: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar, or a range of a table.

    Attributes:
        split: name of the dataset's split.
        path: path of the file.
        name: path of the file below the common folder of all sources, with "/".
        start, stop: the range: rows of Parquet, bytes of CSV and TSV.
        line, row: number of lines and rows before `start`.
        again: rows whose image occurred earlier in the table.
    """

    split: str
    path: str
    name: str
    start: int = 0
    stop: int = 0
    line: int = 0
    row: int = 0
    again: tuple[int, ...] = ()


def read_suffix(path: str | Path) -> str:
    """Return the suffix of a file in lower case."""
    return os.path.splitext(path)[1].lower()


def flatten_captions(values: Iterable[Any]) -> list[Any]:
    """Collect the captions of several fields. Each field may hold a list; missing values are skipped."""
    lists = (value if isinstance(value, list) else [value] for value in values)
    return [caption for captions in lists for caption in captions if caption is not None]
