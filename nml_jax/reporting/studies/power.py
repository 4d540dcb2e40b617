"""Say which difference a study can show with its seeds and test rows, from the spread of finished runs."""

from collections.abc import Iterator, Sequence

from nml_jax.reporting.statistics.choose_method import DOMAINS
from nml_jax.reporting.statistics.compare import Term, contrast
from nml_jax.reporting.statistics.paired import PERCENT, Comparison, Part, find_half_width
from nml_jax.reporting.statistics.studies import Study
from nml_jax.reporting.studies.findings import count_comparisons
from nml_jax.reporting.studies.numbers import SPECTRUM, Numbers
from nml_jax.reporting.studies.recipes import PROBE, RECIPES, Recipe

POINT = 0.01
MOST = 1000  # seeds
WANTED = 0.8  # of true differences of that size are shown


def describe_power(name: str, study: Study) -> list[str]:
    """Return a sentence for each domain; none if the finished runs have no spread yet.

    Args:
        name: a key of RECIPES.
        study: its finished runs: all of them, or a pilot's.
    """
    numbers = Numbers(study)
    comparisons = max(count_comparisons(RECIPES[name], numbers), 1)
    return [_say(found, comparisons) for found in _compare_ends(RECIPES[name], numbers)]


def _compare_ends(recipe: Recipe, numbers: Numbers) -> Iterator[Comparison]:
    """Yield the difference between the first and the last condition, in each domain: of the probe, or a detector."""
    last = len(numbers.study.conditions) - 1
    measures = {view.domain: view for view in reversed(recipe.views) if view.y not in SPECTRUM}
    for domain, words in DOMAINS.items() if last > 0 else ():
        view = measures.get(domain)
        for key in numbers.find_keys(view.y, domain, view.methods or (PROBE,))[:1] if view else ():
            name = "probe" if key.method == numbers.probe else str(key.method)
            found = contrast(numbers.study, f"{words}, {name}", [Term(1, key, last), Term(-1, key, 0)])
            if found.n > 1 and found.unit == PERCENT:
                yield found


def find_smallest(parts: Sequence[Part], comparisons: int) -> float:
    """Return the true difference that is shown in WANTED of the cases, at 95 % for all comparisons together."""
    return find_half_width(parts, 0.05 / comparisons) + find_half_width(parts, 2 * (1 - WANTED))


def count_seeds(parts: Sequence[Part], n: int, comparisons: int, size: float = POINT) -> int:
    """Return how many seeds would show a difference of `size`; 0 if more than MOST, as the test rows are too few.

    Args:
        parts: of the variance, that of n seeds first.
    """
    seeds, *rows = parts
    for count in range(3, MOST + 1):
        if find_smallest([Part(seeds.variance * n / count, count - 1), *rows], comparisons) <= size:
            return count
    return 0


def _say(found: Comparison, comparisons: int) -> str:
    """Return what can be shown there."""
    shown = 100 * find_smallest(found.parts, comparisons)
    needed = count_seeds(found.parts, found.n, comparisons)
    more = f"one of 1 point takes {needed} seeds" if needed else "no number of seeds shows 1 point: more test rows do"
    return (
        f"{found.where}: {found.n} seeds and these test rows show a true difference of {shown:.1f} points "
        f"{WANTED:.0%} of the time ({comparisons} comparisons); {more}"
    )
