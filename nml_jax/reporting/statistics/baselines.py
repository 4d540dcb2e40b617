"""What a test set gives for nothing: guessing by chance, and always answering its most frequent class."""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from nml_jax.evals.metrics import compute_scores
from nml_jax.reporting.statistics.compare import find_leaves
from nml_jax.reporting.statistics.paired import find_seed_interval, find_wilson_interval, stat
from nml_jax.reporting.statistics.studies import MEAN, Key, Study


class Baseline(NamedTuple):
    """Answers that need no features, on one test set or in the mean over several.

    chance: expected accuracy of a uniform guess among the classes of training.
    answer: the most frequent class; "" where tests or seeds do not agree.
    scores: metric -> score of always giving that answer.
    """

    chance: float
    answer: str
    scores: dict[str, float]

    @property
    def best(self) -> float:
        """The accuracy that a method must exceed."""
        return max(self.chance, self.scores["accuracy"])


def find_baseline(study: Study, test: Key) -> Baseline | None:
    """Return the baseline of a test, or of the mean over tests; None if the classes of some test are not on record."""
    found, answers = [], Counter()
    for leaf, weight in find_leaves(study, test).items():
        of = [_read_baseline(counts) for counts in _list_counts(study, leaf) if sum(counts.values())]
        if not of:
            return None
        answers.update(one.answer for one in of)
        found += [(weight / len(of), one) for one in of]
    if not found:
        return None
    scores = {name: math.fsum(w * one.scores[name] for w, one in found) for name in found[0][1].scores}
    answer = next(iter(answers)) if len(answers) == 1 else ""
    return Baseline(math.fsum(w * one.chance for w, one in found), answer, scores)


def _list_counts(study: Study, test: Key) -> list[dict[str, int]]:
    """Return class -> rows of a test, for every run that has it."""
    out = []
    for cell in study.cells:
        classes = [str(name) for name in cell.features.get("classes", ())]
        for split in cell.features.get("splits", ()):
            if split["split"] == test.split and test.split != MEAN:
                out.append(dict(zip(classes, split["per_class"], strict=True)))
    return out


def _read_baseline(counts: dict[str, int]) -> Baseline:
    names, rows = list(counts), np.array(list(counts.values()))
    confusion = np.zeros((len(rows), len(rows)), np.int64)
    confusion[:, top := int(rows.argmax())] = rows
    return Baseline(1 / len(rows), names[top], compute_scores(confusion))


def find_lower_bound(study: Study, key: Key, redrawn: float = 0.0) -> float:
    """Return the lower end of a 95 % interval of an accuracy, over other seeds and other test rows.

    The distances to the lower ends over seeds (t) and over rows (Wilson) are added in squares. Rows that are not on
    record add nothing, and neither does one seed.

    Args:
        redrawn: as for `paired.compare`.
    """
    values = stat(study.table.get(key, [{}])[0].values())
    low = find_seed_interval(values, redrawn=redrawn)[0]
    below = [values.mean - low] if not math.isnan(low) else []
    for leaf, weight in find_leaves(study, key).items():
        if n := _count_rows(study, leaf):
            mean = stat(study.table[leaf][0].values()).mean
            below.append(weight * (mean - find_wilson_interval(mean, n)[0]))
    return values.mean - math.hypot(*below)


def _count_rows(study: Study, key: Key) -> int:
    rows = (row for cell in study.cells for row in cell.rows if (row.task, row.split) == (key.task, key.split))
    return next((row.n_test for row in rows if row.method and row.n_test), 0)
