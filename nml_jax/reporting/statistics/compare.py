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
from nml_jax.reporting.statistics.studies import FILES, MEAN, MEANS, Key, Study
from nml_jax.runs.finished import Seed
from nml_jax.runs.heads import read_correct
from nml_jax.runs.predictions import read_predictions
from nml_jax.runs.rows import UNVALIDATED, Row

HELD_OUT = "holdout"  # the split that the stage features draws where there is no test file


class Side(NamedTuple):
    """A number of a study, in the mean over conditions."""

    key: Key
    conditions: Sequence[int] = (0,)


class Term(NamedTuple):
    """A number of one condition, and its factor in a contrast."""

    factor: float
    key: Key
    condition: int = 0


def compare_numbers(study: Study, where: str, a: Side, b: Side) -> Comparison:
    """Compare two numbers of a study that are measured on the same tests; see `contrast`."""
    sides = (1 / len(b.conditions), b), (-1 / len(a.conditions), a)
    return contrast(study, where, [Term(factor, side.key, i) for factor, side in sides for i in side.conditions])


def contrast(study: Study, where: str, terms: Sequence[Term]) -> Comparison:
    """Compare the terms with a positive factor with the others, paired over seeds and test rows.

    Such a sum is a difference, or a difference of two differences. All terms are of the same tests, and their factors
    add up to 0. Where it is not on record which rows were right (older runs, pre-training), what rows add is bounded
    from above, or for other scores than accuracy and recall left out. Measures of spectra and average precision are
    taken as they are: nothing is added.
    """
    own = [study.table.get(term.key, [{}] * len(study.conditions))[term.condition] for term in terms]
    seeds = [seed for seed in own[0] if all(seed in values for values in own)]
    a, b = (_add_side(terms, own, seeds, sign) for sign in (-1, 1))
    anew = find_redrawn_share(study, terms[0].key)
    known: list[tuple[float, list[Shares]]] = []  # weight of a test, and differences in every seed
    unknown: list[tuple[float, float, float, int]] = []
    for test, weight in find_leaves(study, terms[0].key).items():
        d = [shares for seed in seeds if (shares := _add_shares(study, test, terms, seed)) is not None]
        if seeds and len(d) == len(seeds):
            known.append((weight, d))
        elif bounds := _bound_test(study, test, terms):
            unknown.append((weight * bounds[0], *bounds[1:]))
    rows = [*_add_tests(known, anew), *([] if anew else bound_rows(unknown))]
    found = compare(where, unit(terms[0].key.metric), a, b, rows, redrawn=anew)
    several = len({term.key.method for term in terms}) > 1
    blind = several and any(is_unvalidated(study, term.key, (term.condition,)) for term in terms)
    return found._replace(bounded=bool(unknown) and not anew, blind=blind)


def _add_side(
    terms: Sequence[Term], own: Sequence[dict[Seed, float]], seeds: Sequence[Seed], sign: int
) -> dict[Seed, float]:
    """Return the sum of the terms whose factors have a sign, by seed."""
    side = [(abs(term.factor), values) for term, values in zip(terms, own, strict=True) if term.factor * sign > 0]
    return {seed: float(sum(factor * values[seed] for factor, values in side)) for seed in seeds}


def _bound_test(study: Study, test: Key, terms: Sequence[Term]) -> tuple[float, float, float, int] | None:
    """Return the factor of a side, both shares and the number of rows of a test; None if the latter is unknown."""
    leaves = [(term, _find_leaf(test, term)) for term in terms]
    if any(leaf not in study.table for _, leaf in leaves):
        return None
    rows = _count_rows(study, leaves[0][1], (leaves[0][0].condition,))
    mass = sum(term.factor for term in terms if term.factor > 0)
    low, high = (
        sum(abs(t.factor) * study.stat(t.condition, leaf).mean for t, leaf in leaves if t.factor * sign > 0) / mass
        for sign in (-1, 1)
    )
    return (mass, low, high, rows) if rows else None


def _find_leaf(test: Key, term: Term) -> Key:
    """Return the key of one test of a term."""
    return term.key._replace(metric=test.metric, task=test.task, split=test.split)


def _add_shares(study: Study, test: Key, terms: Sequence[Term], seed: Seed) -> Shares | None:
    """Return what each row of a test adds to a contrast in one seed; None if it is not recorded for every term."""
    values, flips, counts = 0.0, 0.0, None
    most = sum(max(term.factor, 0) for term in terms)  # what one row can change in favour of a side
    for term in terms:
        own = read_shares(study, _find_leaf(test, term), (term.condition,), seed)
        if own is None or (counts is not None and len(own.counts) != len(counts)):
            return None
        values = values + term.factor * own.values
        flips, counts = np.maximum(flips, most * own.flips), own.counts
    return None if counts is None else Shares(np.asarray(values), np.asarray(flips), counts)


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
    if key.task in MEANS:
        own = {task: study.find_metric_of(task, key.metric) for task in study.list_members(key.task)}
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
