"""The part of the report's page that compares methods: the answer, tables, figures, spectra and the diagnosis."""

from collections.abc import Iterator, Sequence
from typing import Any

from nml_jax.reporting import answers, claims, figures, markup, method_tables
from nml_jax.reporting.statistics.choose_method import DOMAINS, Contest, full_name
from nml_jax.reporting.statistics.compare import from_files
from nml_jax.reporting.statistics.paired import listed
from nml_jax.reporting.statistics.studies import MEAN, Study

LEADING = 3  # answers; of more, all but the first are folded


def title(studies: Sequence[Study]) -> str:
    """Of a page on these studies of somebody else's features."""
    return (
        f"Which head for these features: {', '.join(dict.fromkeys(study.cells[0].config['name'] for study in studies))}"
    )


def opening(study: Study, contests: Sequence[Contest]) -> str:
    """The answers, the rule, and the numbers behind them."""
    replies = [answers.answer(contest) for contest in contests]
    first = len(replies) if len(replies) <= LEADING else 1
    out = "".join(markup.paragraph(text, "lead") for text in replies[:first])
    if replies[first:]:
        rest = "".join(markup.paragraph(text, "") for text in replies[first:])
        out += markup.folded(f"The same for {contests[first].name} and {len(replies) - first - 1} more", rest)
    files = [text(contest) for contest in contests[:first] for text in (answers.hurried, answers.head_file)]
    failed = [answers.diverged(study, task) for task in study.tasks]
    said = [text for c in contests for text in ([answers.rule(c)] if len(c.methods) > 1 else []) + [answers.caution(c)]]
    for text in filter(None, dict.fromkeys([*files, *failed, *said])):
        out += markup.paragraph(text, "note")
    if not from_files(study):
        out += "".join(markup.paragraph(text, "note") for text in claims.about(study))
    for contest in contests:
        out += f"<h3>Scores{_of(contest)}</h3>\n" + method_tables.scores(contest, "")
        out += method_tables.sizes(contest, "")
        if len(contest.methods) > 1:
            out += f"<h3>Differences to the reference{_of(contest)}</h3>\n" + method_tables.differences(contest, "")
    return out


def drawn(study: Study, contests: Sequence[Contest], name: str) -> Iterator[str]:
    """The figures: differences, then the singular values of the features on every split."""
    for i, contest in enumerate(contests):
        yield _differences(contest, f"{name}d{i}")
    for i, task in enumerate(study.tasks):
        yield _spectra(study, task, f"{name}s{i}")


def closing(study: Study) -> str:
    """Spectra and diagnosis of each task."""
    out = ""
    for heading, make in (("Spectra", method_tables.spectra), ("Diagnosis", method_tables.diagnosis)):
        tasks = [(task, f"{task}. " if len(study.tasks) > 1 else "") for task in study.tasks]
        content = "".join(make(study, task, prefix) for task, prefix in tasks)
        out += f"<h3>{heading}</h3>\n{content}" if content else ""
    return out


def wise(study: Study, task: str, name: str, title: str) -> str:
    """The figure of WiSE-FT: accuracy by the share of the tuned weights; nothing where it was not computed."""
    panels, legend = [], []
    keys = [key for key in study.table if (key.metric, key.task, key.split) == ("accuracy", task, MEAN)]
    shares = list(dict.fromkeys(key.wise_alpha for key in keys if key.wise_alpha is not None))
    axis = figures.Axis(shares, [f"{share:g}" for share in shares], "share of the tuned weights")
    for domain, where in DOMAINS.items() if len(shares) > 1 else ():
        series: dict[str, list[list[float]]] = {}
        for key in study.keys(metric="accuracy", task=task, split=MEAN, domain=domain):
            for i, condition in enumerate(study.conditions):
                found = [study.table.get(key._replace(wise_alpha=share)) for share in shares]
                at = f", {study.at(condition)}" if len(study.conditions) > 1 else ""
                if all(found):
                    series[key.head + at] = [list(values[i].values()) for values in found if values]
        if series:
            panels.append(figures.response(f"{name}{domain}", f"Accuracy, {where} (%)", axis, series, scale=100))
            legend = [(head, figures.head_colour(i), figures.head_marker(i)) for i, head in enumerate(series)]
    caption = (
        "Between the weights before fine-tuning (0) and after it (1): mean and sample sd over runs, every run a dot."
    )
    return figures.section(title, panels, caption, legend)


def _of(contest: Contest) -> str:
    return f": {contest.name}" if contest.name else ""


def _differences(contest: Contest, name: str) -> str:
    panels = []
    for i, test in enumerate(contest.decided):
        lines = {}
        for method in contest.methods[1:]:
            versus = contest.versus[method, test]
            plain, wide = versus
            if plain.n > 1:
                a, b = contest.values(contest.reference, test), contest.values(method, test)
                seeds = [b[seed] - a[seed] for seed in a if seed in b]
                bounds = (plain.low, plain.high), (wide.low, wide.high)
                lines[str(method)] = figures.Whisker(plain.difference, *bounds, seeds, versus.sign)
        if lines:
            label = f"points of accuracy over {contest.reference}"
            panels.append(figures.differences(f"{name}{i}", full_name(test), label, lines, scale=100))
    caption = (
        f"Mean difference to {contest.reference} (the line at 0), paired over test rows and {contest.seeds} seeds, "
        f"each a dot. Thick: the 95 % interval. Thin: the same{contest.widened()}. Every panel has a scale of its own."
    )
    return figures.section(f"Differences at a glance{_of(contest)}", panels, caption, figures.VERDICTS.values())


def _spectra(study: Study, task: str, name: str) -> str:
    lines: dict[str, list[tuple[Any, Any]]] = {}
    for entry in (entry for cell in study.cells for entry in cell.spectra):
        if (entry["task"], entry["mode"], entry["layer"]) == (task, "paper", _layer(study, task)):
            where = f"{entry['domain'].upper()} {entry['split']}"
            lines.setdefault(where, []).append(figures.shares(entry["s"]))
    panels = []
    if lines:
        panels.append(figures.curves(f"{name}s", "Singular values σᵢ/Σσ, raw mode, log scales", "i", lines, log="xy"))
    legend = [(where, figures.condition_colour(i, len(lines)), "") for i, where in enumerate(lines)]
    caption = (
        f"Features of {listed(list(lines))}, neither centred nor normalised, a thin line for every seed. Splits of "
        "different numbers of rows have different spectra for that reason alone."
    )
    of = f": {task}" if len(study.tasks) > 1 else ""
    return figures.section(f"Spectrum of the features{of}", panels, caption, legend)


def _layer(study: Study, task: str) -> str:
    return next(iter(study.names("layer", metric="sve", task=task, method=None)), "")
