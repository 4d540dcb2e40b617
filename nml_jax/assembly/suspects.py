"""Find the wrong labels among the features of a run, or in a feature file."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nml_jax import console
from nml_jax.data.features import files
from nml_jax.data.features.sets import Rows
from nml_jax.data.stratify import draw_stratified
from nml_jax.errors import UserError
from nml_jax.tuning.label_errors import LabelErrors, find_checked

FOLDS, SEED = 5, 0  # the same for every run, so that the suspects are those of the file
NAMED = ("ids", "id")  # arrays of ids in an npz


def judge_rows(
    rows: Rows,
    labels: np.ndarray,
    classes: Sequence[Any],
    *,
    most: int,
    ids: Sequence[Any] | None = None,
    groups: np.ndarray | None = None,
) -> LabelErrors:
    """Judge the labels of rows by their first views. Row numbers are those of `rows`.

    Args:
        labels: int [N], numbers in `classes`.
        most: rows that are judged, at most; of more, the same share of each class is drawn, and that is said.
        ids: what rows are called, [N].
        groups: [N]; rows of one value are judged by rows of others.

    Raises:
        UserError: there are too few rows of each class.
    """
    if len(rows) <= most:
        return find_checked(rows.read()[:, 0], labels, classes, ids=ids, folds=FOLDS, seed=SEED, groups=groups)
    chosen = draw_stratified(labels, most / len(labels), SEED)
    console.notice(f"labels: {len(chosen):,} of {len(rows):,} rows are judged, as more do not fit into memory")
    names = None if ids is None else [ids[i] for i in chosen]
    how = {"ids": names, "folds": FOLDS, "seed": SEED, "groups": None if groups is None else groups[chosen]}
    found = find_checked(rows.rows(chosen)[:, 0], labels[chosen], classes, **how)
    return found.place(chosen, len(rows))


def read_ids(features: files.Features) -> list[str] | None:
    """Return the ids of a file's rows: its first column that is an id by its name, or an array `ids` of an npz.

    None if there are none.
    """
    named = [name for name, why in features.ids.items() if "name" in why]
    for name in [*named, *features.ids, *NAMED]:
        try:
            cells = files.read_more(features, [name])[name]
        except UserError:
            continue  # not every file has it
        return ["" if cell is None else str(cell) for cell in cells]
    return None
