"""What a contest of methods (choose_method.py) shows, in words: the answer, its rule, and what to be wary of."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from nml_jax.console import list_words
from nml_jax.evals.correlations import UNDEFINED
from nml_jax.reporting.sentences import add_article, count, say
from nml_jax.reporting.statistics.choose_method import DOMAINS, Contest
from nml_jax.reporting.statistics.compare import HELD_OUT, uses_files
from nml_jax.reporting.statistics.paired import SEEDS, unit
from nml_jax.reporting.statistics.studies import MEAN, MEASURES, Key, Method, Study, method_of
from nml_jax.runs.finished import FinishedRun
from nml_jax.runs.rows import DIVERGED
from nml_jax.tuning import methods

FEW = 10  # epochs; after fewer heads still became better on the text features of the README


def write_verdict(c: Contest) -> str:
    """Return which method to use where, in one short sentence, and where none is of use in another."""
    if not (parts := _list_decisions(c)) or _find_obstacle(c):
        return write_answer(c)
    return " ".join(filter(None, (say("use", c, parts), say_hopeless(c))))


def write_answer(c: Contest) -> str:
    """Return which method to use, on which test set, and how sure that is."""
    undecided = _find_obstacle(c)
    parts = [] if undecided else _list_decisions(c)
    first = _find_useful(c)
    said = say("answer", c, parts, undecided, first) if first else ""
    return " ".join(filter(None, (said, say_hopeless(c))))


def write_reasons(c: Contest) -> str:
    """Return by how much the methods of the verdict are ahead, or others are not; "" where the verdict says it all."""
    return "" if _find_obstacle(c) or not (parts := _list_decisions(c)) else say("why", c, parts)


def advise(c: Contest) -> dict[Method, list[Key]]:
    """Return the methods to use, each with those of `c.decided` that it is for."""
    out: dict[Method, list[Key]] = {}
    first = _find_useful(c)
    for test in c.decided:
        if method := first if _find_obstacle(c) else c.advised(test):
            out.setdefault(method, []).append(test)
    return out


def _find_useful(c: Contest) -> Method | None:
    """Return the first method, the reference if possible, that beats on some test what needs no features."""
    return next((m for m in c.methods if any(c.clears(m, test) for test in c.decided)), None)


def say_hopeless(c: Contest) -> str:
    """Return on which tests no method is shown to beat answers that need no features; "" if there is none."""
    found = []
    for test in c.decided:
        base = c.baseline(test)
        if base is not None and not any(c.clears(method, test) for method in c.methods):
            always = base.best(c.metric) == base.scores[c.metric]
            score = unit(c.metric).text(base.best(c.metric))
            what = f"always answering {base.answer!r}" if base.answer else "the commonest class"
            if MEASURES[c.metric].needs == "losses":
                what = "the shares of the classes as probabilities"
            found.append(f"{what if always else 'chance'} ({score}) on {_name_file(c, test)}")
    return say("hopeless", c, found) if found else ""


def _name_file(c: Contest, test: Key) -> str:
    """Return a test's name in a sentence: its file, or the mean over several."""
    several = sum(other.domain == test.domain for other in c.tests)
    return f"the mean over {several} {DOMAINS[test.domain]} files" if test.split == MEAN else test.split


def say_optimistic(c: Contest) -> str:
    """Return that methods were picked on the test rows that score them; "" where the reference is used, as it may be
    without any test.
    """
    picked = [add_article(method) for method in advise(c) if method != c.reference]
    return say("optimistic", picked) if picked and not _find_obstacle(c) else ""


def say_disagreement(c: Contest) -> str:
    """Return where accuracy, the mean per class and the deciding metric put different methods first; "" if nowhere."""
    found = []
    for test in c.decided:
        names = _list_judges(c)
        first = {name: method for name in names if (method := _find_first(c, test, name))}
        if len(c.methods) > 1 and len(set(first.values())) > 1:
            by = [f"by {MEASURES[name].title} {add_article(method)}" for name, method in first.items()]
            found.append(f"{_name_file(c, test)} {', '.join(by)}")
    others = [MEASURES[name].title for name in _list_judges(c)]
    return say("disagreement", list_words(others), found) if found else ""


def _list_judges(c: Contest) -> list[str]:
    """Return the metrics by which methods are put in order: of classes or of numbers, and the deciding one."""
    of_numbers = MEASURES[c.metric].needs == "numbers" and not c.study.keys(metric="accuracy", task=c.task)
    names = ("pearson", "r2") if of_numbers else ("accuracy", "mean_per_class")
    return [*dict.fromkeys([*names, c.metric])]


def _find_first(c: Contest, test: Key, metric: str) -> Method | None:
    """Return the method with the best mean; of equal ones the simplest, and None if the metric is not there."""
    means = {method: c.stat(method, test, metric) for method in c.methods}
    known = {method: MEASURES[metric].way * s.mean for method, s in means.items() if s.n}
    return max(known, key=known.__getitem__) if known else None


def _find_obstacle(c: Contest) -> str:
    """Return why nothing can be decided; "" if something can."""
    if len(c.methods) == 1:
        return "alone"
    if c.seeds < SEEDS:
        return "few"
    return "blind" if all(versus.plain.blind for versus in c.versus.values()) else ""


def _list_decisions(c: Contest) -> list[dict[str, Any]]:
    """Return, for every recommended method, where it is, its gains there, and what is to be said of them."""
    chosen = {test: c.advised(test) for test in c.decided}
    out = []
    for method in (m for m in c.methods if m in chosen.values()):
        tests = [test for test in c.decided if chosen[test] == method]
        leads = method != c.reference and all(c.recommended(test) == method for test in tests)
        alone = method != c.reference and not leads  # the reference does not clear the baseline
        few = c.trained(c.reference) < c.trained(method)
        out.append({
            "method": method, "where": _name_tests(c, tests),
            "domains": [DOMAINS[test.domain] for test in tests],
            "points": [c.versus[method, test].wide.gain for test in tests] if leads else [],
            "gains": [_describe_gain(c, method, test) for test in tests] if leads else [],
            "fewer": c.trained(c.reference) if few else 0,
            "alone": alone,
            "closest": [] if leads or alone else _list_closest(c, tests),
        })  # fmt: skip
    return out


def _describe_gain(c: Contest, method: Method, test: Key) -> str:
    wide = c.versus[method, test].wide
    return f"{wide.gain} {c.points} ({wide.interval()})"


def _list_closest(c: Contest, tests: Iterable[Key]) -> list[str]:
    """Return the largest gain on each test, none of which counts."""
    found = []
    for test in tests:
        gains = {m: c.versus[m, test].advantage for m in c.methods[1:] if c.versus[m, test].plain.n}
        if gains:
            top = max(gains, key=gains.__getitem__)
            found.append(f"{add_article(top)} {_describe_gain(c, top, test)} on {_name_test(test)}")
    return found


def _name_tests(c: Contest, tests: Iterable[Key]) -> str:
    """Return domains, and which of their tests."""
    parts = []
    for test in tests:
        several = sum(other.domain == test.domain for other in c.tests)
        inner = f"mean over {several} tests" if test.split == MEAN and several > 1 else test.split
        parts.append(DOMAINS[test.domain] + (f" ({inner})" if inner != MEAN else ""))
    return list_words(parts)


def _name_test(test: Key) -> str:
    return f"the {DOMAINS[test.domain]} mean" if test.split == MEAN else test.split


def write_rule(c: Contest) -> str:
    """Return the rule by which methods are compared, and who saw fewer rows."""
    first, by_count = c.study.cells[0], {}
    for method in c.methods:
        by_count.setdefault(_count_settings(first, method), []).append(add_article(method))
    counts = [f"{count(n, 'setting')} ({list_words(names)})" for n, names in by_count.items()]
    if len(counts) == 1:
        counts = ["has one setting" if 1 in by_count else f"chooses among {next(iter(by_count))} settings"]
    epochs = first.config["tune.epochs"] if any(map(_takes_steps, c.methods)) else 0
    budget = say("budget", counts, all(map(c.blind, c.methods)), epochs, first.value("tune.steps"), _find_left(c))
    few = [f"{add_article(m)} {c.trained(m):,}" for m in c.methods if c.trained(m) < c.most]
    return say("rule", c, budget, few)


def describe_search(c: Contest) -> str:
    """Return how settings were searched for and when training stopped; "" for a search that is as the rule says."""
    cell = c.study.cells[0]
    trained = [method for method in c.methods if _takes_steps(method)]
    facts = {key: cell.value(f"tune.{key}") for key in ("shared", "halving", "patience", "start", "widen", "refit")}
    facts["shared"] = shares_settings(c)
    facts |= {} if trained else {"patience": 0, "start": "fresh"}
    facts["halving"] = facts["halving"] and any(_count_settings(cell, method) > 1 for method in trained)
    return say("search", facts, cell.value("tune.validation"))


def shares_settings(c: Contest) -> bool:
    """Return whether all seeds have the settings of one search: seeds that hold out test rows have other ones."""
    held = any(test.split == HELD_OUT for test in c.tests)
    return uses_files(c.study) and bool(c.study.cells[0].value("tune.shared")) and not held


def warn_of_few_epochs(c: Contest) -> str:
    """Return that heads had few epochs and may be better than they look; "" if not, or if validation ended them."""
    if not any(map(_takes_steps, c.methods)) or (left := _find_left(c)) is None or left.epochs >= FEW:
        return ""
    if _is_ended_by_validation(c, left.epochs):
        return ""
    return say("hurried", left, min(FEW, c.study.cells[0].config["tune.epochs"]))


def _is_ended_by_validation(c: Contest, epochs: int) -> bool:
    """Return whether every head was best before the last of its epochs, so that more would not have helped it."""
    rows = [row for cell in c.study.cells for row in cell.rows if row.task == c.task and row.stage == "tune"]
    taken = [(row.hyper or {}).get("epochs", epochs) for row in rows if _takes_steps(method_of(row))]
    return bool(taken) and max(taken) < epochs


class Left(NamedTuple):
    """The epochs that a cap on steps leaves."""

    epochs: int
    per_epoch: int  # steps
    rows: int


def _find_left(c: Contest) -> Left | None:
    """Return what the cap on steps leaves; None where it cuts nothing, or tasks differ."""
    first = c.study.cells[0]
    if not (steps := first.value("tune.steps")) or not c.most or c.task == MEAN:
        return None
    batch, asked = first.config["tune.batch"], first.config["tune.epochs"]
    epochs, per_epoch = methods.count_epochs(c.most, batch=batch, epochs=asked, steps=steps)
    return None if epochs == asked else Left(epochs, per_epoch, c.most)


def list_diverged(study: Study, task: str) -> str:
    """Return which heads are not compared because training diverged, and in how many runs; "" if none did."""
    keys = [key for key in study.keys(metric=DIVERGED, task=task) if key.split != MEAN]
    of = count(len(study.cells), "run")
    each = [f"{key.head} in {sum(map(len, study.table[key]))} of {of}" for key in keys]
    return say("diverged", each) if each else ""


def list_undefined(study: Study, task: str) -> str:
    """Return which scores are undefined, as of constant predictions, and in how many runs; "" if none is."""
    keys = [key for key in study.table if key.task == task and key.metric.endswith(UNDEFINED)]
    of = count(len(study.cells), "run")
    each = [f"{MEASURES[key.metric.removesuffix(UNDEFINED)].title} of {add_article(key.method)} on {key.split} in "
            f"{sum(map(len, study.table[key]))} of {of}" for key in keys if key.method]  # fmt: skip
    return say("undefined", each) if each else ""


def write_caution(c: Contest) -> str:
    """Return what the seeds have in common, so that nobody takes their interval for more than it is."""
    held = uses_files(c.study) and any(test.split == HELD_OUT for test in c.tests)
    redraws = "which rows are held out, " if held else ""
    if not uses_files(c.study) and "pretrain" in c.study.cells[0].run["stages"]:
        redraws = "pre-training, "
    return say("caution", redraws, held, shares_settings(c), any(versus.plain.bounded for versus in c.versus.values()))


def _takes_steps(method: Method) -> bool:
    """Return whether `tune.epochs` and `tune.steps` set the schedule of this head."""
    kind = methods.METHODS.get(method.name)
    return kind is not None and not kind.probe


def _count_settings(cell: FinishedRun, method: Method) -> int:
    """Return how many settings a method chose among in a run; 1 where an older run does not say."""
    known = method.name in methods.METHODS
    grids = [f"tune.{key}" for key in methods.make_grid(method.name)] if known else ["finetune.lrs"]
    return math.prod(len(cell.value(key) or (None,)) for key in grids)
