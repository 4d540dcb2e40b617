"""The tables of a study that compares methods (choose_method.py), and the summary of one as plain text."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nml_jax.console import list_words
from nml_jax.evals import metrics as evals
from nml_jax.reporting import answers, handed
from nml_jax.reporting.blocks import BEST, PROSE, Block, Lines, fold, table
from nml_jax.reporting.sentences import count, say
from nml_jax.reporting.statistics import compare
from nml_jax.reporting.statistics.baselines import find_interval
from nml_jax.reporting.statistics.choose_method import Contest, name_points, name_test
from nml_jax.reporting.statistics.compare import Side
from nml_jax.reporting.statistics.paired import (
    DASH,
    MINUS,
    PERCENT,
    find_wilson_interval,
    format_difference,
    format_interval,
    format_mean,
    stat,
    unit,
)
from nml_jax.reporting.statistics.studies import MEAN, PRIMARY, Key, Study
from nml_jax.reporting.tables.conditions import SCORES, SPECTRA, name_mode, select
from nml_jax.tasks import catalogue
from nml_jax.tuning.diagnosis import NAMES, NOT_ASKED

METRICS = {name: SCORES[name] for name in ("accuracy", "macro_f1", "mean_per_class")}
OTHERS = {"log_loss": "log loss (nats)", "mcc": "MCC", "f1": "F1"}  # one is shown beside these where it decides
NUMBERS = {"pearson": "Pearson", "spearman": "Spearman", "r2": "R²", "rmse": "RMSE"}  # of a regression
TITLES = {**METRICS, **OTHERS, **NUMBERS, PRIMARY: "own metric"}
MEANINGS = {
    "sve": "how evenly the singular values share their sum, in nats; higher is flatter",
    "lsvr": "how far the largest singular value is from being all there is; higher is flatter",
    "top_share": "of the largest singular value; in raw features that is mostly their mean",
    "effective_rank": "so many equal directions would have this entropy",
    "stable_rank": "energy of all directions over that of the first; near 1, one dominates",
    "alpha_req": "how fast the variance falls from direction to direction; far above 1, few carry it",
    "fisher_ratio": "spread of the class means over the spread around them; higher is easier",
    "class_mean_accuracy": "without any training; near the probe's accuracy, classes are simple clouds",
}
FEW = 8  # tests that plain text shows one by one


def _name_tests(tests: Iterable[Key]) -> list[tuple[Key, str]]:
    return [(t, f"{t.domain.upper()} {'mean' if t.split == MEAN else t.split}") for t in tests]


def list_scores(contest: Contest) -> Block:
    """Return the scores of every method on every test set, and the number of training rows if it differs."""
    known = _list_metrics(contest)
    columns = [(test, metric) for test in contest.shown for metric in known]
    best = {(test, contest.metric): contest.best(test) for test in contest.decided}
    rows, lines = contest.unequal, []
    for method in contest.methods:
        cells = [format_mean(contest.stat(method, *column), column[1]) for column in columns]
        marked = [BEST.format(cell) if best.get(column) == method else cell
                  for cell, column in zip(cells, columns, strict=True)]  # fmt: skip
        lines.append([str(method), *([f"{contest.trained(method):,}"] * rows), *marked])
    lines += _list_baselines(contest, columns, rows)
    several = len(contest.methods) > 1
    better = "more accurate" if contest.metric == "accuracy" else f"better by {contest.measure}"
    said = f"Bold: shown to be {better} than every other method." if any(best.values()) else ""
    said = said or (f"Nothing is bold: no method is shown to be {better} than every other." * several)
    others = list_words(evals.METRICS[metric].title for metric in known if metric != contest.metric)
    said += f" {others[:1].upper()}{others[1:]} decide{'s' * (len(known) == 2)} nothing." * (several and len(known) > 1)
    customary = contest.task in catalogue.TRAINED and known[:1] == ["mean_per_class"]
    said += " For this task the mean per class is customary." * customary
    said += "".join(f" {part[:1].upper()}{part[1:]}." for part in contest.list_parts())
    over = [("", 1 + rows), *((name, len(known)) for _, name in _name_tests(contest.shown))]
    head = ["", *(["trained on"] * rows), *(TITLES[metric] for _, metric in columns)]
    over_seeds = f", mean ± sample sd over {contest.seeds} seeds" if contest.seeds > 1 else ""
    correlation = " (MCC: 100 times its value)" * any(metric == "mcc" for _, metric in columns)
    what = f"Scores in %{correlation}"
    if contest.metric in NUMBERS:
        what = "R² and correlations as 100 times their values, RMSE in units of the target"
    caption = f"{what}{over_seeds}. {said}".rstrip()
    return table(caption, head, {"": lines}, over=over)


def _list_baselines(contest: Contest, columns: Sequence[tuple[Key, str]], rows: bool) -> list[list[str]]:
    """Return the lines of the most frequent class and of chance; none if no test's classes are on record."""
    known = {test: contest.baseline(test) for test in contest.shown}
    if not any(known.values()):
        return []
    answers_of = {base.answer for base in known.values() if base}
    name = f"always {next(iter(answers_of))!r}" if len(answers_of) == 1 and "" not in answers_of else "commonest class"
    majority, chance = [], []
    for test, metric in columns:
        base = known[test]
        majority.append(unit(metric).number(base.scores[metric]) if base and metric in base.scores else DASH)
        chance.append(unit(metric).number(base.chances[metric]) if base and metric in base.chances else DASH)
    blank = [DASH] * rows
    return [[name, *blank, *majority], ["chance", *blank, *chance]]


def list_differences(contest: Contest) -> list[Block]:
    """Compare every method with the reference: first where a verdict is given, then on every test by itself."""
    others, groups = contest.methods[1:], {}
    for test, name in _name_tests(contest.decided):
        found = [(method, contest.versus[method, test]) for method in others]
        groups[name] = [[str(method), v.plain.gain, v.plain.interval(), v.wide.interval(), str(v.plain.n),
                         _format_p(v.plain.p), v.verdict] for method, v in found]  # fmt: skip
    gap = f"difference ({contest.points})"
    head = ["", gap, "95 % interval", "widened interval", "n", "p", "verdict"]
    measure = f"{contest.measure[:1].upper()}{contest.measure[1:]}"
    less = f"{measure} less that of the reference ({contest.reference})"
    less += ", in nats: a lower loss is better" * (contest.points == "nats")
    caption = (
        f"{less}, paired over seeds and test rows. Better goes by the interval that is widened for all comparisons of "
        "this table, and of no other; worse by the 95 % interval as it is. p is 1 less the coverage of the interval "
        "that ends at 0, of other seeds and test rows (Owen 2007), two-sided, for each comparison by itself."
    )
    out: list[Block] = [table(caption, head, groups, (6,)), *_compare_others(contest)]
    parts, each = [test for test in contest.tests if test not in contest.decided], {}
    for test, name in _name_tests(parts):
        found = [(method, contest.versus[method, test].plain) for method in others]
        each[name] = [[str(method), c.gain, c.interval(), str(c.n)] for method, c in found]
    if parts:
        caption = (
            f"{less} on each test by itself. Such an interval is not widened and decides nothing: of many, some "
            "exclude 0 by chance."
        )
        own = table(caption, ["", gap, "95 % interval", "n"], each)
        out.append(fold(f"Differences on each of {len(parts)} tests", own))
    return out


def _compare_others(contest: Contest) -> list[Block]:
    """Return the measures that decide nothing, and their differences to the reference with intervals over seeds."""
    known = [metric for metric in _list_metrics(contest) if metric != contest.metric]
    groups: dict[str, Lines] = {}
    for test, name in _name_tests(contest.decided):
        for metric in known:
            keys = {m: test._replace(metric=metric, method=m) for m in contest.methods}
            lines = []
            for method, key in keys.items():
                s = contest.stat(method, test, metric)
                interval = find_interval(contest.study, key) if s.n > 1 else (math.nan, math.nan)
                own = format_interval(interval, s.n)
                c = compare.compare_numbers(contest.study, "", Side(keys[contest.reference]), Side(key))
                gain = [c.gain, c.interval()] if method != contest.reference else [DASH] * 2
                lines.append([str(method), format_mean(s, metric), own, *gain])
            points = name_points(metric)
            groups[f"{name}, {TITLES[metric]}" + (f", in {points}" if points != "points" else "")] = lines
    caption = (
        f"Other measures, and what they are over those of the reference ({contest.reference}), paired: 95 % intervals "
        "over seeds and test rows (over seeds alone where it is not on record what each row was answered). They decide "
        "nothing."
    )
    mixed = any(name_points(metric) != "points" for metric in known)
    head = ["", "score", "95 % interval", "difference" + " (points)" * (not mixed), "95 % interval"]
    names = list_words(TITLES[metric] for metric in known)
    title = f"{names[:1].upper()}{names[1:]}, with intervals"
    return [fold(title, table(caption, head, groups))] if groups else []


def _list_metrics(contest: Contest) -> list[str]:
    """Return the known metrics, the one that decides or is customary for the task first."""
    first = contest.metric if contest.metric != "accuracy" else catalogue.find_metric(contest.task)
    names = [*METRICS, *({contest.metric} & OTHERS.keys()), *(NUMBERS if contest.metric in NUMBERS else ())]
    names += [PRIMARY] * (contest.metric == PRIMARY)
    known = [metric for metric in names if contest.study.keys(metric=metric, task=contest.task)]
    return sorted(known, key=lambda metric: metric != first)


def _format_p(p: float) -> str:
    return DASH if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def list_sizes(contest: Contest) -> list[Block]:
    """Return which differences a test set of this size can show; nothing if the size is not known."""
    lines = []
    for test, name in _name_tests(contest.tests):
        method, n = contest.recommended(test), contest.rows(test)
        s = contest.stat(method, test, "accuracy")
        if n and s.n:
            interval = format_interval(find_wilson_interval(s.mean, n), n, "row")
            lines.append([name, f"{n:,}", str(method), PERCENT.number(s.mean), interval])
    caption = (
        "What the size of each test set allows: a 95 % binomial interval (Wilson) for the accuracy on other rows from "
        "the same source. Methods on the same rows can be told apart more finely than that."
    )
    head = ["", "rows", "method", "accuracy %", "95 % interval %"]
    return [table(caption, head, {"": lines}, (2,))] if lines else []


def list_spectra(study: Study, task: str, prefix: str) -> list[Block]:
    """Return the spectra of the features F on every split, and of every method's Z."""
    frame = select(study, task=task, metric=SPECTRA)
    if not len(frame):
        return []
    layers = frame["layer"][frame["method"] == ""].nunique()
    of = "F" if layers == 1 else "F (" + frame["layer"] + ")"
    frame["name"] = ("Z of " + frame["head"]).where(frame["method"] != "", of)
    frame["name"] += ", " + frame["mode"].map(name_mode)
    metrics, groups = [metric for metric in SPECTRA if (frame["metric"] == metric).any()], {}
    for (domain, split), part in frame.groupby(["domain", "split"], sort=False):
        texts = part.pivot(index="name", columns="metric", values="text").fillna(DASH)
        groups[f"{domain.upper()} {split}"] = [[name, *texts.loc[name, metrics]] for name in part["name"].unique()]
    caption = (
        f"{prefix}Spectra of the features (F) and of what each method makes of them (Z; a probe's is what it is "
        "given), mean ± sample sd over seeds; arrows point to the flatter spectrum."
    )
    return [table(caption, ["", *(SPECTRA[metric] for metric in metrics)], groups)]


def list_diagnosis(study: Study, task: str, prefix: str) -> list[Block]:
    """Return the results of the stage diagnose; nothing if it was not run."""
    found = [(cell.name, entry) for cell in study.cells for entry in cell.diagnosis if entry["task"] == task]
    if not found:
        return []
    once = len(found) > 1 and all(entry == found[0][1] for _, entry in found)  # a training file has no seeds
    runs = [("all", found[0][1])] if once else found
    several = len({entry["layer"] for _, entry in runs}) > 1
    verdicts = Counter(entry["verdict"] for _, entry in runs)
    if len(verdicts) == 1:
        said = f"{next(iter(verdicts))}{f', in all {len(runs)} runs' if len(runs) > 1 else ''}"
    else:
        counted = "; ".join(f"in {n} of {len(runs)} runs, {verdict}" for verdict, n in verdicts.most_common())
        said = f"the runs do not agree, so no difference is shown: {counted}"
    measured: dict[str, list[list[str]]] = {}
    for key in (key for key in study.keys(task=task) if key.metric.removeprefix("diagnosis/") in NAMES):
        if (name := key.metric.removeprefix("diagnosis/")) != key.metric:
            s = study.stat(0, key)
            digits = max(0, 3 - math.floor(math.log10(abs(s.mean)))) if s.mean else 1  # four that count
            number = f"{s.mean:.{digits}f}" + (f" ± {s.sd:.{digits}f}" if s.n > 1 and not once else "")
            measured.setdefault(key.layer if several else "", []).append(
                [NAMES[name], number, PROSE.format(MEANINGS[name])]
            )
    entry, over = runs[0][1], ", raw mode." if len(runs) == 1 else "; mean ± sample sd over runs, raw mode."
    size = f"{entry['n']:,} rows × {entry['dim']:,} features, {entry['num_classes']} classes"
    asked = any(entry.get("untold") != NOT_ASKED for _, entry in runs)
    out = [Block("p", f"{prefix}By cross-validation on the training features: {said}.")] * asked
    out.append(table(f"{prefix}The training features: {size}{over}", ["", "value", "what it says"], measured, (2,)))
    probed = [(f"{run}, {entry['layer']}" if several else run, entry) for run, entry in runs if entry["probe"]]
    return out + ([_compare_folds(probed, prefix, several_runs=len(runs) > 1)] if probed else [])


def say_separability(contest: Contest) -> str:
    """Return how far apart the classes of the training features are; "" if that was not measured."""
    found = {}
    for name in ("class_mean_accuracy", "fisher_ratio"):
        keys = contest.study.keys(metric=f"diagnosis/{name}", task=contest.task)
        found[name] = contest.study.stat(0, keys[0]).mean if keys else math.nan
    return "" if any(map(math.isnan, found.values())) else say("separability", *found.values())


def _compare_folds(runs: Sequence[tuple[str, dict[str, Any]]], prefix: str, *, several_runs: bool) -> Block:
    """Compare NMTune with the probe in cross-validation, run by run."""
    lines = []
    for name, entry in runs:
        probe, nmtune = (stat(entry[side]).mean for side in ("probe", "nmtune"))
        interval = format_difference(entry["interval"], len(entry["probe"]))
        verdict = entry["verdict"].split(" between ")[0].split(" on held-out ")[0]
        lines.append([name, *map(PERCENT.number, (probe, nmtune)), PERCENT.signed(nmtune - probe), interval, verdict])
    entry, folds = runs[0][1], sorted({len(entry["probe"]) for _, entry in runs})
    classes = entry.get("classes", entry["num_classes"])
    of = f" of {classes:,} of the {entry['num_classes']:,} classes" if classes < entry["num_classes"] else ""
    caption = (
        f"{prefix}NMTune (paper) against the tuned L-BFGS probe, accuracy % in {'/'.join(map(str, folds))}-fold "
        f"cross-validation on {entry['rows']:,} training rows{of}. The 95 % interval allows for the rows "
        f"that folds share. It speaks for rows like these, not for other domains"
        f"{', and the runs share most of them' if several_runs else ''}."
    )
    head = ["run", "probe", "NMTune", f"NMTune {MINUS} probe", "95 % interval", "verdict"]
    return table(caption, head, {"": lines}, (5,))


def write_text(contest: Contest) -> list[str]:
    """Return scores and differences as lines of plain text, and the answer as the last line."""
    title = ": ".join(filter(None, (contest.study.title, contest.name)))
    gap = f"{contest.measure} less that of the {contest.reference} in {contest.points}"
    lines = [f"{title}, mean ± sd over {count(contest.seeds, 'seed')}, {gap}"]
    lines += [f"{part[:1].upper()}{part[1:]}." for part in contest.list_parts()]
    titles = {metric: TITLES[metric] for metric in _list_metrics(contest)}
    if contest.widened():
        lines.append(f"(better: by the interval{contest.widened().lstrip(',')}; worse: as it is)")
    known = {test: _list_baselines(contest, [(test, metric) for metric in titles], False) for test in contest.shown}
    names = [*map(str, contest.methods), *(line[0] for lines_of in known.values() for line in lines_of)]
    first = max(map(len, names)) + 2
    head = [*(label.removeprefix("mean ").replace(" (nats)", "") for label in titles.values()), "difference"]
    for test in contest.shown if len(contest.tests) <= FEW else contest.decided:
        n = contest.rows(test)
        lines.append(name_test(test) + (f", {n:,} rows" if n else ""))
        lines.append(" " * first + "".join(f"{name:>12}" for name in head) + f"{'95 % interval':>18}")
        for method in contest.methods:
            cells = [format_mean(contest.stat(method, test, metric), metric).replace(" ± ", "±") for metric in titles]
            line = f"  {method}".ljust(first) + "".join(f"{cell:>12}" for cell in cells)
            if method != contest.reference:
                versus = contest.versus[method, test]
                line += f"{versus.plain.gain:>12}  {versus.plain.interval():>16}"
                line += f"  {versus.verdict}" if versus.sign and test in contest.decided else ""
            lines.append(line.rstrip())
        for name, *cells in known[test]:
            lines.append((f"  {name}".ljust(first) + "".join(f"{cell:>12}" for cell in cells)).rstrip())
    said = (
        answers.list_diverged(contest.study, contest.task),
        answers.list_undefined(contest.study, contest.task),
        answers.write_answer(contest),
        answers.say_disagreement(contest),
        answers.warn_of_few_epochs(contest),
    )
    advised = answers.advise(contest)
    files = [handed.warn_of_worse(contest, [*advised]), *handed.write_lines(contest, advised)]
    return [*lines, *filter(None, (*said, *files))]
