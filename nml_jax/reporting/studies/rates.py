"""Choose the conditions that a claim is checked at, by their noise rates, or say why there are none."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nml_jax.console import list_words
from nml_jax.reporting.statistics.grouping import CONDITION, find_differences
from nml_jax.reporting.statistics.studies import REPLICATE, Condition, Study
from nml_jax.reporting.studies.recipes import ANY, Claim

# Keys in which the noise of two runs differs.
NOISE_KEYS = ("noise", "noise_kind", "noise_file", "noise_classes", "noise_rate_of")
KINDS = {"symmetric": "matched", "human": "labels"}  # of noise, for the names of Claim.pair
CLOSE = 1e-9  # of rates that are equal


class Chosen(NamedTuple):
    """The conditions of a claim, by their positions.

    first: the one that others are compared with. others: those at which it is checked. why: where there are none, what
    is missing.
    """

    first: int
    others: Sequence[int]
    why: str = ""


def choose_conditions(claim: Claim, study: Study) -> Chosen:
    """Choose the conditions that a claim is checked at.

    A gain is checked wherever the rate is in the claim's band, for it compares two heads of one encoder. All else
    compares rates, the lowest with the others, and so needs conditions that differ in noise alone. The lowest
    rate of named conditions must be 0, for their names do not say what it is.
    """
    if claim.pair:
        return _choose_pair(claim.pair, study)
    if claim.anywhere:
        return Chosen(0, range(len(study.conditions)))
    rates = [find_rate(study, condition) for condition in study.conditions]
    if not any(map(math.isfinite, rates)):
        return Chosen(0, (), "the noise rates are unknown")
    low, high = claim.band
    inside = [i for i, rate in enumerate(rates) if low < rate <= high + CLOSE]  # a rate of NaN is not
    if claim.kind == "gain":
        return Chosen(0, inside, "" if inside else _say_none(claim, rates))
    first, last = int(np.nanargmin(rates)), len(rates) - 1 - int(np.nanargmax(rates[::-1]))
    if rates[last] <= rates[first]:
        return Chosen(first, (), f"the conditions do not differ in noise: all have {format_rate(rates[first])}")
    if study.axis == CONDITION and (more := find_differences(study.cells, (*REPLICATE, *NOISE_KEYS))):
        return Chosen(first, (), f"the conditions differ in more than noise: in {list_words(more)}")
    if study.axis not in ("noise", CONDITION):
        return Chosen(first, (), f"the conditions differ in more than noise: in {study.axis}")
    if study.axis == CONDITION and rates[first] > 0:
        return Chosen(first, (), f"no condition has 0 % noise, with which others are compared: the lowest rate is "
                      f"{format_rate(rates[first])}")  # fmt: skip
    if claim.kind == "shrink":
        return Chosen(first, (last,))
    others = [i for i in inside if i != first]
    return Chosen(first, others, "" if others else _say_none(claim, rates))


def find_rate(study: Study, condition: Condition) -> float:
    """Return the share of wrong supervision in pre-training; NaN if it is unknown."""
    if study.axis == "noise":
        return condition.x
    rates = [cell.noise for cell in condition.cells]
    return float(np.median(rates)) if rates else math.nan


def name_band(claim: Claim) -> str:
    """Return the rates that a claim is about, in words."""
    low, high = claim.band
    return f"above {format_rate(low)}" + (f", up to {format_rate(high)}" if high < 1 else "")


def format_rate(rate: float) -> str:
    return f"{100 * rate:.4g} %"


def _say_none(claim: Claim, rates: Sequence[float]) -> str:
    known = dict.fromkeys(format_rate(rate) for rate in sorted(filter(math.isfinite, rates)))
    published = f"it is published for rates {name_band(claim)}, and " if claim.band == ANY else ""  # else in its words
    return f"{published}the runs have {list_words(known)}"


def _choose_pair(pair: tuple[str, str], study: Study) -> Chosen:
    """Find two named conditions; one whose name is not there by its kind of noise, if no other has that kind."""
    labels = [condition.label for condition in study.conditions]
    if {*pair} <= {*labels}:
        return Chosen(labels.index(pair[0]), (labels.index(pair[1]),))
    files = [
        {(cell.noise_kind, cell.value("noise_file")) for cell in condition.cells} for condition in study.conditions
    ]
    found = [[(i, file) for i, of in enumerate(files) for kind, file in of if kind == KINDS.get(name)] for name in pair]
    if all(len(of) == 1 for of in found):
        (first, one), (second, other) = (of[0] for of in found)
        if one == other:
            return Chosen(first, (second,))
    kinds = list_words(f"{name} (noise_kind={KINDS[name]})" for name in pair)
    return Chosen(0, (), f"it needs one condition of each kind, {kinds}, of one noise_file")
