"""Check the published findings on a study's numbers: rate by rate, with a paired interval."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from nml_jax.reporting.statistics.compare import Term, contrast
from nml_jax.reporting.statistics.paired import PERCENT, SEEDS, Comparison, Unit, compare
from nml_jax.reporting.statistics.studies import Key, Study
from nml_jax.reporting.studies.numbers import DETECTORS, SPECTRUM, Numbers
from nml_jax.reporting.studies.recipes import PROBE, Claim, Recipe
from nml_jax.runs.finished import Seed

MARGIN = 0.01  # a share that is lower by less than this is "not lower", where that was published
VERDICTS = ("shown", "not shown", "opposite", "no claim")
PUBLISHED = {1: "higher", -1: "lower"}
CORRELATION = Unit(1, 2)


class Finding(NamedTuple):
    """A claim at one condition.

    at: the condition and the one it is compared with, with the setting of the head if there are several. found: the
    difference with its interval at the study's level. verdict: shown | not shown | opposite | no claim. way: 1 if a
    larger number is better, else −1. seeds: those of the study, of which `found` may have fewer.
    """

    claim: Claim
    at: str
    found: Comparison
    verdict: str
    way: int
    seeds: int

    @property
    def words(self) -> str:
        """Return the claim and where it is checked."""
        return f"{self.claim.words}, {self.at}" if self.at else self.claim.words

    @property
    def sign(self) -> int:
        """Return the published sign as that of the difference: of a loss, a worse one is positive."""
        return self.way * self.claim.sign

    @property
    def published(self) -> str:
        """Return the published sign in words."""
        return PUBLISHED[self.sign] if self.sign else f"not {PUBLISHED[-self.way]}"


def check_claims(recipe: Recipe, numbers: Numbers) -> list[Finding]:
    """Check all claims of a recipe for which there are numbers. Intervals hold at 95 % for all of them together."""
    planned = list(plan(recipe, numbers))
    seeds = len({cell.seed for cell in numbers.study.cells})
    out = []
    for claim, at, make in planned:
        together, way = make().corrected(len(planned)), numbers.find_way(claim.y, claim.tasks)
        out.append(Finding(claim, at, together, judge(claim, together, way), way, seeds))
    return out


def count_comparisons(recipe: Recipe, numbers: Numbers) -> int:
    """Return how many comparisons the claims of a recipe are. None is made."""
    return sum(1 for _ in plan(recipe, numbers))


def judge(claim: Claim, found: Comparison, way: int = 1) -> str:
    """Return what a comparison, corrected for all that are made, says about a published sign.

    Args:
        way: of the measure: 1 if larger is better, else −1.
    """
    if found.n < SEEDS or found.blind:
        return "no claim"
    if claim.sign == 0:
        low, high = sorted((way * found.low, way * found.high))
        margin = MARGIN if found.unit.scale == PERCENT.scale else 0.0  # other measures have no points
        return "opposite" if way * found.sign < 0 and high < -margin else "shown" if low > -margin else "not shown"
    return {claim.sign: "shown", -claim.sign: "opposite"}.get(way * found.sign, "not shown")


def plan(recipe: Recipe, numbers: Numbers) -> Iterator[tuple[Claim, str, Callable[[], Comparison]]]:
    """Yield every claim, where it is checked, and a function that returns the difference there."""
    study = numbers.study
    for claim in recipe.claims:
        if claim.kind == "slope":
            pairs = numbers.pair_keys(claim.x, claim.domain)
            if ranks := _correlate(study, pairs):
                make = partial(compare, "", CORRELATION, dict.fromkeys(ranks, 0.0), ranks)
                yield claim, f"{len(pairs)} test(s)", make
            continue
        for terms, at in _list_contrasts(claim, numbers):
            if all(term.key in study.table for term in terms):
                yield claim, at, partial(contrast, study, at, terms)


def _list_contrasts(claim: Claim, numbers: Numbers) -> Iterator[tuple[list[Term], str]]:
    """Yield the sums of numbers that a claim is about, and where each is taken."""
    study, last = numbers.study, len(numbers.study.conditions) - 1
    first, chosen = _choose_conditions(claim, numbers)
    for key in numbers.find_keys(claim.y, claim.domain, _list_methods(claim), claim.tasks):
        setting = f", {key.setting}" if key.setting else ""
        if key.method and key.method.preset and claim.y not in DETECTORS:
            setting += f", preset {key.method.preset}"
        setting += "".join(f", {word}" for word in numbers.name_place(key))
        if claim.kind == "change":
            for i in chosen:
                at = f"{study.at(study.conditions[i])} against {study.conditions[first].label}{setting}"
                yield [Term(1, key, i), Term(-1, key, first)], at
            continue
        for other in numbers.find_keys(claim.y, claim.domain, (claim.other,), claim.tasks):
            if other == key or not _fits(key, other, claim):
                continue
            if claim.kind == "gain":
                for i in chosen or range(last + 1):
                    yield [Term(1, key, i), Term(-1, other, i)], f"{study.at(study.conditions[i])}{setting}"
            elif last:
                lost = [Term(1, key, last), Term(-1, key, 0), Term(-1, other, last), Term(1, other, 0)]
                yield lost, f"{study.conditions[0].label} to {study.at(study.conditions[last])}{setting}"


def _fits(key: Key, other: Key, claim: Claim) -> bool:
    """Return whether two heads may be compared: with one setting, and two ways to fine-tune with the same terms."""
    if (other.setting, other.weights) != (key.setting, key.weights):
        return False
    return claim.kind != "shrink" or claim.other == PROBE or (key.method or "")[1:] == (other.method or "")[1:]


def _list_methods(claim: Claim) -> tuple[str, ...]:
    return () if claim.y in SPECTRUM else (claim.method,)


def _choose_conditions(claim: Claim, numbers: Numbers) -> tuple[int, list[int]]:
    """Return the condition that others are compared with, and those of the claim's band or pair."""
    conditions = numbers.study.conditions
    if claim.pair:
        labels = [condition.label for condition in conditions]
        if not {*claim.pair} <= {*labels}:
            return 0, []
        return labels.index(claim.pair[0]), [labels.index(claim.pair[1])]
    low, high = claim.band
    if claim.kind == "gain" and numbers.study.axis != "noise":
        return 0, list(range(len(conditions)))
    if numbers.study.axis != "noise":
        return 0, list(range(1, len(conditions)))
    inside = [i for i, condition in enumerate(conditions) if low < condition.x <= high + 1e-9]
    return 0, inside if claim.kind == "gain" else [i for i in inside if i]


def _correlate(study: Study, pairs: Sequence[tuple[Key, Key]]) -> dict[Seed, float]:
    """Return the rank correlation of two changes over tests and conditions, by seed; of some seeds there is none."""
    found: dict[Seed, float] = {}
    for seed in sorted({seed for x, _ in pairs for values in study.table[x] for seed in values}):
        changes = [change for pair in pairs for change in _list_changes(study, pair, seed)]
        xs, ys = zip(*changes, strict=True) if changes else ((), ())
        if len(xs) >= 3 and np.ptp(xs) and np.ptp(ys):
            rank: Any = spearmanr(xs, ys)
            found[seed] = float(rank.statistic)
    return found


def _list_changes(study: Study, pair: tuple[Key, Key], seed: Seed) -> list[tuple[float, float]]:
    """Return both measures at every condition but the first, less those of the first, where a seed has all four."""
    first, *rest = zip(*(study.table[key] for key in pair), strict=True)
    if not all(seed in values for values in first):
        return []
    x0, y0 = (values[seed] for values in first)
    return [(x[seed] - x0, y[seed] - y0) for x, y in rest if seed in x and seed in y]


def describe(finding: Finding) -> str:
    """Return a finding as a sentence."""
    c = finding.found
    points = " points" if c.unit.scale == PERCENT.scale else ""
    if math.isnan(c.low):
        interval = f"{c.n} seed(s), and a claim needs {SEEDS}"
    else:
        interval = f"{c.unit.signed(c.low)} to {c.unit.signed(c.high)}"
        interval += f"; {c.n} of {finding.seeds} seeds" if c.n < finding.seeds else ""
    said = f"{finding.words}: {c.gain}{points if c.n else ''} ({interval})"
    return f"{said[:1].upper()}{said[1:]}; published: {finding.published}; {finding.verdict}."
