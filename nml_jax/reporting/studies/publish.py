"""Write a study for a paper: figure (SVG, PDF), its points (CSV), a table (LaTeX), and what was found (Markdown, CSV).

studies/<name>/figure.svg, figure.pdf   the panels, with the fonts inside
studies/<name>/figure.csv               every point: panel, x, series, seed, y
studies/<name>/table.tex                mean and sample sd of every line of every panel
studies/<name>/findings.md, .csv        rate by rate: difference, interval, published sign, verdict
studies/<name>/published.csv            what the papers report: values, or the sign where only a figure shows it
studies/<name>/summary.csv              every number of the study's runs, mean over its seeds, with their number

Runs that differ in more than the study's axis and seeds are several studies: the second has the folder <name>-2. When
it no longer is, its files are removed.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from nml_jax.console import list_words
from nml_jax.reporting.sentences import add_article, count, format_span
from nml_jax.reporting.statistics.choose_method import DOMAINS
from nml_jax.reporting.statistics.grouping import CONDITION
from nml_jax.reporting.statistics.paired import PERCENT, unit
from nml_jax.reporting.statistics.studies import MEASURES, Study, write_csv
from nml_jax.reporting.studies import published
from nml_jax.reporting.studies.draw import Drawn, draw_figure
from nml_jax.reporting.studies.findings import VERDICTS, Finding, check_claims, describe, explain_gaps
from nml_jax.reporting.studies.latex import write_table
from nml_jax.reporting.studies.numbers import DETECTORS, SCORE, SPECTRUM, VALIDATION, ZEROSHOT, Numbers
from nml_jax.reporting.studies.recipes import OWN, PROBE, RECIPES, Recipe, View
from nml_jax.runs.files import write_atomic, write_bytes
from nml_jax.runs.finished import FinishedRun
from nml_jax.tasks.directories import name_folder

FILES = ("figure.svg", "figure.pdf", "figure.csv", "table.tex", "findings.md", "findings.csv", "published.csv",
         "summary.csv")  # fmt: skip
UNEQUAL = (
    "Some seeds are missing: a finding is over the seeds that all its numbers have, and figure, table and summary.csv "
    "are over all seeds that a number has."
)
AXES = {"share": "share of the downstream training rows", "noise": "wrong labels among the downstream training rows",
        "sve": "entropy SVE of the features", "lsvr": "LSVR of the features",
        "top_share": "share of the largest singular value"}  # fmt: skip


class Published(NamedTuple):
    """What was written of a study: its figure, sentences on what it is about and on all findings, and one on each.

    missing: which heads lack a score, and why; in `about`, too. gaps: which claims have no finding, and why.
    """

    question: str
    about: str
    summary: str
    svg: str
    sentences: list[str]
    folder: Path
    missing: list[str]
    gaps: list[str]


def publish(name: str, study: Study, out: Path, *, part: int = 0) -> Published | None:
    """Write the files of a study into the folder `out`/studies/`name`; return what the page shows, if there is any.

    Args:
        name: a key of RECIPES.
        study: its finished runs, as conditions.
        part: where the runs are several studies, the number of this one, from 1; its title is then told, too.
    """
    folder = out / "studies" / (f"{name}-{part}" if part > 1 else name)
    recipe, numbers = RECIPES[name], Numbers(study)
    lines = published.read_published(name)
    panels = [panel for view in recipe.views if (panel := make_panel(view, numbers, lines)) is not None]
    if not panels:
        return None
    findings = check_claims(recipe, numbers)
    svg, pdf = draw_figure(name, panels)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "figure.svg", svg)
    write_bytes(folder / "figure.pdf", pdf)
    points = pd.concat([panel.points.assign(panel=panel.title) for panel in panels])
    write_atomic(folder / "figure.csv", points.to_csv(index=False, columns=["panel", *points.columns[:-1]]))
    write_atomic(folder / "table.tex", write_table(panels))
    sentences = [describe(finding) for finding in findings]
    gaps = [_make_sentence(gap) for gap in explain_gaps(recipe, numbers)]
    missing = numbers.list_missing(list_scores(recipe), list_methods(recipe))
    about = explain(numbers, findings, recipe, missing, title=study.title if part else "")
    text = [f"# {recipe.question}", "", about, "", *(f"- {sentence}" for sentence in sentences), ""]
    text += [line for gap in gaps for line in (gap, "")]
    write_atomic(folder / "findings.md", "\n".join(text))
    write_atomic(folder / "summary.csv", write_csv([study]))
    write_atomic(folder / "findings.csv", list_findings(findings).to_csv(index=False))
    write_atomic(folder / "published.csv", published.tabulate(lines).to_csv(index=False) if lines else "")
    return Published(recipe.question, about, summarise(findings), svg.decode("utf-8"), sentences, folder, missing, gaps)


def remove_stale(name: str, out: Path, kept: Sequence[Path]) -> list[Path]:
    """Remove what an earlier report has left in the folders of a study, and return these folders.

    Only the files that `publish` writes go, and a folder when it is empty.

    Args:
        kept: folders that were just written.
    """
    own = re.compile(rf"{re.escape(name)}(-\d+)?")
    numbered = (path for path in sorted((out / "studies").glob(f"{name}*")) if own.fullmatch(path.name))
    stale = [path for path in numbered if path not in kept and any((path / file).exists() for file in FILES)]
    for folder in stale:
        for file in FILES:
            (folder / file).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return stale


def make_panel(view: View, numbers: Numbers, lines: Sequence[published.Published]) -> Drawn | None:
    """Return a panel with its points, and those of the published `lines` that agree; None if the runs have none."""
    points = numbers.list_points(view)
    scatter = view.x in SPECTRUM
    if points.empty or (view.x != "condition" and np.isnan(points["x"].to_numpy(float)).all()):
        return None
    metric = {SCORE: numbers.find_metric(view.tasks), VALIDATION: "accuracy", ZEROSHOT: "accuracy"}.get(view.y, view.y)
    noise = numbers.study.axis == "noise"
    label = AXES.get(view.x, "wrong supervision in pre-training" if noise else numbers.study.axis)
    agreeing = _find_published(view, numbers, lines) if view.x == "condition" else []
    title = view.title.replace(SCORE, MEASURES[metric].title.removeprefix("the ")) if view.y == SCORE else view.title
    return Drawn(title, label, unit(metric), points, agreeing, scatter=scatter)


def _find_published(view: View, numbers: Numbers, lines: Sequence[published.Published]) -> list[published.Published]:
    """Return the published lines that stand on a panel's axes: over noise rates, or over named encoders."""
    study, first = numbers.study, numbers.study.cells[0]
    if study.axis == CONDITION and view.y == SCORE and unit(numbers.find_metric(view.tasks)).scale == PERCENT.scale:
        return published.find_encoders(lines, view.domain, [condition.label for condition in study.conditions])
    if study.axis != "noise":
        return []
    keys = numbers.find_keys(view.y, view.domain, view.methods) if view.y in (*DETECTORS, ZEROSHOT) else []
    data, test = _name_data(first, "data", ("train",)), ""
    classes = first.value("data.num_classes") or len(first.counts.get("train", {}))
    if keys and view.y == ZEROSHOT:
        test, classes = keys[0].task, None  # a name of the catalogue is always the same set
        if test == "directory":
            test = _name_data(first, "downstream", ("test", "ood")) if first.value("downstream.path") else data
            splits = (key.split for key in numbers.study.keys(task="directory", metric=keys[0].metric))
            classes = max((len(first.count_classes("directory", split)) for split in splits), default=0)
    elif keys:
        whole = _is_whole(first, "detect.data", ("train", "test"))
        data, classes = keys[0].task if whole else "", first.value("detect.data.num_classes") or 0
    return published.find_agreeing(lines, data, view.y, first.noise_kind, test, classes, first.value("data.size"))


def _name_data(run: FinishedRun, section: str, splits: Sequence[str]) -> str:
    """Return what published lines call a dataset: its name, or that of its folder; "" if it is a part or a mixture.

    Args:
        splits: as for `_is_whole`.
    """
    if not _is_whole(run, section, splits):
        return ""
    path = run.value(f"{section}.path")
    return run.value(f"{section}.name") or (name_folder(path) if path else "")


def _is_whole(run: FinishedRun, section: str, splits: Sequence[str]) -> bool:
    """Return whether a dataset is not a mixture and has all classes and rows.

    Args:
        splits: keys of the section, of which none may be a slice, such as train[:10%].
    """
    named = [run.value(f"{section}.{key}") or () for key in splits]
    words = [word for value in named for word in ([value] if isinstance(value, str) else value)]
    return not (run.value(f"{section}.classes") or run.value(f"{section}.mixture") or any("[" in w for w in words))


def list_scores(recipe: Recipe) -> list[tuple[str, str]]:
    """List the scores that a study draws or claims something of, as (tasks, domain)."""
    of = [each for each in (*recipe.views, *recipe.claims) if each.y == SCORE]
    return list(dict.fromkeys((each.tasks, each.domain) for each in of))


def list_methods(recipe: Recipe) -> list[str]:
    """List the methods whose scores a study draws or claims something of."""
    drawn = [name for view in recipe.views if view.y == SCORE for name in view.methods]
    claimed = [name for claim in recipe.claims if claim.y == SCORE for name in (claim.method, claim.other) if name]
    return list(dict.fromkeys([*drawn, *claimed]))


def explain(
    numbers: Numbers, findings: Sequence[Finding], recipe: Recipe, missing: Sequence[str] = (), *, title: str = ""
) -> str:
    """Return what the findings are about: the runs, the scores and their parts, and the level of the intervals.

    Args:
        missing: which scores are not there, and why.
    """
    seeds = [len(condition.cells) for condition in numbers.study.conditions]
    scored = any(numbers.find_keys(SCORE, domain, (PROBE,)) for domain in DOMAINS) and PROBE in list_methods(recipe)
    words = [
        f"{title}:" if title else "",
        f"{count(sum(seeds), 'run')}, {format_span(seeds, 'seed')} for each of {count(len(seeds), 'condition')}.",
        *(_make_sentence(part) for part in (*numbers.list_parts(list_scores(recipe)), *missing)),
        f"The probe is {add_article(numbers.probe)}." if scored else "",
        _explain_intervals(findings),
        UNEQUAL if len({cell.seed for cell in numbers.study.cells}) > min(seeds) or _differ(findings) else "",
    ]  # fmt: skip
    return " ".join(filter(None, words))


def _make_sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _differ(findings: Sequence[Finding]) -> bool:
    """Return whether some finding is over fewer seeds than the study has."""
    return any(finding.found.n < finding.seeds for finding in findings)


def _explain_intervals(findings: Sequence[Finding]) -> str:
    """Return what the intervals of the findings are for, and their level; "" if there are none."""
    told = [finding for finding in findings if finding.found.parts]
    rows = [f for f in told if len(f.found.parts) > 1 or f.found.redrawn]
    alone = list(dict.fromkeys(f.claim.words for f in told if f not in rows))
    level = f"hold at 95 % for all {len(findings)} comparisons together."
    if not told:
        return ""
    if not rows:
        return f"Seeds are the unit; intervals are for other seeds, and {level}"
    both = "Seeds are the unit; intervals are for other seeds and other test rows"
    return (
        f"{both}, those of {list_words(alone)} for other seeds alone; they {level}" if alone else f"{both}, and {level}"
    )


def summarise(findings: Sequence[Finding]) -> str:
    """Return how many of the published findings hold here, in a sentence."""
    counts = Counter(finding.verdict for finding in findings)
    words = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    origin = "expected" if any(finding.claim.source == OWN for finding in findings) else "published"
    return f"{len(findings)} comparisons with what was {origin}: {', '.join(words) or 'none'}."


def list_findings(findings: Sequence[Finding]) -> pd.DataFrame:
    """Return a line for every finding, in the measure's own unit."""
    columns = ["claim", "at", "difference", "low", "high", "seeds", "comparisons", "published", "source", "verdict"]
    lines = [
        (f.claim.words, f.at, f.found.difference, f.found.low, f.found.high, f.found.n, len(findings), f.sign,
         f.claim.source, f.verdict) for f in findings
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=columns)
