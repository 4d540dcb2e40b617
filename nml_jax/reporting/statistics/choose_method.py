"""Which method to use on given features, and how sure that is: methods compared on each test set, paired over seeds.

The rule, in words: `answers.rule`. A study of one condition and several methods has one contest for each of its tasks
and settings.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nml_jax.console import list_words
from nml_jax.evals.metrics import TASK
from nml_jax.reporting.statistics.baselines import Baseline, beats, find_baseline
from nml_jax.reporting.statistics.compare import (
    Side,
    compare_numbers,
    find_leaves,
    has_rows,
    is_unvalidated,
    uses_files,
)
from nml_jax.reporting.statistics.paired import Comparison, Stat, stat
from nml_jax.reporting.statistics.studies import (
    MEAN,
    MEASURES,
    PRIMARY,
    REFERENCES,
    REGRESSION_REFERENCES,
    ZERO_SHOT,
    Key,
    Method,
    Study,
    find_own_metric,
)
from nml_jax.runs.finished import Seed

DOMAINS = {"id": "in-domain", "ood": "out-of-domain"}


class Versus(NamedTuple):
    """A method's score less the reference's."""

    plain: Comparison  # 95 %
    wide: Comparison  # 95 % for all that is decided together
    way: int = 1  # of the metric: 1 if larger is better, else −1

    @property
    def sign(self) -> int:
        """1: better, -1: worse, 0: neither is shown. Doubt counts against leaving the reference."""
        return 1 if self.way * self.wide.sign == 1 else min(self.way * self.plain.sign, 0)

    @property
    def verdict(self) -> str:
        down, up = ("worse", "better")[:: self.way]
        return (self.wide if self.sign >= 0 else self.plain).verdict(down, up)

    @property
    def advantage(self) -> float:
        """Return the difference, positive if the method is better."""
        return self.way * self.plain.difference


@dataclasses.dataclass(frozen=True)
class Contest:
    """The methods of one task and setting.

    methods: the reference, then the simplest first.
    tests: keys of the deciding metric without a method, in-domain first.
    decided: what claims are about: the mean over the in-domain tests, and that over the others; of one test, itself.
    versus: (method, one of either) -> its comparison with the reference.
    """

    study: Study
    task: str
    setting: str
    methods: tuple[Method, ...]
    tests: tuple[Key, ...]
    decided: tuple[Key, ...]
    versus: Mapping[tuple[Method, Key], Versus]

    @property
    def reference(self) -> Method:
        return self.methods[0]

    @property
    def name(self) -> str:
        """Return what tells this contest from the study's others; "" if there is no other."""
        task = f"mean over {len(self.study.tasks)} tasks" if self.task == MEAN else self.task
        return ", ".join(filter(None, (task if len(self.study.tasks) > 1 else "", self.setting)))

    def list_parts(self) -> list[str]:
        """Return what a mean over tasks is the mean of, in words, for each domain; [] for one task."""
        if self.task != MEAN:
            return []
        keys = (test._replace(method=self.reference) for test in self.decided)
        return [f"{DOMAINS[key.domain]}: {name_parts(self.study, key)}" for key in keys]

    @property
    def seeds(self) -> int:
        """Seeds shared with the reference; all its seeds if it is the only method."""
        shared = [versus.plain.n for versus in self.versus.values()]
        return max(shared or [self.stat(self.reference, test).n for test in self.tests])

    @property
    def metric(self) -> str:
        """Return the metric that decides."""
        return self.tests[0].metric

    @property
    def way(self) -> int:
        """Return 1 if a larger score is better, else −1."""
        return MEASURES[self.metric].way

    @property
    def measure(self) -> str:
        """Return the name of the deciding metric in a sentence."""
        return MEASURES[self.metric].title

    @property
    def points(self) -> str:
        """Return the unit of a difference."""
        return name_points(self.metric)

    def values(self, method: Method, test: Key, metric: str = "") -> dict[Seed, float]:
        key = test._replace(metric=metric or test.metric, method=method)
        return self.study.table.get(key, [{}])[0]

    def stat(self, method: Method, test: Key, metric: str = "") -> Stat:
        return stat(self.values(method, test, metric).values())

    @property
    def shown(self) -> tuple[Key, ...]:
        """Everything that scores are shown for: the mean of each domain, then its tests."""
        of = [*(key for key in self.decided if key not in self.tests), *self.tests]
        return tuple(sorted(of, key=lambda key: key.domain))

    def trained(self, method: Method) -> int:
        """Return the training rows of a method over all tasks; 0 if they are not recorded."""
        found: dict[str, int] = {}
        for leaf in find_leaves(self.study, self.decided[0]._replace(method=method)):
            for source in self.study.sources.get(leaf, [{}])[0].values():
                found[leaf.task] = max(row.n_train or 0 for row in source.rows)
        return sum(found.values())

    @property
    def most(self) -> int:
        """Training rows of the method that has the most."""
        return max(map(self.trained, self.methods))

    def blind(self, method: Method) -> bool:
        """Return whether a method had settings to choose from but, in some run, no rows to choose them by."""
        return is_unvalidated(self.study, self.decided[0]._replace(method=method))

    @property
    def unequal(self) -> bool:
        """True if some methods were trained on fewer rows than others."""
        return len({self.trained(method) for method in self.methods}) > 1

    def rows(self, test: Key) -> int:
        """Return the number of test rows; 0 if it is not recorded, and for a mean over test sets."""
        rows = (
            row for cell in self.study.cells for row in cell.rows if (row.task, row.split) == (test.task, test.split)
        )
        return next((row.n_test for row in rows if row.method and row.n_test), 0)

    def recommended(self, test: Key) -> Method:
        """Return the method to use on one of `decided`, or on a test of its domain, by the rule."""
        test = next(key for key in self.decided if key.domain == test.domain)
        gains = {method: self.versus[method, test].advantage for method in self.methods[1:]
                 if self.versus[method, test].sign > 0 and self._harmless(method)}  # fmt: skip
        if not gains:
            return self.reference
        top = max(gains, key=gains.__getitem__)
        near = (m for m in gains if m == top or self.way * self._against(m, top, test).sign <= 0)
        return next(near)  # the simplest, for they are in that order

    def baseline(self, test: Key) -> Baseline | None:
        """Return what a test gives for nothing; None if its classes are not on record."""
        return find_baseline(self.study, test)

    def clears(self, method: Method, test: Key) -> bool:
        """Return whether the 95 % interval of a method lies beyond chance and the most frequent class."""
        return beats(self.study, test._replace(method=method), self.baseline(test))

    def advised(self, test: Key) -> Method | None:
        """Return the recommended method if it clears the baseline there; else the first one that does, or None.

        Methods that are not shown to be worse than the reference anywhere come first.
        """
        test = next(key for key in self.decided if key.domain == test.domain)
        first = self.recommended(test)
        others = sorted((m for m in self.methods[1:] if m != first), key=lambda m: not self._harmless(m))
        return next((method for method in (first, *others) if self.clears(method, test)), None)

    def _against(self, a: Method, b: Method, test: Key) -> Comparison:
        return compare_numbers(self.study, "", Side(test._replace(method=a)), Side(test._replace(method=b)))

    def _harmless(self, method: Method) -> bool:
        return all(self.versus[method, test].sign >= 0 for test in self.decided)

    def best(self, test: Key) -> Method | None:
        """Return the method that is shown to be better than every other one; None if none is."""
        top = max(self.methods, key=lambda m: (self.stat(m, test).n, self.way * self.stat(m, test).mean))
        others = [m for m in self.methods if m != top]
        against = (self._against(m, top, test) for m in others)
        return (
            top
            if others and all(self.way * c.corrected(len(others) * len(self.decided)).sign > 0 for c in against)
            else None
        )

    def widened(self) -> str:
        """Return for how many claims the intervals hold together, in words; "" for one."""
        others, domains = len(self.methods) - 1, len(self.decided)
        parts = [f"{others} methods"] * (others > 1) + [f"{domains} domains"] * (domains > 1)
        return f", widened for {' × '.join(parts)}" if parts else ""


def name_parts(study: Study, key: Key) -> str:
    """Return what a number is the mean of, in words."""
    by_task: dict[str, list[Key]] = {}
    for leaf in find_leaves(study, key):
        by_task.setdefault(leaf.task, []).append(leaf)
    words = []
    for task, own in by_task.items():
        name = MEASURES[own[0].metric].title.removeprefix("the ")
        words.append(f"{task} ({name} on {list_words(leaf.split for leaf in own)})")
    if len(words) > 1:
        return f"the mean over {list_words(words)}, over a task's tests first"
    return words[0] if len(own) == 1 else f"the mean over the tests of {words[0]}"


def name_points(metric: str) -> str:
    """Return the unit of a difference."""
    return "nats" if MEASURES[metric].needs == "losses" else "units of the target" if metric == "rmse" else "points"


def find_metric(study: Study, task: str) -> str:
    """Return the metric that decides on a task: `tune.metric`, or the task's own.

    For the mean over tasks with different ones it is PRIMARY. Accuracy does where answers are not on record, as of
    older runs.
    """
    asked = study.cells[0].value("tune.metric") or TASK
    own = {find_own_metric(name, study.table) for name in study.list_members(task)}
    metric = asked if asked != TASK else own.pop() if len(own) == 1 else PRIMARY
    keys = [key for key in study.keys(metric=metric, task=task) if key.method and key.method.name != ZERO_SHOT]
    leaves = [leaf for key in keys for leaf in find_leaves(study, key)]
    return metric if leaves and (asked != TASK or all(has_rows(study, leaf) for leaf in leaves)) else "accuracy"


def find_contests(study: Study) -> list[Contest]:
    """Return the contests of a study, the mean over tasks first; none if it has several conditions.

    One method alone makes a contest where its features come from files: there is nothing else to report.
    """
    out = []
    tasks = [MEAN, *study.tasks] if len(study.tasks) > 1 else study.tasks
    for task in tasks if len(study.conditions) == 1 else ():
        metric = find_metric(study, task)
        keys = [key for key in study.keys(metric=metric, task=task) if key.method and key.method.name != ZERO_SHOT]
        for setting in dict.fromkeys(key.setting for key in keys):
            own = [key for key in keys if key.setting == setting and (key.split == MEAN) == (task == MEAN)]
            methods = sorted(dict.fromkeys(key.method for key in own if key.method), key=lambda m: m.simplicity)
            if len(methods) < (1 if uses_files(study) else 2):
                continue
            names = REFERENCES if MEASURES[metric].needs in ("confusion", "losses") else REGRESSION_REFERENCES
            reference = next((Method(name) for name in names if Method(name) in methods), methods[0])
            methods = (reference, *(method for method in methods if method != reference))
            tests = tuple(sorted(dict.fromkeys(key._replace(method=None) for key in own), key=lambda key: key.domain))
            decided = _decided(tests)
            out.append(Contest(study, task, setting, methods, tests, decided, _versus(study, methods, tests, decided)))
    return out


def _decided(tests: Iterable[Key]) -> tuple[Key, ...]:
    by_domain: dict[str, list[Key]] = {}
    for test in tests:
        by_domain.setdefault(test.domain, []).append(test)
    return tuple(own[0] if len(own) == 1 else own[0]._replace(split=MEAN) for own in by_domain.values())


def _versus(
    study: Study, methods: Sequence[Method], tests: Sequence[Key], decided: Sequence[Key]
) -> dict[tuple[Method, Key], Versus]:
    out = {}
    base, *others = methods
    for test in dict.fromkeys((*decided, *tests)):
        for other in others:
            plain = compare_numbers(study, str(other), *(Side(test._replace(method=m)) for m in (base, other)))
            wide = plain.corrected(len(others) * len(decided))
            out[other, test] = Versus(plain, wide, MEASURES[test.metric].way)
    return out


def name_test(test: Key) -> str:
    """Return the name of a test set for a heading."""
    name = DOMAINS[test.domain]
    return f"{name} mean" if test.split == MEAN else f"{test.split} ({name})"
