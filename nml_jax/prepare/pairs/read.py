"""Cutting files of image-text pairs into shards, and reading these."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nml_jax.prepare.pairs.types import Columns, Pair, Refusal, Shard, suffix_of


def cut(split: str, path: Path, name: str, columns: Columns) -> list[Shard]:
    """The shards of a file; of one that cannot be read, one.

    Raises:
        UserError: a table is empty, lacks a column, or has two of one name.
    """
    from nml_jax.prepare.pairs import tables

    whole = Shard(split, str(path), name)
    try:
        return [whole] if suffix_of(path) == ".tar" else tables.cut(whole, columns)
    except (OSError, ValueError, csv.Error):  # Arrow's errors are ValueError or OSError
        return [whole]  # reading it will say why


def read(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal]:
    """The pairs of a shard, in order."""
    from nml_jax.prepare.pairs import tables, tars

    try:
        yield from (tars if suffix_of(shard.path) == ".tar" else tables).read(shard, columns)
    except (OSError, ValueError, csv.Error) as e:
        why = getattr(e, "strerror", None) or str(e) or type(e).__name__
        yield Refusal("", f"unreadable: {why.splitlines()[0]}")


def read_fields(shard: Shard, columns: Columns) -> Iterator[dict[str, Any]]:
    """The fields of the pairs of a shard, without their images. What cannot be read has none: `read` says why."""
    from nml_jax.prepare.pairs import tables

    if suffix_of(shard.path) == ".parquet":
        with contextlib.suppress(OSError, ValueError):
            yield from tables.read_fields(shard, columns)
    else:
        yield from (pair.fields for pair in read(shard, columns) if isinstance(pair, Pair))
