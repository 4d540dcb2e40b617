"""Say which differences a study can show with its seeds and test rows, from the spread of finished runs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from nml_jax.reporting.statistics.grouping import CONDITION
from nml_jax.reporting.statistics.paired import PERCENT, SEEDS, Comparison, Part, add_seeds, find_half_width
from nml_jax.reporting.statistics.studies import Condition, Study
from nml_jax.reporting.studies.findings import count_comparisons, plan
from nml_jax.reporting.studies.numbers import SPECTRUM, Numbers
from nml_jax.reporting.studies.recipes import RECIPES

POINT = 0.01
MOST = 1000  # seeds
WANTED = 0.8  # of true differences of that size are shown


class Planned(NamedTuple):
    """What a study will have when all its runs are finished: seeds, noise rates, and names of conditions."""

    seeds: int
    rates: Sequence[float] = ()
    conditions: Sequence[str] = ()


def describe_power(name: str, study: Study, planned: Planned) -> list[str]:
    """Return a sentence for each kind of comparison; none if the finished runs have no spread yet.

    Args:
        name: a key of RECIPES.
        study: its finished runs: all of them, or a pilot's.
        planned: the whole study, whose comparisons and seeds count.
    """
    numbers = Numbers(study)
    comparisons = max(count_comparisons(RECIPES[name], Numbers(_complete(study, planned))), 1)
    last = {claim.words: (at, make) for claim, at, make in plan(RECIPES[name], numbers)
            if claim.y not in SPECTRUM and claim.kind != "slope"}  # fmt: skip
    found = (make()._replace(where=f"{words}, {at}") for words, (at, make) in last.items())
    return [_say(c, planned.seeds, comparisons) for c in found if c.n > 1 and c.unit.scale == PERCENT.scale]


def _complete(study: Study, planned: Planned) -> Study:
    """Return a study with its planned conditions, those that are not finished without numbers."""
    known = list(enumerate(study.conditions))
    if study.axis == "noise":
        here = {condition.x for _, condition in known}
        more = [Condition(rate, f"{100 * rate:.4g} %", ()) for rate in planned.rates if rate not in here]
        known = sorted(
            [*known, *((-1, condition) for condition in more)], key=lambda pair: (math.isnan(pair[1].x), pair[1].x)
        )
    elif study.axis == CONDITION:
        here = {condition.label for _, condition in known}
        known += [(-1, Condition(0.0, label, ())) for label in planned.conditions if label not in here]
    table = {key: [values[i] if i >= 0 else {} for i, _ in known] for key, values in study.table.items()}
    return dataclasses.replace(study, conditions=tuple(condition for _, condition in known), table=table)


def expect_parts(found: Comparison, seeds: int) -> list[Part]:
    """Return the parts of the variance that a comparison would have with so many seeds."""
    own, *rows = found.parts
    variance = own.variance / add_seeds(1.0, found.n, found.redrawn).variance
    return [add_seeds(variance, seeds, found.redrawn), *rows]


def find_smallest(parts: Sequence[Part], comparisons: int) -> float:
    """Return the true difference that is shown in WANTED of the cases, at 95 % for all comparisons together."""
    return find_half_width(parts, 0.05 / comparisons) + find_half_width(parts, 2 * (1 - WANTED))


def count_seeds(found: Comparison, comparisons: int, size: float = POINT) -> int:
    """Return how many seeds would show a difference of `size`; 0 if more than MOST, as the test rows are too few."""
    enough = (n for n in range(SEEDS, MOST + 1) if find_smallest(expect_parts(found, n), comparisons) <= size)
    return next(enough, 0)


def _say(found: Comparison, seeds: int, comparisons: int) -> str:
    """Return what can be shown there."""
    needed = count_seeds(found, comparisons)
    more = f"one of 1 point takes {needed} seeds" if needed else "no number of seeds shows 1 point: more test rows do"
    if seeds < SEEDS:
        shown = f"{seeds} seed(s) show nothing, as a claim needs {SEEDS}"
    else:
        size = 100 * find_smallest(expect_parts(found, seeds), comparisons)
        shown = (
            f"{seeds} seeds and these test rows show a true difference of {size:.1f} points {WANTED:.0%} of the time"
        )
    return f"{found.where}: {shown} ({comparisons} comparisons; spread of {found.n} finished seeds); {more}"
