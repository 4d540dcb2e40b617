"""Tables per class, confusion matrices, and what probabilities are worth, for every test."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nml_jax.evals.calibration import BINS, bin_rows
from nml_jax.reporting import figures
from nml_jax.reporting.blocks import Block, Figure, fold, table
from nml_jax.reporting.statistics.baselines import find_baseline
from nml_jax.reporting.statistics.choose_method import Contest, name_test
from nml_jax.reporting.statistics.paired import DASH, PERCENT, format_mean
from nml_jax.reporting.statistics.studies import MEAN, Key, Method, Study
from nml_jax.runs.heads import read_confusion
from nml_jax.runs.predictions import read_predictions

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


# ---- what probabilities are worth

PANELS = 6  # tests that are drawn
BEFORE = "_before"
COLUMNS = {"ece": "calibration error %", "log_loss": "log loss (nats)"}


class Sure(NamedTuple):
    """The answers of a method to a test, of all seeds together: whether they are right, and how sure they were."""

    right: np.ndarray
    confidence: np.ndarray
    before: np.ndarray | None  # without the temperature


def show_calibration(contest: Contest, name: str) -> list[Block]:
    """Return the errors of every method on every test, and the reliability of the advised one; nothing if unknown."""
    tests = contest.tests if contest.task != MEAN else ()
    scaled = any(contest.stat(m, test, f"ece{BEFORE}").n for m in contest.methods for test in tests)
    columns = [
        (test, metric, suffix) for test in tests for metric in COLUMNS for suffix in ((BEFORE, "") * scaled or ("",))
    ]
    lines = []
    for method in contest.methods:
        stats = [contest.stat(method, test, metric + suffix) for test, metric, suffix in columns]
        if any(s.n for s in stats):
            cells = [format_mean(s, column[1]) for s, column in zip(stats, columns, strict=True)]
            lines.append([str(method), *cells])
    if not lines:
        return []
    head = ["", *(COLUMNS[metric] + (", before" if suffix else ", after" if scaled else "")
                  for _, metric, suffix in columns)]  # fmt: skip
    each = len(columns) // len(tests)
    over = [("", 1), *((name_test(test), each) for test in tests)]
    caption = (
        f"The calibration error (ECE) is the mean over rows of |share of right answers − mean confidence| "
        f"of their bin: {BINS} bins of equally many rows in the order of the probability of the answer, fewer of fewer "
        f"than {10 * BINS} rows. Mean ± sample sd over seeds; methods without probabilities are left out."
    )
    if scaled:
        caption += " After: logits are divided by a temperature that was found on rows held out from training."
    figure = _draw_reliability(contest, tests, name)
    return [table(caption, head, {"": lines}, over=over), *([Block("figure", figure)] if figure.panels else [])]


def _draw_reliability(contest: Contest, tests: tuple[Key, ...], name: str) -> Figure:
    panels, names = [], {}
    for i, test in enumerate(tests[:PANELS]):
        method = contest.advised(test) or contest.reference
        found = _read_answers(contest, test, method)
        if found is None:
            continue
        kinds = {"as trained": found.confidence}
        if found.before is not None:
            kinds = {"before": found.before, "after the temperature": found.confidence}
        lines = {kind: bin_rows(confidence, found.right)[:2] for kind, confidence in kinds.items()}
        panels.append(figures.draw_reliability(f"{name}{i}", f"{name_test(test)}, {method}", lines))
        names |= dict.fromkeys(lines)
    caption = (
        "How often answers are right (%, upwards) against how sure they are. Below the dashed line answers are too "
        "sure. Bins as in the table, of all seeds together."
    )
    return Figure("Reliability", panels, caption, [figures.choose_mark(i, who) for i, who in enumerate(names)])


def _read_answers(contest: Contest, test: Key, method: Method) -> Sure | None:
    """Return the answers of a method; None if they are not on record, or are not probabilities."""
    sources = contest.study.sources.get(test._replace(metric="accuracy", method=method), [{}])[0]
    found = [read_predictions(source.folder, row) for source in sources.values() for row in source.rows]
    known = [one for one in found if one is not None and one.confidence is not None]
    if not known or len(known) < len(found):
        return None
    before = [one.confidence_before for one in known if one.confidence_before is not None]
    return Sure(
        np.concatenate([one.label == one.answer for one in known]),
        np.concatenate([one.confidence for one in known if one.confidence is not None]),
        np.concatenate(before) if len(before) == len(known) else None,
    )
