"""Comparisons of two numbers of a study, paired over seeds and over test rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nml_jax.evals.metrics import METRICS, Answers, Shares, share_right
from nml_jax.reporting.statistics.paired import (
    Comparison,
    Part,
    add_rows,
    bound_rows,
    compare,
    stat,
    unit,
)
from nml_jax.reporting.statistics.studies import FILES, MEAN, PRIMARY, Key, Study, find_own_metric
from nml_jax.runs.finished import Seed
from nml_jax.runs.heads import read_correct
from nml_jax.runs.predictions import read_predictions
from nml_jax.runs.rows import UNVALIDATED, Row

HELD_OUT = "holdout"  # the split that the stage features draws where there is no test file


class Side(NamedTuple):
    """A number of a study, in the mean over conditions."""

    key: Key
    conditions: Sequence[int] = (0,)


def compare_numbers(study: Study, where: str, a: Side, b: Side) -> Comparison:
    """Compare two numbers of a study that are measured on the same tests, paired over seeds and test rows.

    Where it is not on record which rows were right (older runs, pre-training), what rows add is bounded from above, or
    for other scores than accuracy and recall left out. Measures of spectra are taken as they are: nothing is added.
    """
    values = [_average_seeds(study, *side) for side in (a, b)]
    seeds = [seed for seed in values[0] if seed in values[1]]
    tests = find_leaves(study, a.key)
    anew = find_redrawn_share(study, a.key)
    known: list[tuple[float, list[Shares]]] = []  # weight of a test, and differences in every seed
    unknown: list[tuple[float, float, float, int]] = []
    for test, weight in tests.items():
        pair = Side(test, a.conditions), Side(test._replace(method=b.key.method, setting=b.key.setting), b.conditions)
        d = _read_differences(study, *pair, seeds)
        if d is not None:
            known.append((weight, d))
        elif (n := _count_rows(study, *pair[0])) and pair[1].key in study.table:
            first, second = (stat(_average_seeds(study, *side).values()).mean for side in pair)
            unknown.append((weight, first, second, n))
    rows = [*_add_tests(known, anew), *([] if anew else bound_rows(unknown))]
    found = compare(where, unit(a.key.metric), values[0], values[1], rows, redrawn=anew)
    blind = a.key.method != b.key.method and any(is_unvalidated(study, side.key, side.conditions) for side in (a, b))
    return found._replace(bounded=bool(unknown) and not anew, blind=blind)


def _add_tests(known: Sequence[tuple[float, list[Shares]]], anew: float) -> list[Part]:
    """Return the variance that test rows add to a difference.

    Args:
        known: the weight of each test in the mean, and what its rows add to the difference in every seed.
        anew: see `find_redrawn_share`. Above 0, the variance is that of one seed's rows, in the mean over seeds.
    """
    if not anew or not known:
        return add_rows((weight, _average_shares(d)) for weight, d in known)
    of_seeds = [add_rows((weight, d[i]) for weight, d in known) for i in range(len(known[0][1]))]
    return [Part(stat(sum(part.variance for part in parts) for parts in of_seeds).mean, 1)]


def is_unvalidated(study: Study, key: Key, conditions: Sequence[int] = (0,)) -> bool:
    """Return whether some head behind a number had settings to choose from but no rows to choose them by."""
    heads = (study.sources.get(leaf, []) for leaf in find_leaves(study, key))
    found = (source for of in heads if of for i in conditions for source in of[i].values())
    return any(UNVALIDATED in (row.hyper or {}) for source in found for row in source.rows)


def find_redrawn_share(study: Study, key: Key) -> float:
    """Return the share of the training file that each seed holds out for testing; 0 if the number is of other rows."""
    held = float(study.cells[0].value(f"{FILES}holdout") or 0) if uses_files(study) else 0.0
    return held if any(test.split == HELD_OUT for test in find_leaves(study, key)) else 0.0


def find_leaves(study: Study, key: Key) -> dict[Key, float]:
    """Return the tests that a number is the mean of, each with its weight; a number of one test is its own."""
    if key.task == MEAN:
        own = {
            task: find_own_metric(task, study.table) if key.metric == PRIMARY else key.metric for task in study.tasks
        }
        found = [key._replace(task=task, metric=metric) for task, metric in own.items()]
        found = [key for key in found if key in study.table]
    elif key.split == MEAN:
        same = {name: value for name, value in key._asdict().items() if name != "split"}
        found = [key for key in study.keys(**same) if key.split != MEAN]
    else:
        return {key: 1.0}
    return {leaf: weight / len(found) for key in found for leaf, weight in find_leaves(study, key).items()}


def uses_files(study: Study) -> bool:
    """Return whether the features come from files."""
    return bool(study.cells[0].value(f"{FILES}train"))


def _average_seeds(study: Study, key: Key, conditions: Sequence[int]) -> dict[Seed, float]:
    """Average over conditions, for the seeds that have them all."""
    by_condition = [study.table[key][i] for i in conditions] if key in study.table else [{}]
    seeds = [seed for seed in by_condition[0] if all(seed in values for values in by_condition)]
    return {seed: stat(values[seed] for values in by_condition).mean for seed in seeds}


def _read_differences(study: Study, a: Side, b: Side, seeds: Sequence[Seed]) -> list[Shares] | None:
    """Return for each seed what each row adds to b's score less what it adds to a's; None if it is not recorded.

    Where each seed holds out rows of its own, their numbers may differ.
    """
    found = []
    for seed in seeds:
        first, second = (read_shares(study, *side, seed) for side in (a, b))
        if first is None or second is None:
            return None
        found.append(Shares(second.values - first.values, np.maximum(first.flips, second.flips), first.counts))
    return found or None


def read_shares(study: Study, key: Key, conditions: Sequence[int], seed: Seed) -> Shares | None:
    """Return what each row of a test adds to a score, averaged over conditions and heads; None if not recorded."""
    found = []
    for i in conditions:
        source = study.sources[key][i].get(seed) if key in study.sources else None
        own = [x for row in source.rows if (x := _read_share(source.folder, row)) is not None] if source else []
        if not source or len(own) < len(source.rows):
            return None
        found.append(_average_shares(own))
    return _average_shares(found)


def has_rows(study: Study, leaf: Key) -> bool:
    """Return whether it is on record what each row of a test adds to a score, in every run of the first condition."""
    return all(read_shares(study, leaf, (0,), seed) is not None for seed in study.table[leaf][0])


def _average_shares(shares: Sequence[Shares]) -> Shares:
    """Return the mean over heads, which have the same rows and classes."""
    return Shares(*(np.mean(parts, axis=0) for parts in zip(*shares, strict=True)))


def _read_share(folder: Path, row: Row) -> Shares | None:
    if row.metric == "accuracy":
        right = read_correct(folder, row)
        return None if right is None else share_right(right)
    found = read_predictions(folder, row) if row.metric in METRICS else None
    if found is None or (METRICS[row.metric].needs == "losses" and found.loss is None):
        return None
    kind = np.float64 if found.label.dtype.kind == "f" else np.int64
    answers = Answers(found.label.astype(kind), found.answer.astype(kind), found.loss)
    return METRICS[row.metric].share(answers)


def _count_rows(study: Study, key: Key, conditions: Sequence[int]) -> int:
    """Return the number of rows behind an accuracy or recall; 0 for other measures, and if it is not recorded."""
    if key.metric != "accuracy" and "recall@" not in key.metric:
        return 0
    rows = (row for i in conditions for source in study.sources[key][i].values() for row in source.rows)
    return next((row.n_test for row in rows if row.n_test), 0)


class Term(NamedTuple):
    """A number of one condition, and its factor in a contrast."""

    factor: float
    key: Key
    condition: int = 0


def contrast(study: Study, where: str, terms: Sequence[Term]) -> Comparison:
    """Compare a sum of numbers with 0, paired over seeds and test rows, such as a difference of two differences.

    All terms are of the same tests. Where it is not on record which rows were right, only seeds count, and the result
    says so (`bounded`).
    """
    own = [study.table.get(term.key, [{}] * len(study.conditions))[term.condition] for term in terms]
    seeds = [seed for seed in own[0] if all(seed in values for values in own)]
    sums = {seed: float(sum(t.factor * values[seed] for t, values in zip(terms, own, strict=True))) for seed in seeds}
    tests = find_leaves(study, terms[0].key)
    each = {test: [_add_shares(study, test, terms, seed) for seed in seeds] for test in tests}
    known = [(tests[test], [d for d in own if d is not None]) for test, own in each.items()]
    lost = not seeds or any(len(d) < len(seeds) for _, d in known)
    anew = find_redrawn_share(study, terms[0].key)
    rows = [] if lost else _add_tests(known, anew)
    zeros = dict.fromkeys(seeds, 0.0)
    unvalidated = {t.key.method for t in terms if is_unvalidated(study, t.key, (t.condition,))}
    blind = bool(unvalidated) and len({t.key.method for t in terms}) > 1
    result = compare(where, unit(terms[0].key.metric), zeros, sums, rows, redrawn=anew)
    return result._replace(bounded=lost and terms[0].key.metric in METRICS, blind=blind)


def _add_shares(study: Study, test: Key, terms: Sequence[Term], seed: Seed) -> Shares | None:
    """Return what each row of a test adds to a contrast in one seed; None if it is not recorded for every term."""
    values, flips, counts = 0.0, 0.0, None
    most = sum(max(term.factor, 0) for term in terms)  # what one row can change in favour of a side
    for term in terms:
        leaf = test._replace(method=term.key.method, setting=term.key.setting)
        own = read_shares(study, leaf, (term.condition,), seed)
        if own is None or (counts is not None and len(own.counts) != len(counts)):
            return None
        values = values + term.factor * own.values
        flips, counts = np.maximum(flips, most * own.flips), own.counts
    return None if counts is None else Shares(np.asarray(values), np.asarray(flips), counts)
