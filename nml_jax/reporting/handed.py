"""The heads that a report hands over: their files, which rows each saw, each file's own scores, and its command."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nml_jax.console import list_words
from nml_jax.reporting.blocks import Answer, Block, fold, table
from nml_jax.reporting.sentences import add_article, count, say
from nml_jax.reporting.statistics.choose_method import DOMAINS, Contest, name_test
from nml_jax.reporting.statistics.compare import HELD_OUT
from nml_jax.reporting.statistics.paired import DASH, PERCENT, find_wilson_interval, format_interval, stat, unit
from nml_jax.reporting.statistics.studies import FILES, MEASURES, Key, Method, Source
from nml_jax.reporting.tables.conditions import SCORES as SCORES_OF
from nml_jax.runs.finished import FinishedRun, Seed
from nml_jax.runs.heads import head_path
from nml_jax.runs.rows import UNVALIDATED, Row
from nml_jax.tuning import methods

ACCURACY = "accuracy"  # what `predict` prints, whatever decides between methods
SAME = 1e-6  # standard deviation of scores that are those of one head
SHOWN = 4  # tests whose scores stand in the box
FILE, SCORES, OTHERS = "File", "Its accuracy", "Its scores"  # parts of an answer
FEATURES = "FEATURES"  # stands for a file in a command


class Head(NamedTuple):
    """The file of one head of the stage tune.

    tests: key of a test -> the row with this file's accuracy on it.
    """

    method: Method
    seed: Seed
    path: Path
    tests: dict[Key, Row]

    @property
    def n_train(self) -> int:
        """Rows that it was trained on; 0 if that is not on record."""
        return max(row.n_train or 0 for row in self.tests.values())


def shown_metric(c: Contest) -> str:
    """Return the metric that a file is described by: accuracy, or of a regression the one that decides."""
    return (
        c.metric
        if MEASURES[c.metric].needs == "numbers" and not c.study.keys(metric=ACCURACY, task=c.task)
        else ACCURACY
    )


def name_scores(c: Contest) -> str:
    """Return what the scores of a file are called."""
    return SCORES if shown_metric(c) == ACCURACY else OTHERS


def list_heads(c: Contest, method: Method) -> list[Head]:
    """Return the heads of a method whose files exist, in the order of the seeds."""
    found: dict[tuple[Seed, int], dict[Key, tuple[Source, Row]]] = {}
    for test in c.tests:
        key = test._replace(method=method, metric=shown_metric(c))
        for seed, source in c.study.sources.get(key, [{}])[0].items():
            for row in source.rows:
                if row.stage == "tune":
                    found.setdefault((seed, row.head_seed or 0), {})[test] = source, row
    heads = []
    for (seed, _), of in found.items():
        source, row = next(iter(of.values()))
        path = head_path(source.folder, vars(row))
        if path.is_file():
            path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            heads.append(Head(method, seed, path, {test: row for test, (_, row) in of.items()}))
    return heads


def format_score(value: float, n: int | None) -> str:
    """Return the accuracy of a file as `predict` prints it, with its 95 % interval for other rows (Wilson)."""
    score = f"{100 * value:.2f} %"
    return f"{score} of {n:,} rows, {_bound(value, n)}" if n else score


def _bound(value: float, n: int) -> str:
    text = format_interval(find_wilson_interval(value, n), n, "row")
    return text if "few" in text else f"95 % interval {text}"


def answer(c: Contest, method: Method, tests: Sequence[Key]) -> Answer | None:
    """Return the file of a method, its scores and its command; None if there is no file (k-NN, fine-tuning).

    Args:
        tests: those of `c.decided` for which it is to be used.
    """
    heads = list_heads(c, method)
    if not heads:
        return None
    first = heads[0]
    domains = {test.domain for test in tests}
    shown = [test for test in first.tests if test.domain in domains][:SHOWN]
    scores = [_describe_score(c, first, test) for test in shown]
    if (more := sum(test.domain in domains for test in first.tests) - len(shown)) > 0:
        scores.append(f"and on {more} more, in the table of files below")
    which = "the same in each" if _is_shared(heads) else "the first"
    of = f", {which} of {len(heads)} seeds" if len(heads) > 1 else ""
    about = f"{add_article(method)}{of}; {describe_rows(c, first)}"
    where = f" For {list_words(DOMAINS[test.domain] for test in tests)} rows." if len(tests) < len(c.decided) else ""
    what = f"{about[0].upper()}{about[1:]}.{where}"
    return Answer({FILE: [str(first.path), what], name_scores(c): scores}, write_command(c, first, shown))


def _is_shared(heads: Sequence[Head]) -> bool:
    """Return whether seeds have the same head: a solved one whose rows and settings are the same."""
    known = {(head.n_train, *((test, row.value, str(row.hyper)) for test, row in head.tests.items())) for head in heads}
    return len(known) == 1 and all(methods.find(head.method.name).probe for head in heads)


def _describe_score(c: Contest, head: Head, test: Key) -> str:
    metric = shown_metric(c)
    row, s, kind = head.tests[test], c.stat(head.method, test, metric), unit(metric)
    mean = f"; mean over {s.n} seeds {kind.text(s.mean)}" if s.n > 1 and s.sd > SAME else ""
    if metric != ACCURACY:
        name = MEASURES[metric].title
        return f"{name} {kind.text(row.value)} on {row.n_test:,} rows, on {name_test(test)}{mean}"
    return f"{format_score(row.value, row.n_test)}, on {name_test(test)}{mean}{_describe_deciding(c, head, test)}"


def _describe_deciding(c: Contest, head: Head, test: Key) -> str:
    """Return a file's score by the metric that decides, and the mean over seeds; "" where accuracy does."""
    if test.metric == ACCURACY:
        return ""
    source = c.study.sources.get(test._replace(method=head.method), [{}])[0].get(head.seed)
    rows = [row for row in source.rows if row.head_seed == head.tests[test].head_seed] if source else []
    s, kind = c.stat(head.method, test, test.metric), unit(test.metric)
    mean = f", mean over {s.n} seeds {kind.text(s.mean)}" if s.n > 1 and s.sd > SAME else ""
    name = SCORES_OF.get(test.metric) or MEASURES[test.metric].title.removeprefix("the ")
    return f"; {name} {kind.text(rows[0].value)}{mean}" if rows else ""


def describe_rows(c: Contest, head: Head) -> str:
    """Return which rows a head has seen, in words."""
    cell = _find_run(c, head)
    row = next(iter(head.tests.values()))
    held = any(test.split == HELD_OUT for test in c.tests)
    chosen = bool(cell.value("tune.validation")) and UNVALIDATED not in (row.hyper or {}) and _chose(cell, head)
    refit = cell.value("tune.refit") in (None, True)
    share = row.train_share if row.train_share not in (None, 1.0) else None
    return say("saw", head.n_train, c.most, held, chosen, refit, share, row.suspects or "keep")


def _chose(cell: FinishedRun, head: Head) -> bool:
    """Return whether a method's settings were chosen on a validation part."""
    several = any(len(cell.value(f"tune.{key}") or ()) > 1 for key in methods.make_grid(head.method.name))
    patient = cell.value("tune.start") == "probe" or cell.value("tune.patience") or cell.value("tune.halving")
    return several or bool(patient and not methods.find(head.method.name).probe)


def _find_run(c: Contest, head: Head) -> FinishedRun:
    return next(cell for cell in c.study.cells if cell.seed == head.seed)


def write_command(c: Contest, head: Head, tests: Sequence[Key]) -> str:
    """Return the line that applies a head: to a test file where its path is known, else to any FEATURES."""
    cell = _find_run(c, head)
    known = {"id": cell.value(f"{FILES}test"), "ood": cell.value(f"{FILES}ood")}
    names = [str(known.get(test.domain) or "").split(";")[0].strip() for test in tests[:1]]
    file = next((shlex.quote(name) for name in names if name and Path(name).is_file()), FEATURES)
    columns = str(cell.value(f"{FILES}columns") or "")
    taken = [of["taken"] for of in cell.features.get("columns", {}).values()]
    columns = columns if all(len(names) == 1 for names in taken) else ""  # columns of numbers are named in the head
    named = f" --columns {shlex.quote(columns)}" if columns else ""
    return f"python -m nml_jax.predict {shlex.quote(str(head.path))} {file}{named}"


def write_lines(c: Contest, advised: Mapping[Method, Sequence[Key]]) -> list[str]:
    """Return plain text for a terminal: the file of each advised method, its scores, and the command."""
    out = []
    for found in (answer(c, method, tests) for method, tests in advised.items()):
        if found is not None:
            name = name_scores(c)
            (_, what), scores = found.about[FILE], found.about[name]
            out += [f"{what} {name}: {'; '.join(scores)}.", f"  {found.command}"]
    return out


def list_files(c: Contest, advised: Sequence[Method]) -> list[Block]:
    """Return, folded, every file of the advised methods with the rows that it saw and its score on every test."""
    lines, metric = [], shown_metric(c)
    found = [list_heads(c, method) for method in advised]
    for head in (head for heads in found for head in (heads[:1] if _is_shared(heads) else heads)):
        scores = [
            (
                f"{100 * row.value:.2f}{f', {text}' if (text := _interval(row)) else ''}"
                if metric == ACCURACY
                else unit(metric).number(row.value)
            )
            if (row := head.tests.get(test))
            else DASH
            for test in c.tests
        ]
        lines.append([str(head.path), f"{head.n_train:,}" if head.n_train else DASH, *scores])
    caption = (
        "Accuracy of each file in %, as the command predict prints it, and its 95 % interval for other rows of the "
        "same source (Wilson). Rows: that it was trained on."
    )
    if metric != ACCURACY:
        caption = f"{MEASURES[metric].title} of each file. Rows: that it was trained on."
    names = [name_test(test) for test in c.tests]
    title = f"{count(len(lines), 'file')} of {list_words(map(add_article, advised))}, and the score of each"
    told = len(lines) == 1 and len(c.tests) <= SHOWN  # by the box
    return [fold(title, table(caption, ["file", "rows", *names], {"": lines}))] if lines and not told else []


def _interval(row: Row) -> str:
    return format_interval(find_wilson_interval(row.value, row.n_test), row.n_test, "row") if row.n_test else ""


def warn_of_worse(c: Contest, advised: Sequence[Method]) -> str:
    """Return where the first file of an advised method scores worse than the mean over seeds, beyond its interval."""
    found = []
    for method in advised if shown_metric(c) == ACCURACY else ():
        for test, row in list_heads(c, method)[0].tests.items() if list_heads(c, method) else ():
            mean = stat(c.values(method, test, ACCURACY).values()).mean
            if row.n_test and find_wilson_interval(row.value, row.n_test)[1] < mean:
                found.append(
                    f"{100 * row.value:.2f} % on {test.split}, where the mean over seeds is {PERCENT.text(mean)}"
                )
    return say("worse_file", found) if found else ""
