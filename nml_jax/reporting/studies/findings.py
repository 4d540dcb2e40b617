"""Check the published findings on a study's numbers: rate by rate, with a paired interval."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from nml_jax.console import list_words
from nml_jax.reporting.sentences import add_article, count
from nml_jax.reporting.statistics.choose_method import DOMAINS
from nml_jax.reporting.statistics.compare import Term, contrast
from nml_jax.reporting.statistics.paired import PERCENT, SEEDS, Comparison, Unit, compare, unit
from nml_jax.reporting.statistics.studies import Key, Method, Study
from nml_jax.reporting.studies.numbers import DETECTORS, NAMES, SPECTRUM, Numbers
from nml_jax.reporting.studies.rates import Chosen, choose_conditions, name_band
from nml_jax.reporting.studies.recipes import ANY, OWN, PROBE, Claim, Recipe
from nml_jax.runs.finished import Seed

MARGIN = 0.01  # a share that is lower by less than this is "not lower", where that was published
VERDICTS = ("shown", "not shown", "opposite", "no claim")
PUBLISHED = {1: "higher", -1: "lower"}
CORRELATION = Unit(1, 2)
FEWEST = 3  # pairs of changes that a rank correlation needs
WIDTHS = {"mcc": 2.0, "pearson": 2.0, "spearman": 2.0}  # of measures between -1 and 1, from one end to the other


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
        way = numbers.find_way(claim.y, claim.tasks)
        together = make().corrected(len(planned)).cut(find_range(claim, numbers))
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
    if found.n < SEEDS or found.blind or found.constant:
        return "no claim"
    if claim.sign == 0:
        low, high = sorted((way * found.low, way * found.high))
        margin = MARGIN if found.unit.scale == PERCENT.scale else 0.0  # other measures have no points
        return "opposite" if way * found.sign < 0 and high < -margin else "shown" if low > -margin else "not shown"
    return {claim.sign: "shown", -claim.sign: "opposite"}.get(way * found.sign, "not shown")


def find_range(claim: Claim, numbers: Numbers) -> float:
    """Return the largest size that the difference of a claim can have; infinity if its measure has no end."""
    if claim.kind == "slope":
        return 1.0
    widths = [1.0 if unit(metric) == PERCENT else WIDTHS.get(metric, math.inf)
              for metric in numbers.list_metrics(claim.y, claim.tasks)]  # fmt: skip
    return max(widths, default=math.inf) * (2 if claim.kind == "shrink" else 1)


def plan(recipe: Recipe, numbers: Numbers) -> Iterator[tuple[Claim, str, Callable[[], Comparison]]]:
    """Yield every claim, where it is checked, and a function that returns the difference there."""
    for claim in recipe.claims:
        chosen = choose_conditions(claim, numbers.study)
        of = _list_slopes if claim.kind == "slope" else _list_differences
        yield from ((claim, at, make) for at, make in of(claim, numbers, chosen))


def explain_gaps(recipe: Recipe, numbers: Numbers) -> list[str]:
    """Say which claims have no finding, and why: a sentence for each reason."""
    checked = {claim for claim, _, _ in plan(recipe, numbers)}
    reasons: dict[str, list[str]] = {}
    for claim in (claim for claim in recipe.claims if claim not in checked):
        why = choose_conditions(claim, numbers.study).why or _find_lack(claim, numbers)
        words = claim.words if claim.band == ANY else f"{claim.words} at rates {name_band(claim)}"
        reasons.setdefault(why, []).append(words)
    return [f"no claim on {list_words(dict.fromkeys(words))}: {why}" for why, words in reasons.items()]


def _find_lack(claim: Claim, numbers: Numbers) -> str:
    """Return which numbers a claim lacks."""
    if claim.kind == "slope":
        return f"the runs have fewer than {FEWEST} pairs of changes of both, over tests and conditions"
    if claim.y in SPECTRUM:
        return "the runs have no such spectra"
    score = (
        f"{claim.y.replace('_', ' ')}" if claim.y in DETECTORS else f"{NAMES[claim.tasks]}{DOMAINS[claim.domain]} score"
    )
    for name in filter(None, (claim.method, claim.other)):
        if not numbers.find_keys(claim.y, claim.domain, (name,), claim.tasks):
            return f"the runs have no {score} of {'the probe' if name == PROBE else add_article(Method(name))}"
    return "no two of the heads have the same settings"


def _list_slopes(claim: Claim, numbers: Numbers, chosen: Chosen) -> Iterator[tuple[str, Callable[[], Comparison]]]:
    """Yield a rank correlation for every layer and weights, over the tests of the heads that all rows have trained."""
    pairs = numbers.choose_whole(numbers.pair_keys(claim.x, claim.domain))
    groups: dict[tuple[str, ...], list[tuple[Key, Key]]] = {}
    for pair in pairs:
        groups.setdefault((pair[0].layer, pair[0].weights), []).append(pair)
    for (layer, weights), own in groups.items():
        if len(own) * len(chosen.others) < FEWEST:
            continue
        tests = len({(score.task, score.split) for _, score in own})
        place = [layer, f"{weights} weights" if weights else ""] if len(groups) > 1 else []
        at = ", ".join([count(tests, "test"), *filter(None, place)])
        yield at, partial(_compare_ranks, numbers.study, own, chosen)


def _compare_ranks(study: Study, pairs: Sequence[tuple[Key, Key]], chosen: Chosen) -> Comparison:
    """Compare the rank correlation of every seed with none."""
    ranks = _correlate(study, pairs, chosen)
    return compare("", CORRELATION, dict.fromkeys(ranks, 0.0), ranks)


def _list_differences(claim: Claim, numbers: Numbers, chosen: Chosen) -> Iterator[tuple[str, Callable[[], Comparison]]]:
    study = numbers.study
    for terms, at in _list_contrasts(claim, numbers, chosen):
        if all(term.key in study.table for term in terms):
            yield at, partial(contrast, study, at, terms)


def _list_contrasts(claim: Claim, numbers: Numbers, chosen: Chosen) -> Iterator[tuple[list[Term], str]]:
    """Yield the sums of numbers that a claim is about, and where each is taken."""
    conditions, first = numbers.study.conditions, chosen.first
    for key in numbers.find_keys(claim.y, claim.domain, _list_methods(claim), claim.tasks):
        setting = f", {key.setting}" if key.setting else ""
        if key.method and key.method.preset and claim.y not in DETECTORS:
            setting += f", preset {key.method.preset}"
        setting += "".join(f", {word}" for word in numbers.name_place(key))
        others = (
            [None] if claim.kind == "change" else numbers.find_keys(claim.y, claim.domain, (claim.other,), claim.tasks)
        )
        for other, i in itertools.product(others, chosen.others):
            at = numbers.study.at(conditions[i])
            if other is None:
                yield [Term(1, key, i), Term(-1, key, first)], f"{at} against {conditions[first].label}{setting}"
            elif other == key or not _fits(key, other, claim):
                continue
            elif claim.kind == "gain":
                yield [Term(1, key, i), Term(-1, other, i)], f"{at}{setting}"
            else:
                lost = [Term(1, key, i), Term(-1, key, first), Term(-1, other, i), Term(1, other, first)]
                yield lost, f"{conditions[first].label} to {at}{setting}"


def _fits(key: Key, other: Key, claim: Claim) -> bool:
    """Return whether two heads may be compared: with one setting, and two ways to fine-tune with the same terms."""
    if (other.setting, other.weights) != (key.setting, key.weights):
        return False
    return claim.kind != "shrink" or claim.other == PROBE or (key.method or "")[1:] == (other.method or "")[1:]


def _list_methods(claim: Claim) -> tuple[str, ...]:
    return () if claim.y in SPECTRUM else (claim.method,)


def _correlate(study: Study, pairs: Sequence[tuple[Key, Key]], chosen: Chosen | None = None) -> dict[Seed, float]:
    """Return the rank correlation of two changes over tests and conditions, by seed; of some seeds there is none.

    Args:
        chosen: the conditions, the first and all others by default.
    """
    chosen = chosen or Chosen(0, range(1, len(study.conditions)))
    found: dict[Seed, float] = {}
    for seed in sorted({seed for x, _ in pairs for values in study.table[x] for seed in values}):
        changes = [change for pair in pairs for change in _list_changes(study, pair, seed, chosen)]
        xs, ys = zip(*changes, strict=True) if changes else ((), ())
        if len(xs) >= FEWEST and np.ptp(xs) and np.ptp(ys):
            rank: Any = spearmanr(xs, ys)
            found[seed] = float(rank.statistic)
    return found


def _list_changes(study: Study, pair: tuple[Key, Key], seed: Seed, chosen: Chosen) -> list[tuple[float, float]]:
    """Return both measures at every condition, less those of the first, where a seed has all four."""
    tables = [study.table[key] for key in pair]
    first = [table[chosen.first] for table in tables]
    if not all(seed in values for values in first):
        return []
    x0, y0 = (values[seed] for values in first)
    rest = [[table[i] for table in tables] for i in chosen.others]
    return [(x[seed] - x0, y[seed] - y0) for x, y in rest if seed in x and seed in y]


def describe(finding: Finding) -> str:
    """Return a finding as a sentence."""
    c = finding.found
    points = " points" if c.unit.scale == PERCENT.scale else ""
    if c.constant:
        interval = f"the {c.n} seeds do not vary, which leaves no interval"
    elif math.isnan(c.low):
        interval = f"{c.n} seed(s), and a claim needs {SEEDS}"
    else:
        interval = f"{c.unit.signed(c.low)} to {c.unit.signed(c.high)}"
        interval += f"; {c.n} of {finding.seeds} seeds" if c.n < finding.seeds else ""
    said = f"{finding.words}: {c.gain}{points if c.n else ''} ({interval})"
    origin = "expected" if finding.claim.source == OWN else "published"
    return f"{said[:1].upper()}{said[1:]}; {origin}: {finding.published}; {finding.verdict}."
