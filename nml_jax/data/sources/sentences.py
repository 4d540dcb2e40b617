"""A source of texts, or of pairs of texts, with labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nml_jax import console
from nml_jax.data.class_names import clean_labels
from nml_jax.data.features.files import encode, find_classes
from nml_jax.data.sources.source import Source, digest
from nml_jax.data.text.tables import SUFFIXES, choose_columns, join_texts, read_scores, read_table
from nml_jax.errors import MissingInput, UserError


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


class ScoredSentences(Sentences):
    """Texts in memory with a score each, to be predicted by regression.

    `labels` are the scores, float32 [N]. There is one class, whose name is what they measure.
    """

    def __init__(self, texts: Sequence[tuple[str, ...]], scores: np.ndarray, measure: str, name: str = "texts"):
        super().__init__(texts, np.zeros(len(scores), np.int32), (measure,), name)
        self.labels = self.labels_clean = np.asarray(scores, np.float32)
        self.fingerprint = digest("scored", self.fingerprint, self.labels)


def read_texts(
    path: Path, columns: str, label: str, *, scored: bool = False
) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Return the texts of a table, and their labels as they are written.

    Args:
        columns, label: names, see `tables.choose_columns`.
        scored: whether labels are scores, float32 [N].

    Raises:
        UserError: the file is missing or damaged, or a row lacks a text or a label.
    """
    table = read_table(path)
    named, own = choose_columns(path, table, columns, label)
    console.notice_once(f"{path}: texts {' and '.join(map(repr, named))}, label {own!r}")
    texts, labels = join_texts(path, table, named), table[own]
    if scored:
        return texts, np.array(read_scores(path, table, own, None, lambda cell: False)[0], np.float32)
    empty = [row for row, value in enumerate(labels) if value is None or value == ""]
    if empty:
        cause = f"{path}: {len(empty)} rows have no label, such as {table.place(empty[0])}"
        raise UserError(cause, "leave them out")
    if {str(value) for value in labels} == {"-1"}:
        raise UserError(f"{path}: every label is -1, which hides them", "give a split with labels, such as dev")
    return texts, clean_labels(np.array(labels), f"{path}, labels")


def number_classes(
    path: Path, texts: Sequence[tuple[str, ...]], labels: np.ndarray, classes: np.ndarray | None = None
) -> Sentences:
    """Return a source of texts whose labels become numbers of the classes, by default of those that are there."""
    classes = find_classes(labels, str(path)) if classes is None else classes
    return Sentences(texts, encode(labels, classes, str(path)), tuple(map(str, classes.tolist())), str(path))


def open_split(folder: Path, split: str, columns: str, label: str) -> Sentences:
    """Open the table of a split, FOLDER/SPLIT with one of the endings of tables.

    Raises:
        UserError: there is no such file; or see `read_texts`.
    """
    path = next((file for file in (folder / f"{split}{ending}" for ending in SUFFIXES) if file.is_file()), None)
    if path is None:
        raise MissingInput(f"{folder} holds no {split}{', '.join(SUFFIXES)}", "set --config.data.path and data.train")
    return number_classes(path, *read_texts(path, columns, label))
