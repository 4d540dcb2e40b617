"""A table per class and a confusion matrix for every test file, of the method that is advised there."""

from collections.abc import Sequence

import numpy as np

from nml_jax.reporting.blocks import Block, fold, table
from nml_jax.reporting.statistics.baselines import find_baseline
from nml_jax.reporting.statistics.choose_method import Contest
from nml_jax.reporting.statistics.paired import DASH, PERCENT
from nml_jax.reporting.statistics.studies import MEAN, Key, Method, Study
from nml_jax.runs.heads import read_confusion

WIDEST = 20  # classes of a matrix that is shown whole
NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "mean_per_class": "mean per class"}
MOST = 60  # classes of a table, and pairs of classes that are confused


def list_classes(contest: Contest) -> list[Block]:
    """Return, folded for each test, scores per class and the confusion matrix; nothing for older runs."""
    out = []
    for test in contest.tests if contest.task != MEAN else ():
        method = contest.advised(test) or contest.reference
        out += _show_test(contest.study, test._replace(method=method), f"Classes of {test.split}", str(method))
    return out


def list_classes_by_condition(study: Study, task: str, method: Method) -> list[Block]:
    """Return what every test of a task gives for nothing, and, folded, its classes in the first and last condition."""
    keys = [key for key in study.keys(metric="accuracy", task=task, method=method) if key.split != MEAN]
    lines = []
    for key in keys:
        if base := find_baseline(study, key):
            scores = [PERCENT.number(of[name]) for of in (base.scores, base.chances) for name in NAMES]
            lines.append([key.split, base.answer or DASH, *scores])
    caption = "What needs no features: always the most frequent class of the test, and guessing among all. Scores in %."
    over = [("", 2), ("commonest class", len(NAMES)), ("chance", len(NAMES))]
    head = ["test", "commonest class", *NAMES.values(), *NAMES.values()]
    out = [table(caption, head, {"": lines}, (1,), over)] if lines else []
    for i in sorted({0, len(study.conditions) - 1}):
        for key in keys:
            setting = f" ({key.setting})" if key.setting else ""
            title = f"Classes of {task}, {key.split}{setting} at {study.at(study.conditions[i])}"
            out += _show_test(study, key, title, str(method), i)
    return out


def _show_test(study: Study, key: Key, title: str, method: str, condition: int = 0) -> list[Block]:
    """Return the folded tables of a test in a condition; nothing if they are not on record."""
    sources = study.sources.get(key, [{}] * (condition + 1))[condition]
    matrices = [read_confusion(source.folder, row) for source in sources.values() for row in source.rows]
    found = [matrix for matrix in matrices if matrix is not None]
    names = {tuple(cell.count_classes(key.task, key.split)) for cell in study.conditions[condition].cells}
    sizes = {len(matrix) for matrix in found}
    if len(found) < len(matrices) or len(sizes) != 1 or len(names) != 1:
        return []
    known, k = [*names.pop()], sizes.pop()
    known = known if len(known) == k else [str(i) for i in range(k)]  # names are not on record, or not distinct
    return [fold(title, *_show_matrix(sum(found[1:], found[0]), known, len(found), method))]


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
