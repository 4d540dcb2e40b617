"""Which method to use on given features, and how sure that is: methods compared on each test set, paired over seeds.

The rule, in words: `Contest.rule`. A study of one condition and several methods has one contest for each of its tasks
and settings.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nml_jax.stages.cells import Seed
from nml_jax.stages.claims import REFERENCES, ZERO_SHOT
from nml_jax.stages.outcomes import HELD_OUT, Side, compared, from_files, leaves
from nml_jax.stages.paired import SEEDS, Comparison, Stat, listed, stat
from nml_jax.stages.results import MEAN, METHODS, Key, Study
from nml_jax.training.methods import METHODS as TUNED

GRADIENT = ("tune.lrs", "tune.weight_decays")  # the grid of what is trained by gradient
DOMAINS = {"id": "in-domain", "ood": "out-of-domain"}


class Versus(NamedTuple):
    """A method's accuracy less the reference's."""

    plain: Comparison  # 95 %
    wide: Comparison  # 95 % for all that is decided together

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
    decided: what claims are about: the mean over the in-domain tests, and that over the others; of one test, itself.
    versus: (method, one of either) -> its comparison with the reference.
    """

    study: Study
    task: str
    setting: str
    methods: tuple[str, ...]
    tests: tuple[Key, ...]
    decided: tuple[Key, ...]
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

    @property
    def shown(self) -> tuple[Key, ...]:
        """All that scores are shown of: of each domain the mean, and then its tests."""
        of = [*(key for key in self.decided if key not in self.tests), *self.tests]
        return tuple(sorted(of, key=lambda key: key.domain))

    def trained(self, method: str) -> int:
        """Rows that a method was trained on, in all tasks together; 0 where that is not recorded."""
        found: dict[str, int] = {}
        for leaf in leaves(self.study, self.decided[0]._replace(method=method)):
            for source in self.study.sources.get(leaf, [{}])[0].values():
                found[leaf.task] = max(row.n_train or 0 for row in source.rows)
        return sum(found.values())

    @property
    def unequal(self) -> bool:
        """Whether some methods were trained on fewer rows than others."""
        return len({self.trained(method) for method in self.methods}) > 1

    def rows(self, test: Key) -> int:
        """Of the test set; 0 where that is not recorded, or for a mean over test sets."""
        rows = (
            row for cell in self.study.cells for row in cell.rows if (row.task, row.split) == (test.task, test.split)
        )
        return next((row.n_test for row in rows if row.method and row.n_test), 0)

    def recommended(self, test: Key) -> str:
        """The method to use on one of `decided`, or on a test of its domain, by the rule."""
        test = next(key for key in self.decided if key.domain == test.domain)
        gains = {method: self.versus[method, test].plain.difference for method in self.methods[1:]
                 if self.versus[method, test].sign > 0 and self._harmless(method)}  # fmt: skip
        if not gains:
            return self.reference
        top = max(gains, key=gains.__getitem__)
        near = (m for m in gains if m == top or self._against(m, top, test).sign <= 0)
        return next(near)  # the simplest, for they are in that order

    def _against(self, a: str, b: str, test: Key) -> Comparison:
        return compared(self.study, "", Side(test._replace(method=a)), Side(test._replace(method=b)))

    def _harmless(self, method: str) -> bool:
        return all(self.versus[method, test].sign >= 0 for test in self.decided)

    def best(self, test: Key) -> str:
        """The method that is shown to be more accurate than every other one, or "" if none is."""
        top = max(self.methods, key=lambda m: (self.stat(m, test).n, self.stat(m, test).mean))
        others = [m for m in self.methods if m != top]
        against = (self._against(m, top, test) for m in others)
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
        chosen = {test: self.recommended(test) for test in self.decided}
        by_method = {
            m: [test for test in self.decided if chosen[test] == m] for m in self.methods if m in chosen.values()
        }
        others = len(self.methods) - 1
        none = "the other method is not" if others == 1 else f"none of the {others} other methods is"
        parts = []
        for method, tests in by_method.items():
            if method != self.reference:
                how = listed([self._gain(method, test) for test in tests])
                over = f"{_the(self.reference)}{self._of_fewer(method)}"
                parts.append(f"{_the(method)} {self._where(tests)}, {how} over {over}")
            elif len(by_method) == 1:
                parts.append(f"{_the(method)}, {self._where(tests)}: {none} shown to be better{self._closest(tests)}")
            else:
                parts.append(f"{_the(method)} {self._where(tests)}, where no other method can be recommended")
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
        return f"In brackets: 95 % intervals over {self.seeds} seeds and other test rows{self.widened()}."

    def widened(self) -> str:
        """For how many claims intervals are made to hold together; "" for one."""
        others, domains = len(self.methods) - 1, len(self.decided)
        parts = [f"{others} methods"] * (others > 1) + [f"{domains} domains"] * (domains > 1)
        return f", widened for {' × '.join(parts)}" if parts else ""

    def _where(self, tests: Iterable[Key]) -> str:
        """Domains, and which of their tests."""
        parts = []
        for test in tests:
            several = sum(other.domain == test.domain for other in self.tests)
            inner = f"mean over {several} tests" if test.split == MEAN and several > 1 else test.split
            parts.append(DOMAINS[test.domain] + (f" ({inner})" if inner != MEAN else ""))
        return listed(parts)

    def _of_fewer(self, than: str) -> str:
        """What is to be said of a reference that saw fewer rows than a method."""
        seen, rows = self.trained(self.reference), self.trained(than)
        return f" (which saw {seen:,} of the {rows:,} training rows)" if seen < rows else ""

    def rule(self) -> str:
        return (
            f"The rule. The reference is {_the(self.reference)}{self._tuned()}. Every other method is compared with it "
            "in the mean over the in-domain tests and in that over the out-of-domain tests, paired over test rows and "
            f"seeds, of which it takes {SEEDS}. It is better where the 95 % interval of the difference in "
            f"accuracy{self.widened()}{' (Bonferroni),' if self.widened() else ''} lies above 0, and worse where the "
            "95 % interval as it is lies below 0: doubt counts against a change. It is recommended where it is better, "
            "if it is not worse in the other mean; of several, that of the largest gain, or a simpler one from which "
            f"that is not shown to differ. Otherwise the reference is.{self._samples()}"
        )

    def _samples(self) -> str:
        """Which methods were trained on fewer rows."""
        if not self.unequal:
            return ""
        most = max(self.methods, key=self.trained)
        few = [f"{_the(m)} {self.trained(m):,}" for m in self.methods if self.trained(m) < self.trained(most)]
        return (
            f" Of the {self.trained(most):,} training rows, more than features.memory allows at once, some methods saw "
            f"a stratified sample only: {listed(few)}. A difference to these may be one of rows, not of methods."
        )

    def _tuned(self) -> str:
        """The budget of every method."""
        config = self.study.cells[0].config
        counts: dict[int, list[str]] = {}
        for method in self.methods:
            counts.setdefault(_settings(config, method), []).append(_the(method))
        limit = f" and {config['tune.steps']:,} steps" if self.study.cells[0].value("tune.steps") else ""
        trained = f"; what is trained by gradient has at most {config['tune.epochs']} epochs{limit}"
        if len(counts) == 1:
            n = next(iter(counts))
            return f"; every method chooses among {n} settings{trained}" if n > 1 else ""
        each = [f"{n} setting{'s' * (n > 1)} ({listed(names)})" for n, names in counts.items()]
        return f". Methods do not choose among equally many settings, but {listed(each)}{trained}"

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
        bounded = (
            " Of some heads it is not on record which rows they got right; there the interval is as wide as if heads "
            "erred independently of each other."
            if any(versus.plain.bounded for versus in self.versus.values())
            else ""
        )
        return (
            f"A seed {drawn}the training rows on which settings are chosen, the initial weights and the order of the "
            f"rows. The test sets{held} are the same for every seed; intervals allow for the luck of training and for "
            "the draw of the test rows, taken for independent (Owen 2007), not for other sources of data or another "
            f"training file.{overlap if held else ''}{bounded}"
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
            decided = _decided(tests)
            out.append(Contest(study, task, setting, methods, tests, decided, _versus(study, methods, tests, decided)))
    return out


def _decided(tests: Iterable[Key]) -> tuple[Key, ...]:
    by_domain: dict[str, list[Key]] = {}
    for test in tests:
        by_domain.setdefault(test.domain, []).append(test)
    return tuple(own[0] if len(own) == 1 else own[0]._replace(split=MEAN) for own in by_domain.values())


def _versus(
    study: Study, methods: Sequence[str], tests: Sequence[Key], decided: Sequence[Key]
) -> dict[tuple[str, Key], Versus]:
    out = {}
    for test in dict.fromkeys((*decided, *tests)):
        base, *others = (Side(test._replace(method=method)) for method in methods)
        for other in others:
            plain = compared(study, other.key.method, base, other)
            out[other.key.method, test] = Versus(plain, plain.corrected(len(others) * len(decided)))
    return out


def _settings(config: Mapping[str, Any], method: str) -> int:
    """How many settings a method chooses among, by the dotted keys of a config."""
    kind = TUNED.get(_name(method))
    grids = ["finetune.lrs"] if kind is None else [f"tune.{kind.grid}"] if kind.probe else GRADIENT
    return math.prod(len(config.get(key, (None,))) for key in grids)


def full_name(test: Key) -> str:
    """Of a test set, for a heading."""
    name = DOMAINS[test.domain]
    return f"{name} mean" if test.split == MEAN else f"{test.split} ({name})"


def split_name(test: Key) -> str:
    """Of a test set, within a sentence."""
    return f"the {DOMAINS[test.domain]} mean" if test.split == MEAN else test.split


def _the(method: str) -> str:
    """With an article, where one is said."""
    return f"the {method}" if "probe" in method or method.startswith("MLP") else method


def _simplicity(method: str) -> int:
    """The place of a method in METHODS."""
    return [*METHODS, ""].index(_name(method))


def _name(method: str) -> str:
    """The key of METHODS for a title, with or without a preset; "" if there is none."""
    return next((name for name, title in METHODS.items() if method == title or method.startswith(f"{title} (")), "")
