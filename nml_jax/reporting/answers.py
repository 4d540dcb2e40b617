"""What a contest of methods (choice.py) shows, in words: the answer, the rule it follows, and what to be wary of."""

import math
import shlex
from collections.abc import Iterable
from pathlib import Path

from nml_jax.reporting.statistics.choose_method import DOMAINS, Contest
from nml_jax.reporting.statistics.compare import HELD_OUT, from_files
from nml_jax.reporting.statistics.paired import BLIND, SEEDS, listed
from nml_jax.reporting.statistics.studies import MEAN, Key, Method, Study
from nml_jax.runs.finished import FinishedRun
from nml_jax.runs.heads import head_path
from nml_jax.runs.rows import DIVERGED
from nml_jax.tuning import methods

THE = ("linear", "lbfgs", "ridge", "mlp")  # methods whose titles take an article
FEW = 10  # epochs; after fewer heads still became better on the text features of the README


def answer(c: Contest) -> str:
    """Which method to use, on which test set, and how sure that is."""
    prefix = f"{c.name}: use " if c.name else "Use "
    if len(c.methods) == 1:
        return f"{prefix}{_the(c.reference)}: no other method was run."
    if c.seeds < SEEDS:
        seeds = f"{c.seeds} seed{'' if c.seeds == 1 else 's'}"
        return f"{prefix}{_the(c.reference)}: with {seeds} no difference can be shown, that takes {SEEDS}."
    if all(versus.plain.blind for versus in c.versus.values()):
        return f"{prefix}{_the(c.reference)}: {BLIND}, so that no method is shown to be better or worse."
    chosen = {test: c.recommended(test) for test in c.decided}
    by_method = {m: [test for test in c.decided if chosen[test] == m] for m in c.methods if m in chosen.values()}
    others = len(c.methods) - 1
    none = "the other method is not" if others == 1 else f"none of the {others} other methods is"
    parts = []
    for method, tests in by_method.items():
        if method != c.reference:
            how = listed([_gain(c, method, test) for test in tests])
            over = f"{_the(c.reference)}{_of_fewer(c, method)}"
            parts.append(f"{_the(method)} {_where(c, tests)}, {how} over {over}")
        elif len(by_method) == 1:
            parts.append(f"{_the(method)}, {_where(c, tests)}: {none} shown to be better{_closest(c, tests)}")
        else:
            parts.append(f"{_the(method)} {_where(c, tests)}, where no other method can be recommended")
    return f"{prefix}{'; '.join(parts)}. {_sure(c)}"


def _gain(c: Contest, method: Method, test: Key) -> str:
    wide = c.versus[method, test].wide
    return f"{wide.unit.signed(wide.difference)} points ({wide.interval()})"


def _closest(c: Contest, tests: Iterable[Key]) -> str:
    """The largest gain on each test, none of which counts."""
    found = []
    for test in tests:
        gains = {m: c.versus[m, test].plain.difference for m in c.methods[1:] if c.versus[m, test].plain.n}
        if gains:
            top = max(gains, key=gains.__getitem__)
            found.append(f"{_the(top)} {_gain(c, top, test)} on {split_name(test)}")
    return f", at best {listed(found)}" if found else ""


def _sure(c: Contest) -> str:
    return f"In brackets: 95 % intervals over {c.seeds} seeds and other test rows{c.widened()}."


def _where(c: Contest, tests: Iterable[Key]) -> str:
    """Domains, and which of their tests."""
    parts = []
    for test in tests:
        several = sum(other.domain == test.domain for other in c.tests)
        inner = f"mean over {several} tests" if test.split == MEAN and several > 1 else test.split
        parts.append(DOMAINS[test.domain] + (f" ({inner})" if inner != MEAN else ""))
    return listed(parts)


def _of_fewer(c: Contest, than: Method) -> str:
    """What is to be said of a reference that saw fewer rows than a method."""
    seen, rows = c.trained(c.reference), c.trained(than)
    return f" (which saw {seen:,} of the {rows:,} training rows)" if seen < rows else ""


def rule(c: Contest) -> str:
    return (
        f"The rule. The reference is {_the(c.reference)}{_tuned(c)}. Every other method is compared with it "
        "in the mean over the in-domain tests and in that over the out-of-domain tests, paired over test rows and "
        f"seeds, of which it takes {SEEDS}. It is better where the 95 % interval of the difference in "
        f"accuracy{c.widened()}{' (Bonferroni),' if c.widened() else ''} lies above 0, and worse where the "
        "95 % interval as it is lies below 0: doubt counts against a change. It is recommended where it is better, "
        "if it is not worse in the other mean; of several, that of the largest gain, or a simpler one from which "
        f"that is not shown to differ. Otherwise the reference is.{_samples(c)}"
    )


def _samples(c: Contest) -> str:
    """Which methods were trained on fewer rows."""
    if not c.unequal:
        return ""
    most = max(c.methods, key=c.trained)
    few = [f"{_the(m)} {c.trained(m):,}" for m in c.methods if c.trained(m) < c.trained(most)]
    return (
        f" Of the {c.trained(most):,} training rows, more than features.memory allows at once, some methods saw "
        f"a stratified sample only: {listed(few)}. A difference to these may be one of rows, not of methods."
    )


def _tuned(c: Contest) -> str:
    """The budget of every method."""
    config = c.study.cells[0].config
    counts: dict[int, list[str]] = {}
    for method in c.methods:
        counts.setdefault(_settings(c.study.cells[0], method), []).append(_the(method))
    trained = ""
    if any(map(_by_gradient, c.methods)):
        trained = f"; what is trained by gradient has at most {config['tune.epochs']} epochs{_limit(c)}"
    if all(map(c.blind, c.methods)):
        return f". No method could choose a setting: {BLIND}, and each took the middle of its grid{trained}"
    if len(counts) == 1:
        n = next(iter(counts))
        return f"; every method {f'chooses among {n} settings' if n > 1 else 'has one setting'}{trained}"
    each = [f"{n} setting{'s' * (n > 1)} ({listed(names)})" for n, names in counts.items()]
    return f". Methods do not choose among equally many settings, but {listed(each)}{trained}"


def hurried(c: Contest) -> str:
    """That heads had few epochs and may be better than they look; "" if they had not."""
    if not any(map(_by_gradient, c.methods)) or (left := _left(c)) is None or left[0] >= FEW:
        return ""
    epochs, per_epoch, rows = left
    enough = min(FEW, c.study.cells[0].config["tune.epochs"])
    return (
        f"What is trained by gradient saw these {rows:,} rows {epochs} time{'s' * (epochs > 1)} only, and may gain "
        f"from more: {enough} epochs are --config.tune.steps={enough * per_epoch}."
    )


def _limit(c: Contest) -> str:
    """The cap on steps, and what it leaves of the epochs."""
    if not (steps := c.study.cells[0].value("tune.steps")):
        return ""
    if (left := _left(c)) is None:
        return f" and {steps:,} steps"
    epochs, _, rows = left
    return f" and {steps:,} steps: {epochs} epoch{'s' * (epochs > 1)} of these {rows:,} rows"


def _left(c: Contest) -> tuple[int, int, int] | None:
    """Epochs that the cap on steps leaves, steps of an epoch, and rows; None where it cuts none, or tasks differ."""
    first, rows = c.study.cells[0], max(map(c.trained, c.methods))
    if not (steps := first.value("tune.steps")) or not rows or c.task == MEAN:
        return None
    batch, asked = first.config["tune.batch"], first.config["tune.epochs"]
    epochs, per_epoch = methods.count_epochs(rows, batch=batch, epochs=asked, steps=steps)
    return None if epochs == asked else (epochs, per_epoch, rows)


def diverged(study: Study, task: str) -> str:
    """Which heads are not compared because training diverged, and in how many runs; "" if none did."""
    keys = [key for key in study.keys(metric=DIVERGED, task=task) if key.split != MEAN]
    runs = len(study.cells)
    each = [f"{key.head} in {sum(map(len, study.table[key]))} of {runs} run{'s' * (runs > 1)}" for key in keys]
    return f"Training diverged, and there is no head to compare: {listed(each)}." if each else ""


def head_file(c: Contest) -> str:
    """The file of the head to use, and the command that applies it; "" where it has none (k-NN, fine-tuning)."""
    key = c.tests[0]._replace(method=c.recommended(c.decided[0]))
    sources = c.study.sources.get(key, [{}])[0]
    for source in sources.values():
        row = source.rows[0]
        path = head_path(source.folder, vars(row))
        if row.stage == "tune" and path.is_file():
            path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            which = f"The head of the first of {len(sources)} seeds" if len(sources) > 1 else "The head"
            return f"{which}, applied to features: python -m nml_jax.predict {shlex.quote(str(path))} FEATURES"
    return ""


def caution(c: Contest) -> str:
    """What the seeds have in common, so that nobody takes their interval for more than it is."""
    if not from_files(c.study):
        stages = c.study.cells[0].run["stages"]
        drawn, held = "redraws pre-training, " if "pretrain" in stages else "redraws ", ""
    elif any(test.split == HELD_OUT for test in c.tests):
        drawn, held = "redraws which rows are held out, ", " that come from files of their own"
    else:
        drawn, held = "redraws ", ""
    overlap = " Held-out rows overlap from seed to seed; intervals are widened for that (Nadeau and Bengio 2003)."
    bounded = (
        " Of some heads it is not on record which rows they got right; there the interval is as wide as if heads "
        "erred independently of each other."
        if any(versus.plain.bounded for versus in c.versus.values())
        else ""
    )
    return (
        f"A seed {drawn}the training rows on which settings are chosen, the initial weights and the order of the "
        f"rows. The test sets{held} are the same for every seed; intervals allow for the luck of training and for "
        "the draw of the test rows, taken for independent (Owen 2007), not for other sources of data or another "
        f"training file.{overlap if held else ''}{bounded}"
    )


def _by_gradient(method: Method) -> bool:
    """Whether it is a head of the stage tune whose schedule `tune.epochs` and `tune.steps` are."""
    kind = methods.METHODS.get(method.name)
    return kind is not None and not kind.probe


def _settings(cell: FinishedRun, method: Method) -> int:
    """How many settings a method chose among in a run; 1 where an older one does not say."""
    known = method.name in methods.METHODS
    grids = [f"tune.{key}" for key in methods.make_grid(method.name)] if known else ["finetune.lrs"]
    return math.prod(len(cell.value(key) or (None,)) for key in grids)


def split_name(test: Key) -> str:
    """Of a test set, within a sentence."""
    return f"the {DOMAINS[test.domain]} mean" if test.split == MEAN else test.split


def _the(method: Method) -> str:
    """Return the title with an article, where one is said."""
    return f"the {method}" if method.name in THE else str(method)
