"""The report as one HTML page: studies in, text out. No script, nothing loaded from elsewhere, every text escaped."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from nml_jax import __version__
from nml_jax.console import list_words
from nml_jax.reporting import answers, claims, glossary, handed, plots, provenance
from nml_jax.reporting.blocks import Block, Figure, Panel, Verdict, fold, table
from nml_jax.reporting.sentences import TEMPLATES, count, say
from nml_jax.reporting.statistics.choose_method import Contest, find_contests
from nml_jax.reporting.statistics.compare import uses_files
from nml_jax.reporting.statistics.studies import MEAN, RELATED, UNRELATED, Study
from nml_jax.reporting.studies.publish import Published
from nml_jax.reporting.tables import classes, conditions, detection, labels, methods

LIMIT = 1_900_000  # bytes of a page; what would exceed it is left out, the last figures first
LEADING = 3  # answers; of more, all but the first are folded
LEFT_OUT = Block("note", "Further figures are left out to keep this page below 2 MB.")


class Section(NamedTuple):
    id: str
    title: str
    blocks: list[Block]


def build_page(studies: Sequence[Study], left_out: Mapping[str, str], published: Sequence[Published] = ()) -> str:
    """Return the whole document.

    Args:
        studies: at least one.
        left_out: runs that are not counted -> why.
        published: figures and findings that head the page.
    """
    sections = [Section(f"paper-{i}", one.question, _show_published(one)) for i, one in enumerate(published)]
    rules: dict[str, list[str]] = {}  # -> the studies that it is for
    shared = True
    for i, study in enumerate(studies):
        found, single = find_contests(study), len(studies) == 1
        compare = _compare_methods if found or uses_files(study) else _compare_conditions
        alone = "Which method to use" if found else "What this shows"
        sections.append(Section(f"study-{i}", alone if single else study.title, compare(study, found, f"s{i}")))
        shared &= bool(found) and all(map(answers.shares_settings, found))
        own = [
            text
            for c in found
            for text in (
                answers.write_rule(c) if len(c.methods) > 1 else "",
                answers.describe_search(c),
                answers.write_caution(c),
            )
        ]
        for text in dict.fromkeys([*own, say("claim_rule") if compare is _compare_conditions else ""]):
            rules.setdefault(text, []).append(study.title)
    notes = [text if len(of) == len(studies) else f"For {list_words(of)}: {text}" for text, of in rules.items() if text]
    sections += [
        Section("run", "What was run", provenance.describe_runs(studies, left_out)),
        Section("limits", "Limits", [provenance.list_limits(studies, shared)]),
        Section("rules", "Rules", _make_notes(notes)),
    ]
    words = glossary.explain(show([block for section in sections for block in section.blocks]))
    sections += [Section("words", "Words of this page", [Block("facts", words)])] if words else []
    text = _render(studies, sections)
    drawn = [(section.blocks, block) for section in sections for block in section.blocks if block.kind == "figure"]
    while len(text.encode()) > LIMIT and drawn:
        blocks, figure = drawn.pop()
        at = blocks.index(figure)
        blocks[at : at + 1] = [] if LEFT_OUT in blocks else [LEFT_OUT]
        text = _render(studies, sections)
    return text


def _show_published(one: Published) -> list[Block]:
    """Return the blocks of a study's figure and findings."""
    caption = f"As in studies/{one.folder.name}/figure.pdf. Mean ± sample sd over seeds."
    return [
        Block("verdict", Verdict(one.summary)),
        Block("p", one.about),
        Block(
            "figure", Figure("Figure", [Panel(one.svg[one.svg.index("<svg") :], one.question)], caption, (), wide=True)
        ),
        Block("items", [("", sentence) for sentence in one.sentences]),
        *(Block("p", gap) for gap in one.gaps),
    ]


def _render(studies: Sequence[Study], sections: Sequence[Section]) -> str:
    names = ", ".join(dict.fromkeys(study.cells[0].config["name"] for study in studies))
    varied = any(study.axis == "noise" and len(study.conditions) > 1 for study in studies)
    title = f"What noise in pre-training does: {names}" if varied else f"Report: {names}"
    if all(map(uses_files, studies)):
        title = f"Which head for these features: {names}"
    cells = [cell for study in studies for cell in study.cells]
    words = [count(len(cells), "finished run")]
    for key, word in (("revision", "code revision "), ("device", "")):
        values = dict.fromkeys(str(cell.run["environment"].get(key) or "") for cell in cells)
        words += [f"{word}{value}" for value in values if value]
    template = _make_environment().get_template("page.jinja")
    return template.render(title=title, byline=" · ".join(words), sections=sections, version=__version__)


def show(blocks: Sequence[Block]) -> str:
    """Return blocks as HTML."""
    macros: Any = _make_environment().get_template("blocks.jinja").module
    return str(macros.show(blocks))


@functools.cache
def _make_environment() -> Environment:
    how = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=TEMPLATES, autoescape=True, **how)
    environment.filters["unbroken"] = _join_units
    return environment


def _join_units(text: str) -> str:
    """Keep numbers and their units on a line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _make_notes(texts: Sequence[str]) -> list[Block]:
    return [Block("note", text) for text in dict.fromkeys(texts) if text]


def _list_tasks(study: Study) -> list[tuple[str, str]]:
    """Return (task, its name in headings): one without a name, or the mean over several and then each."""
    if len(study.tasks) < 2:
        return [(next(iter(study.tasks), ""), "")]
    apart = [name for name in (RELATED, UNRELATED) if study.keys(task=name)]
    means = [(MEAN, f"mean over {len(study.tasks)} tasks"), *((name, name) for name in apart)]
    return [*means, *((task, task) for task in study.tasks)]


def _put_under(title: str, blocks: Sequence[Block]) -> list[Block]:
    return [Block("heading", title), *blocks] if blocks else []


def _compare_conditions(study: Study, _: Sequence[Contest], name: str) -> list[Block]:
    """Return the blocks of a study over conditions: verdict, sentences, summary, figures and tables."""
    tasks, verdict = _list_tasks(study), claims.write_verdict(study)
    details = [("", sentence) for sentence in claims.write_details(study) if sentence not in verdict]
    caption = (
        f"{f'{tasks[0][1].capitalize()}. ' if len(tasks) > 1 else ''}Mean ± sample sd over n runs that differ in their "
        "seed. OOD is the mean over the out-of-domain tests. Arrows point to the flatter spectrum."
    )
    head = [study.axis, *(condition.label for condition in study.conditions)]
    figures = plots.draw(study, (), tasks, name)
    out = [Block("verdict", Verdict(" ".join(verdict))), *figures[:1]]
    out += [Block("items", details)] if details else []
    out += [table(caption, head, conditions.list_summary(study, tasks[0][0])), *figures[1:]]
    for title, make in (
        ("Evidence", conditions.list_evidence),
        ("Scores", conditions.list_scores),
        ("Spectra", conditions.list_spectra),
    ):
        prefixes = [(task, f"{name[:1].upper()}{name[1:]}. " if name else "") for task, name in tasks]
        out += _put_under(title, [block for task, prefix in prefixes for block in make(study, task, prefix)])
    reference = claims.find_reference(study)
    by_class = [block for task in study.tasks
                for block in classes.list_classes_by_condition(study, task, reference)]  # fmt: skip
    out += _put_under("Classes and baselines", by_class)
    out += _put_under("Detection", [*detection.list_scores(study), *detection.show_pictures(study)])
    return out + _put_under("Pre-training scores", conditions.list_pretraining(study))


def _show_verdict(contest: Contest) -> Block:
    """Return the box of a contest: what to use, where its file is, what that scores, and the command."""
    found = (handed.answer(contest, *each) for each in answers.advise(contest).items())
    return Block("verdict", Verdict(answers.write_verdict(contest), [answer for answer in found if answer]))


def _compare_methods(study: Study, of: Sequence[Contest], name: str) -> list[Block]:
    """Return the blocks of a study of methods: verdict, picture, reasons, caveats, numbers, spectra and diagnosis."""
    first = len(of) if len(of) <= LEADING else 1
    out = [_show_verdict(contest) for contest in of[:first]]
    figures = plots.draw(study, of, _list_tasks(study), name)
    out += figures[:1]
    out += [Block("p", text) for contest in of[:first] if (text := answers.write_reasons(contest))]
    if rest := [Block("p", answers.write_answer(contest)) for contest in of[first:]]:
        out.append(fold(f"The same for {of[first].name} and {len(rest) - 1} more", *rest))
    notes = [
        text
        for contest in of[:first]
        for text in (
            methods.say_separability(contest) if len(contest.methods) == 1 else "",
            handed.warn_of_worse(contest, [*answers.advise(contest)]),
            answers.say_optimistic(contest),
            answers.say_disagreement(contest),
            answers.warn_of_few_epochs(contest),
        )
    ]
    notes += [answers.list_diverged(study, task) for task in study.tasks]
    notes += [answers.list_undefined(study, task) for task in study.tasks]
    out += _make_notes([*notes, *([] if uses_files(study) else claims.describe_runs(study))])
    for contest in of[:first]:
        out += handed.list_files(contest, [*answers.advise(contest)])
    for contest in of:
        suffix = f": {contest.name}" if contest.name else ""
        own = [methods.list_scores(contest)]
        if contest not in of[:first] or not any(handed.list_heads(contest, m) for m in answers.advise(contest)):
            own += methods.list_sizes(contest)  # else the files have such intervals
        out += _put_under(f"Scores{suffix}", own)
        out += _put_under(f"Classes{suffix}", classes.list_classes(contest))
        out += _put_under(f"Probabilities{suffix}", classes.show_calibration(contest, f"{name}c{of.index(contest)}"))
        if len(contest.methods) > 1:
            out += _put_under(f"Differences to the reference{suffix}", methods.list_differences(contest))
    out += _put_under("With and without the suspects", labels.compare_treatments(of))
    out += figures[1:]
    for title, make in (
        ("Spectra", methods.list_spectra),
        ("Diagnosis", methods.list_diagnosis),
        ("Wrong labels", labels.list_label_errors),
    ):
        prefixes = [(task, f"{task}. " if len(study.tasks) > 1 else "") for task in study.tasks]
        out += _put_under(title, [block for task, prefix in prefixes for block in make(study, task, prefix)])
    out += _put_under("Detection", [*detection.list_scores(study), *detection.show_pictures(study)])
    return out + _put_under("Pre-training scores", conditions.list_pretraining(study))
