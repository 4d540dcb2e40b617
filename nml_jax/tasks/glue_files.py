"""Read the splits of GLUE's sets and their partners from a user's folder."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nml_jax import inputs
from nml_jax.data.text import find, records
from nml_jax.data.text.tables import Table, join_texts, read_scores, read_table
from nml_jax.errors import MissingInput, UserError
from nml_jax.tasks.glue_sets import TextSet

HIDDEN = {"", "-", "-1", "none", "nan"}  # in place of a label


class Part(NamedTuple):
    """The rows of a split that have a label.

    texts: N texts or pairs.
    labels: int32 [N], numbers of the set's classes; or float32 [N], scores.
    without: texts of the rows without a label.
    """

    texts: list[tuple[str, ...]]
    labels: np.ndarray
    without: list[tuple[str, ...]] = []  # noqa: RUF012  a NamedTuple's default, never changed

    @property
    def hidden(self) -> int:
        return len(self.without)


def locate_set(folder: str, of: TextSet) -> Path | None:
    """Return the folder of a set below a user's folder; None if there is none."""
    return find.find_set(Path(folder).expanduser(), of.names)


def locate_split(home: Path, split: str) -> list[Path]:
    """Return the files of a split in the folder of a set, or the folder that TFDS has prepared; [] for none."""
    if (prepared := find.find_prepared(home)) and not find.find_split(home, split):
        return [prepared] if _name_prepared(prepared, split) else []
    return find.find_split(home, split)


def _name_prepared(prepared: Path, split: str) -> str:
    """Return TFDS's name of a split; "" if it has none."""
    kind, *more = split.split()
    names = ("_".join([word, *more]) for word in find.SPLITS[kind])
    known = records.list_splits(prepared)
    return next((name for name in names if name in known), "")


def read_split(home: Path, of: TextSet, split: str, *, scored: bool) -> Part:
    """Read a split.

    Args:
        home: the folder of the set.
        split: as of `find.find_split`.
        scored: whether to read scores, or else classes.

    Raises:
        UserError: there is no such split, a file is damaged, or a row has a label that is none of the set's.
    """
    paths = locate_split(home, split)
    if not paths:
        raise MissingInput(f"{home} has no split {split!r}", f"put {split.replace(' ', '_')}.tsv there, from {of.url}")
    parts = [_read_file(path, of, split, scored) for path in paths]
    labels = np.concatenate([part.labels for part in parts])
    texts, without = ([text for part in parts for text in getattr(part, name)] for name in ("texts", "without"))
    return Part(texts, labels, without)


def _read_file(path: Path, of: TextSet, split: str, scored: bool) -> Part:
    if path.is_dir():
        table = records.read_records(path, _name_prepared(path, split))
    else:
        table = read_table(path, bare=of.bare, broken=of.broken)
    columns = next((names for names in of.columns if {*names} <= {*table}), None)
    if columns is None:
        wanted = " or ".join(repr(" and ".join(names)) for names in of.columns)
        raise UserError(f"{path} has no column {wanted}", f"it has {', '.join(map(repr, [*table][:8]))}")
    texts = join_texts(path, table, columns)
    label = next((name for name in (of.scores if scored else of.labels) if name in table), "")
    if not label:
        return Part([], np.zeros(0, np.int32), texts)
    if scored:
        scores, rows = read_scores(path, table, label, of.bounds, _is_hidden)
        labels = np.array(scores, np.float32)
    else:
        numbers = _number_classes(path, table, label, of)
        rows = np.flatnonzero(numbers >= 0).tolist()
        labels = numbers[rows]
    known = {*rows}
    return Part([texts[row] for row in rows], labels, [own for row, own in enumerate(texts) if row not in known])


def _is_hidden(cell: Any) -> bool:
    """Return whether a cell of scores has none. The word nan is a fault, which is not hidden."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (cell == -1)


def _number_classes(path: Path, table: Table, label: str, of: TextSet) -> np.ndarray:
    """Return the number of each row's class, int32 [N], −1 where it is hidden.

    Raises:
        UserError: a label is none of the set's; its place is named.
    """
    words = [_spell(cell) for cell in table[label]]
    found, numbers = {*words}, {name: i for i, name in enumerate(of.classes)}
    numbers |= {_spell(word): of.classes.index(name) for word, name in of.spellings.items()}
    first = 0
    if of.numbered_from_one and "0" not in found and not found.isdisjoint({"1", "2"}):
        first = 1
        if str(len(of.classes)) not in found:
            raise UserError(
                f"{path}: all labels are '1', which is {of.classes[0]!r} or {of.classes[1]!r}",
                "write the labels as words",
            )
    numbers |= {str(i + first): i for i in range(len(of.classes))}
    numbers |= dict.fromkeys(HIDDEN, -1)
    if unknown := [row for row, word in enumerate(words) if word not in numbers]:
        row = unknown[0]
        raise UserError(
            f"{path}, {table.place(row)}: {label!r} is {table[label][row]!r}, which is no class of {of.names[0]}",
            f"it has {', '.join(of.classes)}, or their numbers from {first}",
        )
    return np.array([numbers[word] for word in words], np.int32)


def _spell(cell: Any) -> str:
    """Return a label in small letters with underscores; a whole number without its zeros."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip().casefold().replace("-", "_").replace(" ", "_") if str(cell) not in ("-", "-1") else "-1"


def require_apart(train: list[Path], tests: dict[str, list[Path]]) -> None:
    """Raise UserError if a file to train on is a file to test on, too."""
    own = {inputs.describe_content(path): path for path in train if path.is_file()}
    for name, paths in tests.items():
        for path in paths:
            if path.is_file() and (same := own.get(inputs.describe_content(path))):
                raise UserError(
                    f"{name}: {path} is the same as {same}, which heads are trained on",
                    "a test needs rows of its own; take the file away",
                )
