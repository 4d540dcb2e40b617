"""The report as one HTML page: studies in, text out. No script, nothing loaded from elsewhere, every text escaped."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax import __version__
from nml_jax.reporting import claims, figures, methods_page, tables
from nml_jax.reporting.markup import paragraph
from nml_jax.reporting.statistics import choose_method
from nml_jax.reporting.statistics.compare import from_files
from nml_jax.reporting.statistics.paired import SEEDS, listed, unit
from nml_jax.reporting.statistics.studies import FILES, MEAN, Key, Study

LIMIT = 1_900_000  # bytes of a page; what would exceed it is left out, figures of the last tasks first
RULE = (
    f"A difference is claimed where at least {SEEDS} seeds are paired and the 95 % interval of the mean difference, "
    "over seeds and, for accuracies and recall, over test rows (an upper bound where it is not on record which rows "
    "were right), excludes 0; otherwise none is shown. Intervals are not corrected for the number of comparisons, but "
    "where it is said whether NMTune helps."
)
CURVES = {
    "validation/accuracy": ("Clean validation accuracy (%)", 100),
    "validation/i2t_recall@1": ("Clean validation, image→text recall@1 (%)", 100),
    "train/loss": ("Training loss", 1),
    "probe/sve": ("SVE of the probe batch", 1),
}


def page(studies: Sequence[Study], left_out: Mapping[str, str]) -> str:
    """The whole document.

    Args:
        studies: at least one.
        left_out: runs that are not counted -> why.
    """
    names = ", ".join(dict.fromkeys(study.cells[0].config["name"] for study in studies))
    varied = any(study.axis == "noise" and len(study.conditions) > 1 for study in studies)
    title = f"What noise in pre-training does: {names}" if varied else f"Report: {names}"
    if all(map(from_files, studies)):
        title = methods_page.title(studies)
    head = f'<header><h1>{escape(title)}</h1><p class="byline">{escape(_byline(studies))}</p></header>'
    css = (Path(__file__).parent / "report.css").read_text("utf-8")
    after = [_what_was_run(studies, left_out), _limits(studies)]
    texts = [list(_texts(study, i, len(studies))) for i, study in enumerate(studies)]
    room = LIMIT - sum(len(text.encode()) for text in (head, css, *after, *(text for pair in texts for text in pair)))
    body = []
    for i, (study, (opening, closing)) in enumerate(zip(studies, texts, strict=True)):
        body.append(opening)
        for figure in _figures(study, f"s{i}"):
            room -= len(figure.encode())
            if room < 0:
                body.append(paragraph("Further figures are left out to keep this page below 2 MB.", "note"))
                break
            body.append(figure)
        body.append(closing)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{css}</style>
</head>
<body>
{head}
{_contents(studies)}<main>
{"".join(body)}{"".join(after)}</main>
<footer>All numbers of this page, unrounded: <code>summary.csv</code> beside it. nml_jax {__version__}.</footer>
</body>
</html>
"""


def _byline(studies: Sequence[Study]) -> str:
    cells = [cell for study in studies for cell in study.cells]
    words = [f"{len(cells)} finished run{'s' if len(cells) > 1 else ''}"]
    for key, word in (("revision", "code revision "), ("device", "")):
        values = dict.fromkeys(str(cell.run["environment"].get(key) or "") for cell in cells)
        words += [f"{word}{value}" for value in values if value]
    return " · ".join(words)


def _contents(studies: Sequence[Study]) -> str:
    if len(studies) == 1:
        return ""
    links = [(f"study-{i}", study.title) for i, study in enumerate(studies)]
    links += [("run", "What was run"), ("limits", "Limits")]
    items = "".join(f'<li><a href="#{where}">{escape(title)}</a></li>' for where, title in links)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n'


def _texts(study: Study, number: int, of: int) -> tuple[str, str]:
    """What stands before a study's figures, and after them."""
    tasks, contests = _tasks(study), choose_method.contests(study)
    alone = "Which method to use" if contests else "What this shows"
    opening = f'<h2 id="study-{number}">{escape(alone if of == 1 else study.title)}</h2>\n'
    if contests or from_files(study):
        return opening + methods_page.opening(study, contests), methods_page.closing(study) + _pretraining(study)
    opening += "".join(paragraph(text, "lead") for text in claims.lead(study)) + paragraph(RULE, "note")
    caption = (
        f"{f'{tasks[0][1].capitalize()}. ' if len(tasks) > 1 else ''}Mean ± sample sd over n runs that differ in their "
        "seed. ID: in-domain test; OOD: mean over the out-of-domain tests. Arrows point to the flatter spectrum: "
        "LSVR is \N{MINUS SIGN}log(top share), so it rises when the top share falls."
    )
    head = [study.axis, *(condition.label for condition in study.conditions)]
    opening += tables.table(caption, head, tables.summary(study, tasks[0][0]))
    closing = ""
    for title, make in (("Evidence", tables.evidence), ("Scores", tables.scores), ("Spectra", tables.spectra)):
        content = "".join(make(study, task, f"{name[:1].upper()}{name[1:]}. " if name else "") for task, name in tasks)
        closing += f"<h3>{title}</h3>\n{content}" if content else ""
    return opening, closing + _pretraining(study)


def _pretraining(study: Study) -> str:
    content = tables.pretraining(study)
    return f"<h3>Pre-training scores</h3>\n{content}" if content else ""


def _tasks(study: Study) -> list[tuple[str, str]]:
    """(task, its name in headings): one without a name, or the mean over several and then each."""
    if len(study.tasks) < 2:
        return [(next(iter(study.tasks), ""), "")]
    return [(MEAN, f"mean over {len(study.tasks)} tasks"), *((task, task) for task in study.tasks)]


# ---- figures


def _figures(study: Study, name: str) -> Iterator[str]:
    contests = choose_method.contests(study)
    compared = bool(contests) or from_files(study)
    if compared:
        yield from methods_page.drawn(study, contests, name)
    for i, (task, of_task) in enumerate(_tasks(study)):
        suffix = f": {of_task}" if of_task else ""
        yield methods_page.wise(study, task, f"{name}w{i}", f"WiSE-FT{suffix}")
        if compared:
            continue
        yield _transfer(study, task, f"{name}t{i}", f"Transfer of each head{suffix}")
        yield _spectrum(study, task, f"{name}f{i}", f"Spectrum of the features{suffix}")
    yield _retrieval(study, f"{name}r")
    yield _training(study, f"{name}p")


def _axis(study: Study) -> figures.Axis:
    """The conditions to scale, or evenly spaced where some have no number or are too close to each other."""
    x, label = [condition.x for condition in study.conditions], study.axis
    ticks = [condition.label for condition in study.conditions]
    if study.axis == "noise":
        x, label = [100 * value for value in x], "noise in pre-training (%)"
        ticks = [tick.replace(" %", "") for tick in ticks]
    if not np.all(np.diff(x) >= 0.04 * (x[-1] - x[0])):
        x, label = list(range(len(x))), f"{label}, not to scale"
    return figures.Axis(x, ticks, label)


def _legend(study: Study) -> list[tuple[str, str, str]]:
    n = len(study.conditions)
    return [(study.at(c), figures.condition_colour(i, n), "") for i, c in enumerate(study.conditions)]


def _seeds(study: Study, key: Key) -> list[list[float]]:
    """The seeds' values at each condition."""
    return [list(values.values()) for values in study.table.get(key, [{} for _ in study.conditions])]


def _transfer(study: Study, task: str, name: str, title: str) -> str:
    panels = []
    heads = {key.head: key for key in study.keys(metric="accuracy", task=task, split=MEAN)}
    for metric in ("accuracy", "macro_f1") if len(study.conditions) > 1 else ():
        for domain in ("id", "ood"):
            keys = {head: key._replace(metric=metric, domain=domain) for head, key in heads.items()}
            if any(key in study.table for key in keys.values()):
                series = {head: _seeds(study, key) for head, key in keys.items()}
                label = f"{domain.upper()} {tables.SCORES[metric]} (%)"
                panels.append(figures.response(f"{name}{len(panels)}", label, _axis(study), series, scale=100))
    legend = [(head, figures.head_colour(i), figures.head_marker(i)) for i, head in enumerate(heads)]
    caption = "Mean and sample sd over runs, and every run as a dot. Heads stand side by side to be told apart."
    return figures.section(title, panels, caption, legend)


def _spectrum(study: Study, task: str, name: str, title: str) -> str:
    panels = []
    for metric, label, way in (("sve", "SVE", "↑"), ("lsvr", "LSVR", "↑"), ("top_share", "Top share (%)", "↓")):
        for key in claims.raw_spectrum(study, task, metric) if len(study.conditions) > 1 else ():
            series, scale = {label: _seeds(study, key)}, unit(metric).scale
            label = f"{label}, raw mode ({way} flatter)"
            panels.append(
                figures.response(f"{name}{metric}", label, _axis(study), series, scale=scale, by_condition=True)
            )
    lines = _singular_values(study, task)
    if lines:
        panels.append(figures.curves(f"{name}s", "Singular values σᵢ/Σσ, raw mode, log scales", "i", lines, log="xy"))
    caption = (
        f"In-domain features ({task}, split {study.id_split(task)}), neither centred nor normalised. SVE is the "
        "entropy of the singular values' shares, LSVR is \N{MINUS SIGN}log of the top share. They compare within one "
        "data set only."
    )
    return figures.section(title, panels, caption, _legend(study))


def _singular_values(study: Study, task: str) -> dict[str, list[tuple[Any, Any]]]:
    """Shares of the singular values of each run, at most 120 of them, evenly spaced on a log scale."""
    wanted = [(key.split, key.layer) for key in claims.raw_spectrum(study, task, "sve")]
    out: dict[str, list[tuple[Any, Any]]] = {study.at(condition): [] for condition in study.conditions}
    for condition in study.conditions:
        for entry in (entry for cell in condition.cells for entry in cell.spectra):
            if (entry["task"], entry["mode"]) == (task, "paper") and (entry["split"], entry["layer"]) in wanted:
                out[study.at(condition)].append(figures.shares(entry["s"]))
    return out if any(out.values()) else {}


def _retrieval(study: Study, name: str) -> str:
    panels, splits = [], {}
    for metric, way in claims.RETRIEVAL.items() if len(study.conditions) > 1 else ():
        splits = {claims.split_name(m.key): m.key for m in claims.measures(study, "") if m.key.metric == metric}
        if splits:
            series = {split: _seeds(study, key) for split, key in splits.items()}
            panels.append(
                figures.response(f"{name}{metric[:3]}", f"{way} recall@1 (%)", _axis(study), series, scale=100)
            )
    legend = [(split, figures.head_colour(i), figures.head_marker(i)) for i, split in enumerate(splits)]
    return figures.section("Retrieval", panels, "Mean and sample sd over runs, and every run as a dot.", legend)


def _training(study: Study, name: str) -> str:
    panels = []
    for i, (metric, (title, scale)) in enumerate(CURVES.items()):
        lines: dict[str, list[tuple[Any, Any]]] = {study.at(condition): [] for condition in study.conditions}
        for condition in study.conditions:
            for cell in condition.cells:
                known = [(m["step"], scale * m[metric]) for m in cell.metrics if metric in m]
                epochs = [m["epoch"] / m["step"] for m in cell.metrics if m.get("epoch") and m["step"]]
                if known and epochs:
                    steps, values = zip(*known, strict=True)
                    lines[study.at(condition)].append(figures.thinned(epochs[-1] * np.asarray(steps), values))
        if any(lines.values()):
            panels.append(figures.curves(f"{name}{i}", title, "epoch", lines))
    caption = "Every run thin, their mean thick. The loss is that on the noisy supervision it is trained on."
    return figures.section("Pre-training", panels, caption, _legend(study))


# ---- what was run, and what it cannot show


def _what_was_run(studies: Sequence[Study], left_out: Mapping[str, str]) -> str:
    cells = [cell for study in studies for cell in study.cells]
    seeds = sorted({cell.seed for cell in cells})
    noisy = any(cell.ledger for cell in cells)
    facts = {
        "runs": f"{len(cells)} finished{f', {len(left_out)} not counted' if left_out else ''}",
        "seeds": ", ".join(
            f"{seed} (noise {noise})" if noisy and noise != seed else str(seed) for seed, noise in seeds
        ),
    }
    for key in ("train", "test", "ood"):
        files = dict.fromkeys(str(cell.value(f"{FILES}{key}") or "") for cell in cells)
        facts |= {f"{FILES}{key}": ", ".join(filter(None, files))} if any(files) else {}
    environments = [cell.run["environment"] for cell in cells]
    for key in dict.fromkeys(key for environment in environments for key in environment):
        counts = Counter(str(environment.get(key) or "not recorded") for environment in environments)
        facts[key] = "; ".join(value if len(counts) == 1 else f"{value} ({n} runs)" for value, n in counts.items())
    out = '<h2 id="run">What was run</h2>\n<dl>'
    out += "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()) + "</dl>\n"
    if left_out:
        items = "".join(f"<li><code>{escape(name)}</code>: {escape(why)}</li>" for name, why in left_out.items())
        out += f"<h3>Not counted</h3>\n<ul>{items}</ul>\n"
    noise = f"<h3>Noise ledger</h3>\n{tables.ledgers(cells)}" if noisy else ""
    out += noise + tables.times(cells)
    out += tables.goodput_of(cells)
    return out + "".join(tables.chosen(study) + tables.config(study) for study in studies)


def _limits(studies: Sequence[Study]) -> str:
    cells = [cell for study in studies for cell in study.cells]
    counts = sorted({len(condition.cells) for study in studies for condition in study.conditions})
    runs = f"{counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} run{'s' if counts[-1] > 1 else ''}"
    together = all(seed == noise for seed, noise in (cell.seed for cell in cells))
    files = all(map(from_files, studies))
    kinds = listed(list(dict.fromkeys(cell.noise_kind for cell in cells if cell.ledger)))
    revisions = {cell.run["environment"].get("revision") for cell in cells}
    points = [
        f"{runs}{'' if files else ' per condition'}: the spread is a rough estimate, and what is smaller than the "
        "intervals cannot be seen. That no difference is shown does not mean that there is none.",
        "A seed sets the validation part, the initialisation and the order of the rows."
        if files
        else "A seed sets initialisation, data order, augmentation and heads"
        + (", and draws the noise anew." if together else "; the noise has a seed of its own."),
        "Several heads in one run are averaged and count once: they share the run's features.",
        f"{f'Noise of kind {kinds}, with' if kinds else 'With'} these data, models and sizes. "
        "Whether it holds elsewhere is not shown.",
        "Measures of a spectrum depend on the number of rows and on the mode: compare within one data set and mode.",
        "Settings of the heads are chosen on a validation part of the training split; every test split is scored once.",
    ]
    if len(revisions) > 1:
        points.append(f"The runs were made by {len(revisions)} revisions of the code.")
    return f'<h2 id="limits">Limits</h2>\n<ul>{"".join(f"<li>{escape(point)}</li>" for point in points)}</ul>\n'
