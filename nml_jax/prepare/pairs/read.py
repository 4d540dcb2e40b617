"""Cut files of image-text pairs into shards, and read the shards."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nml_jax.prepare.pairs.types import Columns, Pair, Refusal, Shard, Tally, read_suffix


def cut(split: str, path: Path, name: str, columns: Columns) -> list[Shard]:
    """Cut a file into shards. A file that cannot be read becomes one shard, which `read` refuses.

    Raises:
        UserError: a table is empty, lacks a column, or has two columns of the same name.
    """
    from nml_jax.prepare.pairs import tables

    whole = Shard(split, str(path), name)
    try:
        return [whole] if read_suffix(path) == ".tar" else tables.cut(whole, columns)
    except (OSError, ValueError, csv.Error):  # Arrow raises ValueError or OSError
        return [whole]


def read(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal | Tally]:
    """Yield the pairs of a shard, in order, and what else it holds."""
    from nml_jax.prepare.pairs import tables, tars

    try:
        yield from (tars if read_suffix(shard.path) == ".tar" else tables).read(shard, columns)
    except (OSError, ValueError, csv.Error) as e:
        why = getattr(e, "strerror", None) or str(e) or type(e).__name__
        yield Refusal("", f"unreadable: {why.splitlines()[0]}")


def read_fields(shard: Shard, columns: Columns) -> Iterator[dict[str, Any]]:
    """Yield the fields of the pairs of a shard, without their images. Skip what cannot be read; `read` reports it."""
    from nml_jax.prepare.pairs import tables

    if read_suffix(shard.path) == ".parquet":
        with contextlib.suppress(OSError, ValueError):
            yield from tables.read_fields(shard, columns)
    else:
        yield from (pair.fields for pair in read(shard, columns) if isinstance(pair, Pair))
