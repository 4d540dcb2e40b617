"""Choose the feature columns of a table, by their names and their types in its first rows."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from nml_jax import console
from nml_jax.data.features import columns as cells
from nml_jax.data.features.formats import (
    FEATURES,
    LABELS,
    choose_features,
    is_text_table,
    list_names,
    raise_several_labels,
)
from nml_jax.data.features.guesses import is_embedding_name, is_id, measure_unread
from nml_jax.data.features.lists import Lists, describe_lists, find_numbers, parse_list
from nml_jax.errors import UserError

FEW = 8  # columns of numbers: fewer are more likely to lie beside an embedding than to be one
NUMERAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
KEEP = "--config.features.columns='{}' keeps columns of your choice"


class Choice(NamedTuple):
    """The feature columns of a table.

    columns: their names: several columns of numbers, or one of lists.
    lists: what the cells of a column of lists hold; None for columns of numbers.
    ids: why each column was taken for an id.
    guessed: whether neither the user nor the training file named the columns.
    """

    path: Path
    columns: tuple[str, ...]
    lists: Lists | None = None
    ids: Mapping[str, str] = {}
    guessed: bool = False

    def drop_ids(self, counting: Sequence[str]) -> "Choice":
        """Return the choice without the columns that count up. Raise UserError if no other is left."""
        if self.lists is not None:
            return self
        kept = tuple(name for name in self.columns if name not in counting)
        if not kept:
            raise UserError(
                f"{self.path} has no columns of numbers besides label and ids: {list_names(counting)} count up",
                "give a column for every feature; " + KEEP.format(counting[0]),
            )
        return self._replace(columns=kept, ids={**self.ids, **dict.fromkeys(counting, "it counts up")})


def choose_columns(
    path: Path,
    batch: pa.RecordBatch,
    label: str | None,
    columns: str,
    wanted: Sequence[str],
    *,
    guessed: bool,
    group: str = "",
) -> Choice:
    """Choose the feature columns of a table.

    Args:
        path: of the table, for errors.
        batch: its first rows.
        label: name of the label column, if there is one.
        columns, wanted: as in `files.open_features`.
        guessed: whether the label was chosen by its name alone, so that a column of words may be the label instead.
        group: name of a column that is never a feature; "": none.

    Raises:
        UserError: the columns are missing or ambiguous, or one looks like an embedding and cannot be read.
    """
    names = batch.schema.names
    lists = {name: found for name in names if name != group and (found := describe_lists(batch.column(name)))}
    numbers = [name for name in names if name != group and cells.is_number(batch.schema.field(name).type)]
    if columns and (columns in names or not wanted):
        return _take_named(path, batch, columns, lists, [name for name in numbers if name != label or name == columns])
    if wanted and not (missing := [name for name in wanted if name not in names]):
        strange = [name for name in wanted if name not in numbers]
        if strange and not is_text_table(path):  # the cells of CSV files are checked later
            what = f"{path}: column {strange[0]!r} holds {batch.schema.field(strange[0]).type}"
            raise UserError(f"{what}; in training it held numbers", "write the column as numbers")
        return Choice(path, tuple(wanted))
    ids = {name: "by its name" for name in names if name not in (label, group) and is_id(name, batch.column(name))}
    others = [name for name in names if name not in (label, group) and name not in ids]
    scalars = [name for name in numbers if name in others]
    found = _choose_lists(path, {name: lists[name] for name in others if name in lists}, scalars)
    if wanted and not found:
        raise UserError(
            f"{path} lacks the feature columns {list_names(missing)}; it has {list_names(names)}",
            "give every column of the training file under its name, in any order",
        )
    _check_unread(path, batch, [name for name in others if name not in (*lists, *numbers)], found, lists, scalars)
    if found:
        return Choice(path, (found,), lists[found], ids, guessed=True)
    if not scalars:
        has = list_names(f"{name} ({batch.schema.field(name).type})" for name in names)
        cure = "give a column for every feature" + ("; " + KEEP.format(next(iter(ids))) if ids else "")
        raise UserError(f"{path} has no columns of numbers besides label and id: {has}", cure)
    if not label and len(doubtful := [name for name in LABELS if name in scalars]) > 1:
        raise_several_labels(path, doubtful)  # the others would become features
    kinds = {name: batch.schema.field(name).type for name in others}
    words = [name for name, kind in kinds.items() if cells.is_text(kind) or pa.types.is_dictionary(kind)]
    if guessed and words:
        raise UserError(
            f"{path} has words in column {words[0]!r} and a column {label!r}: either may be the label",
            f"name the label with label=NAME (--config.features.label={label}, which leaves {list_names(words)} out)",
        )
    return Choice(path, tuple(scalars), None, ids, guessed=True)


def _take_named(
    path: Path, batch: pa.RecordBatch, columns: str, lists: Mapping[str, Lists], numbers: Sequence[str]
) -> Choice:
    """Return the columns that the user names: one name, or several and patterns such as f*, separated by commas."""
    names = batch.schema.names
    if columns in lists:
        return Choice(path, (columns,), lists[columns])
    patterns = [columns] if columns in names else [part.strip() for part in columns.split(",")]
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = [pattern] if pattern in names else fnmatch.filter(names, pattern)
        if not matches or (pattern in names and pattern not in numbers):
            what = (
                f"column {pattern!r} holds {batch.schema.field(pattern).type}" if matches else f"no column {pattern!r}"
            )
            has = list_names(name for name in names if name in numbers or name in lists)
            raise UserError(f"{path}: {what}", f"name a column of numbers or of lists of numbers: {has}")
        found |= dict.fromkeys(name for name in matches if name in numbers)
    if not found:
        raise UserError(f"{path}: no column of numbers matches {columns!r}", f"it has {list_names(names)}")
    return Choice(path, tuple(found))


def _choose_lists(path: Path, lists: Mapping[str, Lists], scalars: Sequence[str]) -> str:
    """Return the name of the column of lists to take; "" if there is none.

    Lists of lists beside many columns of numbers are left out, unless their name says embedding: they may be images.
    """
    likely = [name for name, found in lists.items() if found.plain or is_embedding_name(name) or len(scalars) < FEW]
    flat = [name for name in likely if len(lists[name].shape) == 1]
    return choose_features(path, flat or likely) if likely else ""


def _check_unread(
    path: Path, batch: pa.RecordBatch, names: Iterable[str], found: str, lists: Mapping[str, Lists],
    scalars: Sequence[str],
) -> None:  # fmt: skip
    """Raise UserError if a column that cannot be read looks more like the embedding than what would be taken for it."""
    if found in FEATURES or (found and is_embedding_name(found)):
        return
    if not found:
        for name in names:  # one bad cell must not drop a column of numbers
            if cells.is_text(batch.schema.field(name).type):
                cells.check_slips(batch.column(name)[:1000], f"{path}: column {name!r}")
    taken = lists[found].shape[-1] if found else min(len(scalars), FEW)
    for name in names:
        width = measure_unread(name, batch.column(name))
        if width and (width >= taken or is_embedding_name(name)):
            kind = batch.schema.field(name).type
            cut = cells.is_text(kind) and any("..." in (cell or "") for cell in batch.column(name)[:10].to_pylist())
            raise UserError(
                f"{path}: column {name!r} of type {kind} looks like an embedding and cannot be read"
                + ": it was shortened with ... when it was printed" * cut,
                f"write it as lists of numbers of one length; or {KEEP.format(found or next(iter(scalars), 'NAME'))}",
            )


def check_header(path: Path, batch: pa.RecordBatch, label: str, wanted: Sequence[str]) -> None:
    """Check that the first line of a CSV file holds names, not the first row.

    Numbers are names where a name that is not a number stands beside them, above a column of numbers or as the label's;
    or where they count up, as the names that pandas gives. In the last case a line is logged.

    Raises:
        UserError: the first line looks like a row.
    """
    names = batch.schema.names
    numbers = [name for name in names if NUMERAL.fullmatch(name.strip()) or _is_list(name)]
    if not numbers or (wanted and set(wanted) <= set(names)):
        return
    for i, name in enumerate(names):
        column = batch.column(i)
        if name in numbers or name.strip() in cells.MISSING:
            continue
        known = name == label or name in LABELS or is_id(name, column)
        values = column.cast(pa.string()).unique().to_pylist() if known and cells.is_text(column.type) else ()
        numeric = cells.is_number(column.type) or find_numbers(column.type) is not None
        if numeric or (known and name not in values):
            return
    if all(name.strip().isdecimal() for name in numbers):
        values = [int(name) for name in numbers]
        if values == list(range(values[0], values[0] + len(values))) and (values[0] == 0 or len(values) > 2):
            console.notice(f"{path}: the first line, {list_names(names)}, is taken for names of columns")
            return
    raise UserError(
        f"{path}: the first line holds {list_names(names)}, which looks like a row and not like names",
        "the first line must name the columns, as in f0, f1, label",
    )


def _is_list(name: str) -> bool:
    """Return whether a name is a list of numbers."""
    try:
        return bool(parse_list(name).ndim)
    except (ValueError, TypeError):
        return False
