"""What the test sets of a study give for nothing, and how sure it is that a method is better than that."""

import math
from collections import Counter
from typing import NamedTuple

from nml_jax.evals.baselines import Baselines, find_baselines
from nml_jax.reporting.statistics.compare import find_leaves, find_redrawn_share, read_shares
from nml_jax.reporting.statistics.paired import (
    add_rows,
    find_half_width,
    find_seed_interval,
    find_wilson_interval,
    stat,
)
from nml_jax.reporting.statistics.studies import MEASURES, PRIMARY, Key, Study


class Baseline(NamedTuple):
    """Answers that need no features, on one test set or in the mean over several.

    chances: metric -> score of a uniform guess among the classes of the test.
    answer: the most frequent class; "" where tests or seeds do not agree.
    scores: metric -> score of always giving that answer.
    """

    chances: dict[str, float]
    answer: str
    scores: dict[str, float]

    @property
    def chance(self) -> float:
        """The accuracy of a guess."""
        return self.chances["accuracy"]

    def best(self, metric: str = "accuracy") -> float:
        """Return the score that a method must exceed, or stay below where smaller is better."""
        better = max if MEASURES[metric].way > 0 else min
        return better(self.chances[metric], self.scores[metric])


def find_baseline(study: Study, test: Key) -> Baseline | None:
    """Return the baseline of a test, or of the mean over tests; None if the classes of some test are not on record."""
    found: list[tuple[float, Baselines, str]] = []
    answers: Counter[str] = Counter()
    for leaf, weight in find_leaves(study, test).items():
        counts = [counts for cell in study.cells if sum((counts := cell.count_classes(leaf.task, leaf.split)).values())]
        if not counts:
            return None
        of = [find_baselines([*one.values()]) for one in counts]
        answers.update([*one][base.answer] for one, base in zip(counts, of, strict=True))
        found += [(weight / len(of), base, leaf.metric) for base in of]
    if not found:
        return None
    names = [name for name in found[0][1].chance if all(name in base.chance for _, base, _ in found)]
    chances = {name: math.fsum(w * base.chance[name] for w, base, _ in found) for name in names}
    scores = {name: math.fsum(w * base.majority[name] for w, base, _ in found) for name in names}
    if test.metric == PRIMARY and all(metric in base.chance for _, base, metric in found):
        chances[PRIMARY] = math.fsum(w * base.chance[metric] for w, base, metric in found)
        scores[PRIMARY] = math.fsum(w * base.majority[metric] for w, base, metric in found)
    return Baseline(chances, next(iter(answers)) if len(answers) == 1 else "", scores)


def find_interval(study: Study, key: Key) -> tuple[float, float]:
    """Return a 95 % interval of a score, over other seeds and other test rows.

    The distances to the ends over seeds (t) and over rows (of accuracies Wilson's) are added in squares. Rows that are
    not on record add nothing, and neither does one seed.
    """
    values = stat(study.table.get(key, [{}])[0].values())
    ends = find_seed_interval(values, redrawn=find_redrawn_share(study, key))
    below, above = ([abs(end - values.mean)] if not math.isnan(end) else [] for end in ends)
    for leaf, weight in find_leaves(study, key).items():
        low, high = _find_row_distances(study, leaf)
        below.append(weight * low)
        above.append(weight * high)
    return values.mean - math.hypot(*below), values.mean + math.hypot(*above)


def _find_row_distances(study: Study, leaf: Key) -> tuple[float, float]:
    """Return how far the ends of an interval over other rows of a test lie from the score."""
    if leaf.metric == "accuracy":
        n, mean = _count_rows(study, leaf), stat(study.table[leaf][0].values()).mean
        if not n:
            return 0.0, 0.0
        low, high = find_wilson_interval(mean, n)
        return mean - low, high - mean
    shares = [read_shares(study, leaf, (0,), seed) for seed in study.table[leaf][0]]
    known = [share for share in shares if share is not None]
    halves = [find_half_width(add_rows([(1.0, share)]), 0.05) for share in known]
    half = max(halves, default=0.0)
    return half, half


def beats(study: Study, key: Key, baseline: Baseline | None) -> bool:
    """Return whether the 95 % interval of a method's score lies beyond what needs no features."""
    if baseline is None or key.metric not in baseline.chances:
        return True
    low, high = find_interval(study, key)
    best = baseline.best(key.metric)
    return low > best if MEASURES[key.metric].way > 0 else high < best


def _count_rows(study: Study, key: Key) -> int:
    rows = (row for cell in study.cells for row in cell.rows if (row.task, row.split) == (key.task, key.split))
    return next((row.n_test for row in rows if row.method and row.n_test), 0)
