"""A source of texts, or of pairs of texts, with labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nml_jax.data.class_names import clean_labels
from nml_jax.data.features.files import encode, find_classes
from nml_jax.data.sources.source import Source, digest
from nml_jax.data.text.tables import choose_columns, read_table
from nml_jax.errors import MissingInput, UserError

TABLES = (".parquet", ".tsv", ".csv")  # endings of files that hold a split, the first that is there


class Sentences(Source):
    """Texts in memory, each a tuple of one or two, with labels.

    name: what messages call them, such as the path of their table.
    """

    def __init__(
        self, texts: Sequence[tuple[str, ...]], labels: np.ndarray, class_names: Sequence[str], name: str = "texts"
    ):
        super().__init__(
            labels,
            num_classes=len(class_names),
            class_names=class_names,
            fingerprint=digest("texts", [list(text) for text in texts], list(class_names), np.asarray(labels)),
        )
        self.texts, self.name = texts, name


def open_split(folder: Path, split: str, columns: str, label: str) -> Sentences:
    """Open the table of a split, FOLDER/SPLIT with one of the endings TABLES.

    Args:
        columns, label: names, see `tables.choose_columns`.

    Raises:
        UserError: there is no such file, or it is damaged, or a row lacks a text or a label.
    """
    path = next((file for file in (folder / f"{split}{ending}" for ending in TABLES) if file.is_file()), None)
    if path is None:
        raise MissingInput(f"{folder} holds no {split}{' or '.join(TABLES)}", "set --config.data.path and data.train")
    table = read_table(path)
    named, own = choose_columns(path, list(table), columns, label)
    texts = list(zip(*(table[name] for name in named), strict=True))
    for row, cells in enumerate(zip(texts, table[own], strict=True)):
        if not all(isinstance(text, str) for text in cells[0]) or cells[1] in (None, ""):
            raise UserError(f"{path}: row {row} has no text, or no label", "fill it in, or leave the row out")
    labels = clean_labels(np.array(table[own]), f"{path}, labels")
    classes = find_classes(labels, str(path))
    return Sentences(texts, encode(labels, classes, str(path)), tuple(map(str, classes.tolist())), str(path))
