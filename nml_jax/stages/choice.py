"""Which method to use on given features, and how sure that is: methods compared on each test set, paired over seeds.

The rule, in words: `Contest.rule`. A study of one condition and several methods has one contest for each of its tasks
and settings.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nml_jax.stages.cells import Seed
from nml_jax.stages.claims import REFERENCES, ZERO_SHOT
from nml_jax.stages.paired import PERCENT, SEEDS, Comparison, Stat, compare, listed, stat
from nml_jax.stages.results import FILES, MEAN, METHODS, Key, Study

DOMAINS = {"id": "in-domain", "ood": "out-of-domain"}
HELD_OUT = "holdout"  # the split that the stage features draws where there is no test file


class Versus(NamedTuple):
    """A method's accuracy less the reference's on one test set."""

    plain: Comparison  # 95 %
    wide: Comparison  # 95 % for all methods together

    @property
    def sign(self) -> int:
        """1: better, -1: worse, 0: neither is shown. Doubt counts against leaving the reference."""
        return 1 if self.wide.sign == 1 else min(self.plain.sign, 0)

    @property
    def verdict(self) -> str:
        if self.plain.n < SEEDS:
            return f"no claim, n = {self.plain.n}"
        return {-1: "worse", 0: "no difference shown", 1: "better"}[self.sign]


@dataclasses.dataclass(frozen=True)
class Contest:
    """The methods of one task and setting.

    methods: the reference, then the simplest first.
    tests: keys of accuracy without a method, in-domain first.
    versus: (method, test) -> its comparison with the reference.
    """

    study: Study
    task: str
    setting: str
    methods: tuple[str, ...]
    tests: tuple[Key, ...]
    versus: Mapping[tuple[str, Key], Versus]

    @property
    def reference(self) -> str:
        return self.methods[0]

    @property
    def name(self) -> str:
        """What tells it from the study's other contests; "" where there is no other."""
        task = f"mean over {len(self.study.tasks)} tasks" if self.task == MEAN else self.task
        return ", ".join(filter(None, (task if len(self.study.tasks) > 1 else "", self.setting)))

    @property
    def seeds(self) -> int:
        """That the reference shares with others, or has where it is alone."""
        shared = [versus.plain.n for versus in self.versus.values()]
        return max(shared or [self.stat(self.reference, test).n for test in self.tests])

    def values(self, method: str, test: Key, metric: str = "accuracy") -> dict[Seed, float]:
        return self.study.table.get(test._replace(metric=metric, method=method), [{}])[0]

    def stat(self, method: str, test: Key, metric: str = "accuracy") -> Stat:
        return stat(self.values(method, test, metric).values())

    def rows(self, test: Key) -> int:
        """Of the test set; 0 where that is not recorded, or for a mean over test sets."""
        rows = (
            row for cell in self.study.cells for row in cell.rows if (row.task, row.split) == (test.task, test.split)
        )
        return next((row.n_test for row in rows if row.method and row.n_test), 0)

    def recommended(self, test: Key) -> str:
        """The method to use on this test set, by the rule."""
        gains = {method: self.versus[method, test].plain.difference for method in self.methods[1:]
                 if self.versus[method, test].sign > 0 and self._harmless(method)}  # fmt: skip
        if not gains:
            return self.reference
        top = max(gains, key=gains.__getitem__)
        near = (m for m in gains if self._against(m, top, test).sign <= 0)
        return next(near)  # the simplest, for they are in that order

    def _against(self, a: str, b: str, test: Key, metric: str = "accuracy") -> Comparison:
        first, second = self.values(a, test, metric), self.values(b, test, metric)
        return compare("", PERCENT, first, second, _redrawn(self.study, test))

    def _harmless(self, method: str) -> bool:
        return all(self.versus[method, test].sign >= 0 for test in self.tests)

    def best(self, test: Key, metric: str) -> str:
        """The method that is shown to be better than every other one, or "" if none is."""
        top = max(self.methods, key=lambda m: (self.stat(m, test, metric).n, self.stat(m, test, metric).mean))
        others = [m for m in self.methods if m != top]
        against = (self._against(m, top, test, metric) for m in others)
        return top if others and all(c.corrected(len(others)).sign > 0 for c in against) else ""

    # ---- in words

    def answer(self) -> str:
        """Which method to use, on which test set, and how sure that is."""
        prefix = f"{self.name}: use " if self.name else "Use "
        if len(self.methods) == 1:
            return f"{prefix}{_the(self.reference)}: no other method was run."
        if self.seeds < SEEDS:
            seeds = f"{self.seeds} seed{'' if self.seeds == 1 else 's'}"
            return f"{prefix}{_the(self.reference)}: with {seeds} no difference can be shown, that takes {SEEDS}."
        chosen = {test: self.recommended(test) for test in self.tests}
        by_method = {
            m: [test for test in self.tests if chosen[test] == m] for m in self.methods if m in chosen.values()
        }
        others = len(self.methods) - 1
        none = "the other method is not" if others == 1 else f"none of the {others} other methods is"
        parts = []
        for method, tests in by_method.items():
            if method != self.reference:
                how = listed([self._gain(method, test) for test in tests])
                parts.append(f"{_the(method)} {_where(tests)}, {how} over {_the(self.reference)}")
            elif len(by_method) == 1:
                parts.append(f"{_the(method)}, {_where(tests)}: {none} shown to be better{self._closest(tests)}")
            else:
                parts.append(f"{_the(method)} {_where(tests)}, where no other method can be recommended")
        return f"{prefix}{'; '.join(parts)}. {self._sure()}"

    def _gain(self, method: str, test: Key) -> str:
        c = self.versus[method, test].wide
        return f"{c.unit.signed(c.difference)} points ({c.interval()})"

    def _closest(self, tests: Iterable[Key]) -> str:
        """The largest gain on each test, none of which counts."""
        found = []
        for test in tests:
            gains = {m: self.versus[m, test].plain.difference for m in self.methods[1:] if self.versus[m, test].plain.n}
            if gains:
                top = max(gains, key=gains.__getitem__)
                found.append(f"{_the(top)} {self._gain(top, test)} on {split_name(test)}")
        return f", at best {listed(found)}" if found else ""

    def _sure(self) -> str:
        others = len(self.methods) - 1
        widened = f", widened for {others} methods" if others > 1 else ""
        return f"In brackets: 95 % intervals over {self.seeds} seeds on these test rows{widened}."

    def rule(self) -> str:
        others = len(self.methods) - 1
        widened = f", widened for the {others} methods compared (Bonferroni)," if others > 1 else ""
        return (
            f"The rule. The reference is {_the(self.reference)}{self._tuned()}. Every other method is compared with it "
            f"on the same rows, paired over the seeds, of which it takes {SEEDS}. It is better where the 95 % "
            f"t-interval of the mean difference in accuracy{widened} lies above 0, and worse where the 95 % interval "
            "as it is lies below 0: doubt counts against a change. It is recommended on a test set where it is better, "
            "if it is worse on no other; of several, that of the largest gain, or a simpler one from which that is not "
            "shown to differ. Otherwise the reference is."
        )

    def _tuned(self) -> str:
        config = self.study.cells[0].config
        by_gradient = len(config["tune.lrs"]) * len(config["tune.weight_decays"])
        settings = len(config["tune.cs"]) if self.reference == METHODS["lbfgs"] else by_gradient
        if self.reference not in REFERENCES or settings == 1:
            return ""
        limit = f", at most {config['tune.steps']:,} steps" if self.study.cells[0].value("tune.steps") else ""
        return (
            f", tuned over {settings} settings; what is trained by gradient has {by_gradient}, "
            f"and at most {config['tune.epochs']} epochs{limit}"
        )

    def caution(self) -> str:
        """What the seeds have in common, so that nobody takes their interval for more than it is."""
        if not from_files(self.study):
            stages = self.study.cells[0].run["stages"]
            drawn, held = "redraws pre-training, " if "pretrain" in stages else "redraws ", ""
        elif any(test.split == HELD_OUT for test in self.tests):
            drawn, held = "redraws which rows are held out, ", " that come from files of their own"
        else:
            drawn, held = "redraws ", ""
        overlap = " Held-out rows overlap from seed to seed; intervals are widened for that (Nadeau and Bengio 2003)."
        return (
            f"A seed {drawn}the training rows on which settings are chosen, the initial weights and the order of the "
            f"rows. The test sets{held} are the same for every seed: an interval over seeds is about the luck of "
            f"training, not about other test sets.{overlap if held else ''} "
            "What the size of a test set allows stands beneath its scores."
        )


def contests(study: Study) -> list[Contest]:
    """The contests of a study, the mean over tasks first; none if it has several conditions.

    One method alone makes a contest where its features come from files: there is nothing else to report.
    """
    out = []
    tasks = [MEAN, *study.tasks] if len(study.tasks) > 1 else study.tasks
    for task in tasks if len(study.conditions) == 1 else ():
        keys = [key for key in study.keys(metric="accuracy", task=task) if key.method not in ("", ZERO_SHOT)]
        for setting in dict.fromkeys(key.setting for key in keys):
            own = [key for key in keys if key.setting == setting and (key.split == MEAN) == (task == MEAN)]
            methods = sorted(dict.fromkeys(key.method for key in own), key=_simplicity)
            if len(methods) < (1 if from_files(study) else 2):
                continue
            reference = next((method for method in REFERENCES if method in methods), methods[0])
            methods = (reference, *(method for method in methods if method != reference))
            tests = tuple(sorted(dict.fromkeys(key._replace(method="") for key in own), key=lambda key: key.domain))
            out.append(Contest(study, task, setting, methods, tests, _versus(study, methods, tests)))
    return out


def _versus(study: Study, methods: tuple[str, ...], tests: Iterable[Key]) -> dict[tuple[str, Key], Versus]:
    out = {}
    for test in tests:
        base, *others = (study.table.get(test._replace(method=method), [{}])[0] for method in methods)
        for method, values in zip(methods[1:], others, strict=True):
            plain = compare(method, PERCENT, base, values, _redrawn(study, test))
            out[method, test] = Versus(plain, plain.corrected(len(others)))
    return out


def _redrawn(study: Study, test: Key) -> float:
    """The share of the training file that every seed tests on anew."""
    return float(study.cells[0].value(f"{FILES}holdout") or 0) if test.split == HELD_OUT and from_files(study) else 0.0


def from_files(study: Study) -> bool:
    """Whether the features are somebody else's."""
    return bool(study.cells[0].value(f"{FILES}train"))


def full_name(test: Key) -> str:
    """Of a test set, for a heading."""
    name = DOMAINS[test.domain]
    return f"{name} mean" if test.split == MEAN else f"{test.split} ({name})"


def split_name(test: Key) -> str:
    """Of a test set, within a sentence."""
    return f"the {DOMAINS[test.domain]} mean" if test.split == MEAN else test.split


def _where(tests: Iterable[Key]) -> str:
    parts = []
    for domain, name in DOMAINS.items():
        splits = [test.split for test in tests if test.domain == domain]
        parts += [name if splits == [MEAN] else f"{name} ({listed(splits)})"] if splits else []
    return listed(parts)


def _the(method: str) -> str:
    """With an article, where one is said."""
    return f"the {method}" if "probe" in method or method.startswith("MLP") else method


def _simplicity(method: str) -> int:
    """The place of a method, with or without a preset, in METHODS."""
    titles = list(METHODS.values())
    return next(
        (i for i, title in enumerate(titles) if method == title or method.startswith(f"{title} (")), len(titles)
    )
