"""Say which differences a study can show with its seeds and test rows, from the spread of finished runs."""

from collections.abc import Sequence

from nml_jax.console import list_words
from nml_jax.reporting.statistics.paired import PERCENT, SEEDS, Comparison, Part, add_seeds, find_half_width
from nml_jax.reporting.statistics.studies import Study
from nml_jax.reporting.studies.findings import find_range, plan
from nml_jax.reporting.studies.numbers import Numbers
from nml_jax.reporting.studies.rates import choose_conditions
from nml_jax.reporting.studies.recipes import RECIPES

POINT = 0.01
MOST = 1000  # seeds
WANTED = 0.8  # of true differences of that size are shown


def describe_power(name: str, study: Study, *, exact: bool = True) -> list[str]:
    """Return a sentence for each kind of comparison; of those that no finished runs have, that they need a pilot.

    Args:
        name: a key of RECIPES.
        study: as planned (planned.py): with all its conditions, seeds and heads, and the numbers that are finished.
        exact: whether all its comparisons are known.
    """
    recipe, numbers = RECIPES[name], Numbers(study)
    planned = list(plan(recipe, numbers))
    level = f"{'' if exact else 'at least '}{len(planned)} comparisons"
    seeds = len({cell.seed for cell in study.cells})
    said, unknown = [], []
    for words in dict.fromkeys(claim.words for claim, _, _ in planned):
        own = [(claim, at, make) for claim, at, make in planned if claim.words == words]
        found = ((claim, made._replace(where=f"{words}, {at}")) for claim, at, make in reversed(own)
                 if (made := make()).n > 1)  # fmt: skip
        if (last := next(found, None)) is None:
            unknown.append(words)
        else:
            most = find_range(last[0], numbers)
            said.append(_say(last[1], seeds, len(planned), level, most))
    if unknown:
        said.append(f"{list_words(unknown)}: known after a pilot of this study, with two seeds of what is compared")
    gaps: dict[str, list[str]] = {}
    for claim in recipe.claims:
        if why := choose_conditions(claim, study).why:
            gaps.setdefault(why, []).append(claim.words)
    return said + [f"no claim on {list_words(dict.fromkeys(words))}: {why}" for why, words in gaps.items()]


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


def _say(found: Comparison, seeds: int, comparisons: int, level: str, most: float) -> str:
    """Return what can be shown there.

    Args:
        level: the number of comparisons, in words.
        most: the largest difference there can be.
    """
    spread = f"{level}; spread of {found.n} finished seeds"
    if found.constant:
        return f"{found.where}: the {found.n} finished seeds do not vary, so that more of them are needed ({spread})"
    points, of_rows = found.unit.scale == PERCENT.scale, len(found.parts) > 1 or bool(found.redrawn)
    size = find_smallest(expect_parts(found, seeds), comparisons) if seeds >= SEEDS else 0.0
    if seeds < SEEDS:
        shown = f"{seeds} seed(s) show nothing, as a claim needs {SEEDS}"
    elif size > most:
        shown = f"{seeds} seeds show no difference that is possible"
    else:
        text = f"{100 * size:.1f} points" if points else f"{found.unit.scale * size:.{found.unit.digits + 1}f}"
        shown = f"{seeds} seeds{' and these test rows' if of_rows else ''} show a true difference of {text} "
        shown += f"{WANTED:.0%} of the time"
    return f"{found.where}: {shown} ({spread})" + (f"; {_count(found, comparisons, of_rows)}" if points else "")


def _count(found: Comparison, comparisons: int, of_rows: bool) -> str:
    """Return how many seeds show a point."""
    if needed := count_seeds(found, comparisons):
        return f"one of 1 point takes {needed} seeds"
    return "no number of seeds shows 1 point: more test rows do" if of_rows else f"1 point takes over {MOST} seeds"
