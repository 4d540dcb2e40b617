"""The tables of a study that compares methods (choice.py): as HTML, and the first of them as plain text."""

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from nml_jax.reporting import answers
from nml_jax.reporting.markup import Best, Lines, Prose, folded, paragraph, table
from nml_jax.reporting.statistics import compare
from nml_jax.reporting.statistics.choose_method import Contest, full_name
from nml_jax.reporting.statistics.compare import Side
from nml_jax.reporting.statistics.paired import DASH, MINUS, PERCENT, over_seeds, stat, unit, wilson
from nml_jax.reporting.statistics.studies import MEAN, Key, Study
from nml_jax.reporting.tables import MODES, SCORES, SPECTRA, shown
from nml_jax.tasks import catalogue

METRICS = {name: SCORES[name] for name in ("accuracy", "macro_f1", "mean_per_class")}
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


def _named(tests: Iterable[Key]) -> list[tuple[Key, str]]:
    return [(t, f"{t.domain.upper()} {'mean' if t.split == MEAN else t.split}") for t in tests]


def scores(contest: Contest, prefix: str) -> str:
    """A line for each method, the scores on every test set; which rows it was trained on where that differs."""
    known = _metrics(contest)
    columns = [(test, metric) for test in contest.shown for metric in known]
    best = {(test, "accuracy"): contest.best(test) for test in contest.decided}
    rows = contest.unequal
    lines = []
    for method in contest.methods:
        cells = [shown(contest.stat(method, *column), column[1]) for column in columns]
        marked = [
            Best(cell) if best.get(column) == method else cell for cell, column in zip(cells, columns, strict=True)
        ]
        lines.append([str(method), *([f"{contest.trained(method):,}"] * rows), *marked])
    several = len(contest.methods) > 1
    said = "Bold: shown to be more accurate than every other method." if any(best.values()) else ""
    said = said or ("Nothing is bold: no method is shown to be more accurate than every other." * several)
    said += " Macro-F1 and the mean per class decide nothing." * (several and len(known) > 1)
    said += " For this task the mean per class is customary." * (known[:1] == ["mean_per_class"])
    caption = f"{prefix}Scores in %, mean ± sample sd over {contest.seeds} seeds. {said}".rstrip()
    over = [("", 1 + rows), *((name, len(known)) for _, name in _named(contest.shown))]
    head = ["", *(["trained on"] * rows), *(METRICS[metric] for _, metric in columns)]
    return table(caption, head, {"": lines}, over=over)


def differences(contest: Contest, prefix: str) -> str:
    """Every method against the reference: in what is decided, then, without a verdict, on every test by itself."""
    groups: dict[str, Lines] = {}
    for test, name in _named(contest.decided):
        lines = []
        for method in contest.methods[1:]:
            plain, wide = versus = contest.versus[method, test]
            difference = plain.unit.signed(plain.difference) if plain.n else DASH
            lines.append([str(method), difference, plain.interval(), wide.interval(), str(plain.n), _p(plain.p),
                          versus.verdict])  # fmt: skip
        groups[name] = lines
    head = ["", "difference (points)", "95 % interval", "widened interval", "n", "p", "verdict"]
    caption = (
        f"{prefix}Accuracy less that of the reference ({contest.reference}), paired over seeds and test rows. Better "
        "goes by the interval that is widened for all comparisons of this table, and of no other; worse by the 95 % "
        "interval as it is. p is 1 less the coverage of the interval that ends at 0, of other seeds and test rows "
        "(Owen 2007), two-sided, for each comparison by itself."
    )
    out = table(caption, head, groups, (6,)) + _others(contest, prefix)
    parts = [test for test in contest.tests if test not in contest.decided]
    if parts:
        each: dict[str, Lines] = {}
        for test, name in _named(parts):
            found = [(method, contest.versus[method, test].plain) for method in contest.methods[1:]]
            each[name] = [[str(method), c.unit.signed(c.difference) if c.n else DASH, c.interval(), str(c.n)]
                          for method, c in found]  # fmt: skip
        caption = (
            f"{prefix}Accuracy less that of the reference ({contest.reference}) on each test by itself. Such an "
            "interval is not widened and decides nothing: of many, some exclude 0 by chance."
        )
        content = table(caption, ["", "difference (points)", "95 % interval", "n"], each)
        out += folded(f"Differences on each of {len(parts)} tests", content)
    return out


def _others(contest: Contest, prefix: str) -> str:
    """The measures that decide nothing: every method's and, less the reference's, their intervals over seeds."""
    known = [metric for metric in _metrics(contest) if metric != "accuracy"]
    groups: dict[str, Lines] = {}
    for test, name in _named(contest.decided):
        for metric in known:
            keys = {m: test._replace(metric=metric, method=m) for m in contest.methods}
            lines = []
            for method, key in keys.items():
                low, high = over_seeds(contest.stat(method, test, metric), redrawn=_redrawn(contest, test))
                own = f"{PERCENT.number(low)} to {PERCENT.number(high)}" if not math.isnan(low) else DASH
                line = [str(method), shown(contest.stat(method, test, metric), metric), own]
                if method != contest.reference:
                    c = compare.compared(contest.study, "", Side(keys[contest.reference]), Side(key))
                    line += [c.unit.signed(c.difference) if c.n else DASH, c.interval()]
                lines.append([*line, *[DASH] * (5 - len(line))])
            groups[f"{name}, {METRICS[metric]}"] = lines
    caption = (
        f"{prefix}Other measures in %, and what they are over those of the reference ({contest.reference}), paired: "
        "95 % t-intervals over seeds alone, which say nothing of other test rows. They decide nothing."
    )
    head = ["", "score", "95 % interval", "difference (points)", "95 % interval"]
    names = " and ".join(METRICS[metric] for metric in known)
    return folded(f"{names[:1].upper()}{names[1:]}, with intervals", table(caption, head, groups)) if groups else ""


def _redrawn(contest: Contest, test: Key) -> float:
    """The share of rows that each seed holds out anew to test on."""
    return compare.redrawn(contest.study, test._replace(method=contest.reference))


def _metrics(contest: Contest) -> list[str]:
    """Those that are known, first the one that is customary for the task."""
    first = catalogue.TRAINED[contest.task].metric if contest.task in catalogue.TRAINED else "accuracy"
    known = [metric for metric in METRICS if contest.study.keys(metric=metric, task=contest.task)]
    return sorted(known, key=lambda metric: metric != first)


def _p(p: float) -> str:
    return DASH if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def sizes(contest: Contest, prefix: str) -> str:
    """What the number of its rows allows to say of a test set; nothing where that is not known."""
    lines, picked = [], False
    for test, name in _named(contest.tests):
        method, n = contest.recommended(test), contest.rows(test)
        s = contest.stat(method, test)
        if n and s.n:
            low, high = wilson(s.mean, n)
            picked |= method != contest.reference
            lines.append(
                [
                    name,
                    f"{n:,}",
                    str(method),
                    PERCENT.number(s.mean),
                    f"{PERCENT.number(low)} to {PERCENT.number(high)}",
                ]
            )
    caption = (
        f"{prefix}What the size of each test set allows: a 95 % binomial interval (Wilson) for the accuracy on other "
        "rows from the same source. Methods on the same rows can be told apart more finely than that."
        f"{' The method was picked on these very rows, so that its accuracy is an optimistic one.' * picked}"
    )
    return table(caption, ["", "rows", "method", "accuracy %", "95 % interval %"], {"": lines}, (2,)) if lines else ""


def spectra(study: Study, task: str, prefix: str) -> str:
    """The spectra of the features F on every split, and of every method's Z."""
    metrics = [metric for metric in SPECTRA if study.keys(metric=metric, task=task)]
    layers = study.names("layer", metric="sve", task=task, method=None)
    groups: dict[str, list[list[str]]] = {}
    for key in study.keys(metric="sve", task=task):
        of = f"Z of {key.head}" if key.method else "F" if len(layers) == 1 else f"F ({key.layer})"
        numbers = [shown(study.stat(0, key._replace(metric=metric)), metric) for metric in metrics]
        into = groups.setdefault(f"{key.domain.upper()} {key.split}", [])
        into.append([f"{of}, {MODES.get(key.mode, key.mode)}", *numbers])
    caption = (
        f"{prefix}Spectra of the features (F) and of what each method makes of them (Z; a probe's is what it is "
        "given), mean ± sample sd over seeds; arrows point to the flatter spectrum. Raw mode takes rows as they are; "
        "code mode, that of the released code, normalises every row and subtracts its mean."
    )
    return table(caption, ["", *(SPECTRA[metric] for metric in metrics)], groups) if groups else ""


def diagnosis(study: Study, task: str, prefix: str) -> str:
    """What the stage diagnose found; nothing where it was not run."""
    found = [(cell.name, entry) for cell in study.cells for entry in cell.diagnosis if entry["task"] == task]
    if not found:
        return ""
    from nml_jax.tuning.diagnosis import (
        BUDGET,
        NAMES,  # brings scikit-learn
    )

    once = len(found) > 1 and all(entry == found[0][1] for _, entry in found)  # a training file has no seeds
    runs = [("all", found[0][1])] if once else found
    several = len({entry["layer"] for _, entry in runs}) > 1
    verdicts = Counter(entry["verdict"] for _, entry in runs)
    if len(verdicts) == 1:
        said = f"{next(iter(verdicts))}{f', in all {len(runs)} runs' if len(runs) > 1 else ''}"
    else:
        counted = "; ".join(f"in {n} of {len(runs)} runs, {verdict}" for verdict, n in verdicts.most_common())
        said = f"the runs do not agree, so no difference is shown: {counted}"
    out = paragraph(f"{prefix}By cross-validation on the training features: {said}.", "")
    measured: dict[str, list[list[str]]] = {}
    for key in (key for key in study.table if key.task == task and key.metric.startswith("diagnosis/")):
        name = key.metric.removeprefix("diagnosis/")
        if name in NAMES:
            s = study.stat(0, key)
            digits = max(0, 3 - math.floor(math.log10(abs(s.mean)))) if s.mean else 1  # four that count
            number = f"{s.mean:.{digits}f}" + (f" ± {s.sd:.{digits}f}" if s.n > 1 and not once else "")
            measured.setdefault(key.layer if several else "", []).append([NAMES[name], number, Prose(MEANINGS[name])])
    over = ", raw mode." if len(runs) == 1 else "; mean ± sample sd over runs, raw mode."
    caption = f"{prefix}The training features: {_features(runs[0][1])}{over}"
    out += table(caption, ["", "value", "what it says"], measured, (2,))
    lines = []
    for run, entry in ((run, entry) for run, entry in runs if entry["probe"]):
        probe, nmtune = (stat(entry[name]).mean for name in ("probe", "nmtune"))
        interval = " to ".join(PERCENT.signed(bound) for bound in entry["interval"])
        name = f"{run}, {entry['layer']}" if several else run
        verdict = entry["verdict"].split(" between ")[0].split(" on held-out ")[0]
        lines.append([name, *map(PERCENT.number, (probe, nmtune)), PERCENT.signed(nmtune - probe), interval, verdict])
    if not lines:
        return out
    entry = next(entry for _, entry in runs if entry["probe"])
    folds = sorted({len(entry["probe"]) for _, entry in runs if entry["probe"]})
    fewer = entry.get("classes", entry["num_classes"]) < entry["num_classes"]
    of = f" of {entry['classes']:,} of the {entry['num_classes']:,} classes" if fewer else ""
    caption = (
        f"{prefix}NMTune (paper) against the tuned L-BFGS probe, accuracy % in {'/'.join(map(str, folds))}-fold "
        f"cross-validation on {entry['rows']:,} training rows{of}; {BUDGET}. The 95 % interval allows for the rows "
        f"that folds share. It speaks for rows like these, not for other domains"
        f"{', and the runs share most of them' if len(runs) > 1 else ''}."
    )
    head = ["run", "probe", "NMTune", f"NMTune {MINUS} probe", "95 % interval", "verdict"]
    return out + table(caption, head, {"": lines}, (5,))


def _features(entry: dict) -> str:
    return f"{entry['n']:,} rows × {entry['dim']:,} features, {entry['num_classes']} classes"


def text(contest: Contest) -> list[str]:
    """The scores and differences as lines of plain text, the answer as the last one."""
    title = ": ".join(filter(None, (contest.study.title, contest.name)))
    lines = [f"{title}, mean ± sd over {contest.seeds} seeds, accuracy less that of the {contest.reference} in points"]
    if contest.widened():
        lines.append(f"(better: by the interval{contest.widened().lstrip(',')}; worse: as it is)")
    first = max(len(str(method)) for method in contest.methods) + 2
    head = [label.removeprefix("mean ") for label in METRICS.values()]
    for test in contest.shown if len(contest.tests) <= FEW else contest.decided:
        n = contest.rows(test)
        lines.append(full_name(test) + (f", {n:,} rows" if n else ""))
        lines.append(" " * first + "".join(f"{name:>11}" for name in (*head, "difference")) + f"{'95 % interval':>18}")
        for method in contest.methods:
            cells = [shown(contest.stat(method, test, metric), metric).replace(" ± ", "±") for metric in METRICS]
            line = f"  {method}".ljust(first) + "".join(f"{cell:>11}" for cell in cells)
            if method != contest.reference:
                plain, versus = contest.versus[method, test].plain, contest.versus[method, test]
                line += f"{unit('accuracy').signed(plain.difference) if plain.n else DASH:>11}{plain.interval():>18}"
                line += f"  {versus.verdict}" if versus.sign and test in contest.decided else ""
            lines.append(line.rstrip())
    said = answers.diverged(contest.study, contest.task), answers.answer(contest), answers.hurried(contest)
    return [*lines, *filter(None, (*said, answers.head_file(contest)))]
