"""A table per class and a confusion matrix for every test file, of the method that is advised there."""

from collections.abc import Sequence

import numpy as np

from nml_jax.reporting.blocks import Block, fold, table
from nml_jax.reporting.statistics.choose_method import Contest
from nml_jax.reporting.statistics.paired import DASH, PERCENT
from nml_jax.reporting.statistics.studies import Key, Method
from nml_jax.runs.heads import read_confusion

WIDEST = 20  # classes of a matrix that is shown whole
MOST = 60  # classes of a table, and pairs of classes that are confused


def list_classes(contest: Contest) -> list[Block]:
    """Return, folded for each test file, scores per class and the confusion matrix; nothing for older runs."""
    out = []
    for test in contest.tests:
        method = contest.advised(test) or contest.reference
        found = _read_matrices(contest, test, method)
        names = _list_names(contest, test, found)
        if found and names:
            blocks = _show_matrix(sum(found[1:], found[0]), names, len(found), str(method))
            out.append(fold(f"Classes of {test.split}", *blocks))
    return out


def _read_matrices(contest: Contest, test: Key, method: Method) -> list[np.ndarray]:
    """Return the confusion matrix of every seed; none unless all are on record."""
    sources = contest.study.sources.get(test._replace(method=method), [{}])[0]
    found = [read_confusion(source.folder, row) for source in sources.values() for row in source.rows]
    return [matrix for matrix in found if matrix is not None] if all(m is not None for m in found) else []


def _list_names(contest: Contest, test: Key, found: Sequence[np.ndarray]) -> list[str]:
    """Return the names of the classes; none if they are not on record, or not the same in all runs."""
    names = [tuple(map(str, cell.features.get("classes", ()))) for cell in contest.study.cells]
    return list(names[0]) if len(set(names)) == 1 and all(len(names[0]) == len(matrix) for matrix in found) else []


def _show_matrix(matrix: np.ndarray, names: Sequence[str], seeds: int, method: str) -> list[Block]:
    """Return the table of the classes and the matrix, or the pairs that are confused most if it is a large one."""
    right, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    precision, recall, f1 = (
        _divide(a, b) for a, b in ((right, predicted), (right, true), (2 * right, true + predicted))
    )
    order = np.arange(len(names)) if len(names) <= MOST else np.argsort(np.nan_to_num(f1, nan=2), kind="stable")[:MOST]
    scores = [
        [DASH if np.isnan(x) else PERCENT.number(x) for x in of] for of in zip(precision, recall, f1, strict=True)
    ]
    lines = [[names[i], f"{true[i] / seeds:,.0f}", *scores[i]] for i in order.tolist()]
    over = f", all answers of {seeds} seeds together" if seeds > 1 else ""
    few = f" The {MOST} classes with the lowest F1 of {len(names)}." if len(names) > MOST else ""
    caption = f"Classes as {method} answers{over}. Rows: of the class in the file. Scores in %.{few}"
    head = ["class", "rows", "precision", "recall", "F1"]
    return [table(caption, head, {"": lines}), _show_cells(matrix, names, seeds)]


def _show_cells(matrix: np.ndarray, names: Sequence[str], seeds: int) -> Block:
    each = "rows" if seeds == 1 else "rows, in the mean over seeds"
    digits = 0 if seeds == 1 else 1
    if len(names) <= WIDEST:
        lines = [[name, *(f"{n / seeds:,.{digits}f}" for n in line)] for name, line in zip(names, matrix, strict=True)]
        caption = f"Confusion matrix: {each}. Down: the class in the file; across: the answer."
        return table(caption, ["", *names], {"": lines})
    wrong = matrix * (1 - np.eye(len(names), dtype=np.int64))
    order = [i for i in np.argsort(-wrong, axis=None, kind="stable")[:MOST].tolist() if wrong.flat[i]]
    pairs = [(*divmod(i, len(names)), wrong.flat[i]) for i in order]
    lines = [[names[a], names[b], f"{n / seeds:,.{digits}f}"] for a, b, n in pairs]
    caption = f"The pairs of classes that are confused most: {each}. The whole matrix is in confusion/ of each run."
    return table(caption, ["class in the file", "answer", "rows"], {"": lines}, (1,))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, float64; NaN where b is 0."""
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
