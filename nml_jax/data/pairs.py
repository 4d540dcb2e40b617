"""Image-text pairs as people have them: WebDataset tars, Parquet, CSV and TSV, read in order and never extracted."""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Iterator
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
        key: unique in its file: of a tar's members, or the number of the row of a table, from 0.
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
        start, stop: the range. row: number of the row at `start`.
    """

    split: str
    path: str
    name: str
    start: int = 0
    stop: int = 0
    row: int = 0


def cut(split: str, path: Path, name: str, columns: Columns) -> list[Shard]:
    """The shards of a file; of one that cannot be read, one.

    Raises:
        UserError: a table lacks a column.
    """
    from nml_jax.data import tables

    whole = Shard(split, str(path), name)
    try:
        return [whole] if path.suffix == ".tar" else tables.cut(whole, columns)
    except (OSError, ValueError, csv.Error):  # Arrow's errors are ValueError or OSError
        return [whole]  # reading it will say why


def read(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal]:
    """The pairs of a shard, in order."""
    from nml_jax.data import tables, tars

    try:
        yield from (tars if shard.path.endswith(".tar") else tables).read(shard, columns)
    except (OSError, ValueError, csv.Error) as e:
        why = getattr(e, "strerror", None) or str(e) or type(e).__name__
        yield Refusal("", f"unreadable: {why.splitlines()[0]}")


def listed(values: Iterable[Any]) -> list[Any]:
    """Captions of several fields, each of which may hold several; a missing value is none."""
    lists = (value if isinstance(value, list) else [value] for value in values)
    return [caption for captions in lists for caption in captions if caption is not None]
