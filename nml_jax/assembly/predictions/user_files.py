"""Open what users want predictions of: a folder of images, or a table of texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nml_jax.data.class_names import NameIndex
from nml_jax.data.sources.photos import open_photos
from nml_jax.data.sources.sentences import Sentences
from nml_jax.data.sources.source import Source
from nml_jax.data.text.tables import LABELS, Table, choose_texts, join_texts, read_table
from nml_jax.errors import UserError


class Asked(NamedTuple):
    """What is asked of a table of texts: the names of columns, "" for the usual ones.

    columns: of the texts, one name or two with a comma. label: of the labels. keep: to carry through, with commas.
    """

    columns: str = ""
    label: str = ""
    keep: str = ""


class Inputs(NamedTuple):
    """Rows to predict.

    Fields:
        source: the images or texts.
        labels: names of their classes, str [N]; empty if they are not known.
        kept: names of columns to carry through -> N cells.
    """

    path: Path
    files: list[Path]
    source: Source
    labels: np.ndarray
    kept: Mapping[str, Sequence[Any]]


def open_images(folder: Path, classes: Sequence[Any]) -> Inputs:
    """Open the images of a folder. Their labels are the names of their folders, if one of these is among `classes`.

    Raises:
        UserError: there is no image.
    """
    photos = open_photos(folder)
    return Inputs(folder, photos.files, photos, find_labels(photos.paths, classes), {"file": photos.paths})


def find_labels(paths: Sequence[str], classes: Sequence[Any]) -> np.ndarray:
    """Return the names of the images' folders, str [N], if the head knows one of them; else an empty array."""
    names = [path.split("/")[-2] if "/" in path else "" for path in paths]
    index = NameIndex(classes)
    known = all(names) and any(index.find(name) is not None for name in dict.fromkeys(names))
    return np.array(names if known else [], str)


def open_texts(path: Path, asked: Asked, texts: int | None) -> Inputs:
    """Open the texts of a table. Labels are optional.

    Args:
        texts: how many texts a row must have, 1 or 2; None: any.

    Raises:
        UserError: the table is missing or damaged, lacks a column, or its rows have another number of texts.
    """
    table = read_table(path)
    named = choose_texts(path, table, asked.columns)
    if texts is not None and len(named) != texts:
        few = {1: "one text", 2: "pairs of texts"}
        raise UserError(
            f"{path}: the head was tuned on {few[texts]}, and a row here has {' and '.join(map(repr, named))}",
            f"name {'one column' if texts == 1 else 'two columns, as in a,b,'} with --columns",
        )
    if asked.label and asked.label not in table:
        raise UserError(f"{path} has no column {asked.label!r}", f"it has {', '.join(map(repr, [*table][:8]))}")
    rows = join_texts(path, table, named)
    source = Sentences(rows, np.zeros(len(rows), np.int32), ("",), str(path))
    return Inputs(path, [path], source, _read_labels(table, asked.label), read_kept(path, table, asked.keep))


def _read_labels(table: Table, label: str) -> np.ndarray:
    """Return the labels of a table, str [N]; empty if it has none, or hides them as -1."""
    own = label or next((name for name in LABELS if name in table), "")
    cells = [str(cell) for cell in table[own]] if own and None not in table[own] else []
    return np.array([] if {*cells} <= {"-1", ""} else cells, str)


def read_kept(path: Path, table: Table, names: str) -> dict[str, list[Any]]:
    """Return the columns to carry through, by names that are separated by commas.

    Raises:
        UserError: the table has no such column, or the output has one of that name anyway.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in wanted:
        if name in ("row", "prediction"):
            raise UserError(f"--keep={name}: the output has a column of that name", "give the column another name")
        if name not in table:
            raise UserError(f"{path} has no column {name!r}", f"it has {', '.join(map(repr, [*table][:8]))}")
    return {name: table[name] for name in wanted}
