"""Image-text pairs as people have them: what a pair, a shard and a refusal are."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".tar", ".parquet", ".csv", ".tsv")


class Refusal(NamedTuple):
    """Why a pair cannot be taken; with the key "", why a file cannot be read, or not to its end."""

    key: str
    reason: str


class Pair(NamedTuple):
    """An image with its captions, of which nothing has been checked yet.

    Attributes:
        key: unique in its file: of a tar's members, or the number of the (first) row of a table, from 0.
        image: reads the image: its bytes, and why it must be refused, or "".
        captions: str, or bytes that may be UTF-8.
        fields: the named columns, or all of KEY.json.
    """

    key: str
    image: Callable[[], tuple[bytes, str]]
    captions: list[Any]
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Columns:
    """What to read. None: as the source's kind has it (`image_text.image_text`)."""

    image: str | None = None
    captions: tuple[str, ...] | None = None
    fields: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar, or a range of a table: rows of Parquet, bytes of CSV and TSV.

    Attributes:
        split: of the dataset that it belongs to.
        path: of the file.
        name: of the file below the folder that all sources share, with "/".
        start, stop: the range. line, row: number of the lines and rows before `start`.
        again: rows at which an image begins that has come before in the table.
    """

    split: str
    path: str
    name: str
    start: int = 0
    stop: int = 0
    line: int = 0
    row: int = 0
    again: tuple[int, ...] = ()


def suffix_of(path: str | Path) -> str:
    """The suffix of a file in lower case."""
    return os.path.splitext(path)[1].lower()


def flatten_captions(values: Iterable[Any]) -> list[Any]:
    """Captions of several fields, each of which may hold several; a missing value is none."""
    lists = (value if isinstance(value, list) else [value] for value in values)
    return [caption for captions in lists for caption in captions if caption is not None]
