"""Find the wrong labels among the features of a run, or in a feature file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from nml_jax import console
from nml_jax.data.features import files
from nml_jax.data.features.sets import Rows
from nml_jax.data.stratify import draw_stratified
from nml_jax.tuning.label_errors import LabelErrors, find_checked

FOLDS, SEED = 5, 0  # the same for every run, so that the suspects are those of the file
NAMED = ("ids", "id")  # arrays of ids in an npz


def judge_rows(
    rows: Rows, labels: np.ndarray, classes: Sequence[Any], *, most: int, ids: Sequence[Any] | None = None
) -> LabelErrors:
    """Judge the labels of rows by their first views. Row numbers are those of `rows`.

    Args:
        labels: int [N], numbers in `classes`.
        most: rows that are judged, at most; of more, the same share of each class is drawn, and that is said.
        ids: what rows are called, [N].

    Raises:
        UserError: there are too few rows of each class.
    """
    if len(rows) <= most:
        return find_checked(rows.read()[:, 0], labels, classes, ids=ids, folds=FOLDS, seed=SEED)
    chosen = draw_stratified(labels, most / len(labels), SEED)
    console.notice(f"labels: {len(chosen):,} of {len(rows):,} rows are judged, as more do not fit into memory")
    names = None if ids is None else [ids[i] for i in chosen]
    found = find_checked(rows.rows(chosen)[:, 0], labels[chosen], classes, ids=names, folds=FOLDS, seed=SEED)
    return found.place(chosen, len(rows))


def read_ids(features: files.Features) -> list[str] | None:
    """Return the ids of a file's rows: its first column that is an id by its name, or an array `ids` of an npz.

    None if there are none, or if the file is of another format.
    """
    named = [name for name, why in features.ids.items() if "name" in why]
    parts = [_read_column(path, [*named, *features.ids]) for path in features.files]
    ids = [cell for part in parts for cell in part or ()]
    return ids if len(ids) == len(features) else None


def _read_column(path: Path, names: Sequence[str]) -> list[str] | None:
    """Read the first of the columns as texts; None if there is none."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with np.load(path) as content:
            found = [name for name in NAMED if name in content.files and content[name].ndim == 1]
            return [str(cell) for cell in content[found[0]].tolist()] if found else None
    if suffix not in (".csv", ".tsv", ".parquet") or not names:
        return None
    if suffix == ".parquet":
        table = pyarrow.parquet.read_table(path, columns=[names[0]])
    else:
        table = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=[names[0]], column_types={names[0]: pa.string()}
            ),
        )
    return ["" if cell is None else str(cell) for cell in table.column(0).to_pylist()]
