"""The report as one HTML page: studies in, text out. No script, nothing loaded from elsewhere, every text escaped."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from nml_jax import __version__
from nml_jax.reporting import answers, claims, method_tables, plots, provenance, tables
from nml_jax.reporting.blocks import Block, Figure, fold, table
from nml_jax.reporting.sentences import TEMPLATES, say
from nml_jax.reporting.statistics.choose_method import Contest, contests
from nml_jax.reporting.statistics.compare import from_files
from nml_jax.reporting.statistics.studies import MEAN, Study

LIMIT = 1_900_000  # bytes of a page; what would exceed it is left out, figures of the last tasks first
LEADING = 3  # answers; of more, all but the first are folded


class Section(NamedTuple):
    id: str
    title: str
    blocks: list[Block]


def page(studies: Sequence[Study], left_out: Mapping[str, str]) -> str:
    """Return the whole document.

    Args:
        studies: at least one.
        left_out: runs that are not counted -> why.
    """
    names = ", ".join(dict.fromkeys(study.cells[0].config["name"] for study in studies))
    varied = any(study.axis == "noise" and len(study.conditions) > 1 for study in studies)
    title = f"What noise in pre-training does: {names}" if varied else f"Report: {names}"
    if all(map(from_files, studies)):
        title = f"Which head for these features: {names}"
    found = [contests(study) for study in studies]
    sections, rules = [], []
    for i, (study, of) in enumerate(zip(studies, found, strict=True)):
        alone = "Which method to use" if of else "What this shows"
        compares = bool(of) or from_files(study)
        blocks = [*(_compare_methods(study, of) if compares else _compare_conditions(study)), *_pretraining(study)]
        sections.append(Section(f"study-{i}", alone if len(studies) == 1 else study.title, blocks))
        rules += [text for c in of for text in ([answers.rule(c)] if len(c.methods) > 1 else []) + [answers.caution(c)]]
        rules += [] if compares else [say("claim_rule")]
    sections += [
        Section("run", "What was run", provenance.what_was_run(studies, left_out)),
        Section("limits", "Limits", [provenance.limits(studies), Block("heading", "Rules"), *_notes(rules)]),
    ]
    room = LIMIT - len(_render(title, studies, sections).encode())
    for i, (study, of) in enumerate(zip(studies, found, strict=True)):
        _insert_figures(sections[i].blocks, list(plots.draw(study, of, _list_tasks(study), f"s{i}")), room)
        room -= sum(_count_bytes(block.content) for block in sections[i].blocks if block.kind == "figure")
    return _render(title, studies, sections)


def _insert_figures(blocks: list[Block], drawn: Sequence[Figure], room: int) -> None:
    """Put the figures after the first tables, in place of the heading that marks it, as many as there is room for."""
    kept: list[Block] = []
    for figure in drawn:
        room -= _count_bytes(figure)
        if room < 0:
            kept += _notes(["Further figures are left out to keep this page below 2 MB."])
            break
        kept.append(Block("figure", figure))
    at = blocks.index(_FIGURES)
    blocks[at : at + 1] = kept


_FIGURES = Block("heading", "Figures")


def _notes(texts: Sequence[str]) -> list[Block]:
    return [Block("note", text) for text in dict.fromkeys(texts) if text]


def _count_bytes(figure: Figure) -> int:
    texts = [figure.title, figure.caption, *(text for panel in figure.panels for text in panel)]
    return sum(len(text.encode()) for text in texts) + 100 * (len(figure.panels) + len(figure.legend))


def _render(title: str, studies: Sequence[Study], sections: Sequence[Section]) -> str:
    template = _make_environment().get_template("page.jinja")
    return template.render(title=title, byline=_byline(studies), sections=sections, version=__version__)


def show(blocks: Sequence[Block]) -> str:
    """Return blocks as HTML."""
    return str(_make_environment().get_template("blocks.jinja").make_module().show(blocks))


@functools.cache
def _make_environment() -> Environment:
    how = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=TEMPLATES, autoescape=True, **how)
    environment.filters["unbroken"] = _join_units
    return environment


def _join_units(text: str) -> str:
    """Keep numbers and their units on a line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _byline(studies: Sequence[Study]) -> str:
    cells = [cell for study in studies for cell in study.cells]
    words = [f"{len(cells)} finished run{'s' if len(cells) > 1 else ''}"]
    for key, word in (("revision", "code revision "), ("device", "")):
        values = dict.fromkeys(str(cell.run["environment"].get(key) or "") for cell in cells)
        words += [f"{word}{value}" for value in values if value]
    return " · ".join(words)


def _list_tasks(study: Study) -> list[tuple[str, str]]:
    """(task, its name in headings): one without a name, or the mean over several and then each."""
    if len(study.tasks) < 2:
        return [(next(iter(study.tasks), ""), "")]
    return [(MEAN, f"mean over {len(study.tasks)} tasks"), *((task, task) for task in study.tasks)]


def _pretraining(study: Study) -> list[Block]:
    found = tables.pretraining(study)
    return [Block("heading", "Pre-training scores"), *found] if found else []


def _compare_conditions(study: Study) -> list[Block]:
    """The verdict, the sentences and the summary; then, after the figures, the tables."""
    tasks = _list_tasks(study)
    verdict = claims.verdict(study)
    details = [("", sentence) for sentence in claims.lead(study) if sentence not in verdict]
    out = [Block("lead", " ".join(verdict)), *([Block("items", details)] if details else [])]
    caption = (
        f"{f'{tasks[0][1].capitalize()}. ' if len(tasks) > 1 else ''}Mean ± sample sd over n runs that differ in their "
        "seed. ID: in-domain test; OOD: mean over the out-of-domain tests. Arrows point to the flatter spectrum: "
        "LSVR is \N{MINUS SIGN}log(top share), so it rises when the top share falls."
    )
    head = [study.axis, *(condition.label for condition in study.conditions)]
    out += [table(caption, head, tables.summary(study, tasks[0][0])), _FIGURES]
    for title, make in (("Evidence", tables.evidence), ("Scores", tables.scores), ("Spectra", tables.spectra)):
        blocks = [block for task, name in tasks
                  for block in make(study, task, f"{name[:1].upper()}{name[1:]}. " if name else "")]  # fmt: skip
        out += [Block("heading", title), *blocks] if blocks else []
    return out


def _compare_methods(study: Study, of: Sequence[Contest]) -> list[Block]:
    """The answers, what qualifies them, and the numbers behind them; then, after the figures, spectra and diagnosis."""
    first = len(of) if len(of) <= LEADING else 1
    out: list[Block] = []
    for contest in of[:first]:
        verdict, answer = answers.verdict(contest), answers.answer(contest)
        out += [Block("lead", verdict), *([Block("p", answer)] if answer != verdict else [])]
    if of[first:]:
        title = f"The same for {of[first].name} and {len(of) - first - 1} more"
        out.append(fold(title, *(Block("p", answers.answer(contest)) for contest in of[first:])))
    notes = [text for contest in of[:first] for text in (answers.hurried(contest), answers.head_file(contest))]
    notes += [answers.diverged(study, task) for task in study.tasks]
    notes += [] if from_files(study) else claims.about(study)
    out += _notes(notes)
    for contest in of:
        suffix = f": {contest.name}" if contest.name else ""
        out += [Block("heading", f"Scores{suffix}"), method_tables.scores(contest), *method_tables.sizes(contest)]
        if len(contest.methods) > 1:
            out += [Block("heading", f"Differences to the reference{suffix}"), *method_tables.differences(contest)]
    out.append(_FIGURES)
    for heading, make in (("Spectra", method_tables.spectra), ("Diagnosis", method_tables.diagnosis)):
        tasks = [(task, f"{task}. " if len(study.tasks) > 1 else "") for task in study.tasks]
        blocks = [block for task, prefix in tasks for block in make(study, task, prefix)]
        out += [Block("heading", heading), *blocks] if blocks else []
    return out
