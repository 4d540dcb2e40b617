"""Which numbers of a study are drawn, and how."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nml_jax.reporting import claims, figures, tables
from nml_jax.reporting.blocks import Figure, Mark, Panel
from nml_jax.reporting.statistics.choose_method import DOMAINS, Contest, full_name
from nml_jax.reporting.statistics.compare import from_files
from nml_jax.reporting.statistics.paired import listed, unit
from nml_jax.reporting.statistics.studies import MEAN, Key, Study

CURVES = {
    "validation/accuracy": ("Clean validation accuracy (%)", 100),
    "validation/i2t_recall@1": ("Clean validation, image→text recall@1 (%)", 100),
    "train/loss": ("Training loss", 1),
    "probe/sve": ("SVE of the probe batch", 1),
}
SIGMA = "Singular values σᵢ/Σσ, raw mode, log scales"
DOTS = "Mean and sample sd over runs, and every run as a dot."
Line = tuple[Any, Any]  # x, y


def draw(study: Study, contests: Sequence[Contest], tasks: Sequence[tuple[str, str]], name: str) -> Iterator[Figure]:
    """Yield the figures of a study that have panels; `name` makes their ids unique.

    Args:
        tasks: (task, its name in headings, "" where it needs none).
    """
    compared = bool(contests) or from_files(study)
    found = [_differences(contest, f"{name}d{i}") for i, contest in enumerate(contests)]
    found += [_file_spectra(study, task, f"{name}s{i}") for i, task in enumerate(study.tasks) if compared]
    for i, (task, of_task) in enumerate(tasks):
        suffix = f": {of_task}" if of_task else ""
        found.append(_wise(study, task, f"{name}w{i}", f"WiSE-FT{suffix}"))
        if not compared:
            found.append(_transfer(study, task, f"{name}t{i}", f"Transfer of each head{suffix}"))
            found.append(_spectrum(study, task, f"{name}f{i}", f"Spectrum of the features{suffix}"))
    yield from (
        figure for figure in [*found, _retrieval(study, f"{name}r"), _training(study, f"{name}p")] if figure.panels
    )


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


def _ramp(names: Sequence[str]) -> list[Mark]:
    return [Mark(name, figures.condition_colour(i, len(names)), "━━") for i, name in enumerate(names)]


def _heads(names: Sequence[str]) -> list[Mark]:
    return [figures.head_mark(i, name) for i, name in enumerate(names)]


def _seeds(study: Study, key: Key) -> list[list[float]]:
    """The seeds' values at each condition."""
    return [list(values.values()) for values in study.table.get(key, [{} for _ in study.conditions])]


def _transfer(study: Study, task: str, name: str, title: str) -> Figure:
    panels: list[Panel] = []
    heads = {key.head: key for key in study.keys(metric="accuracy", task=task, split=MEAN)}
    for metric in ("accuracy", "macro_f1") if len(study.conditions) > 1 else ():
        for domain in DOMAINS:
            keys = {head: key._replace(metric=metric, domain=domain) for head, key in heads.items()}
            if any(key in study.table for key in keys.values()):
                series = {head: _seeds(study, key) for head, key in keys.items()}
                label = f"{domain.upper()} {tables.SCORES[metric]} (%)"
                panels.append(figures.response(f"{name}{len(panels)}", label, _axis(study), series, scale=100))
    return Figure(title, panels, f"{DOTS} Heads stand side by side to be told apart.", _heads(list(heads)))


def _spectrum(study: Study, task: str, name: str, title: str) -> Figure:
    panels = []
    for metric, label, way in (("sve", "SVE", "↑"), ("lsvr", "LSVR", "↑"), ("top_share", "Top share (%)", "↓")):
        for key in claims.raw_spectrum(study, task, metric) if len(study.conditions) > 1 else ():
            how: Any = {"scale": unit(metric).scale, "by_condition": True}
            full = f"{label}, raw mode ({way} flatter)"
            panels.append(figures.response(f"{name}{metric}", full, _axis(study), {label: _seeds(study, key)}, **how))
    wanted = [(key.split, key.layer) for key in claims.raw_spectrum(study, task, "sve")]
    lines = _group_by_condition(study)
    for condition in study.conditions:
        for entry in (entry for cell in condition.cells for entry in cell.spectra):
            if (entry["task"], entry["mode"]) == (task, "paper") and (entry["split"], entry["layer"]) in wanted:
                lines[study.at(condition)].append(figures.shares(entry["s"]))
    if any(lines.values()):
        panels.append(figures.curves(f"{name}s", SIGMA, "i", lines, log="xy"))
    caption = (
        f"In-domain features ({task}, split {study.id_split(task)}), neither centred nor normalised. SVE is the "
        "entropy of the singular values' shares, LSVR is \N{MINUS SIGN}log of the top share. They compare within one "
        "data set only."
    )
    return Figure(title, panels, caption, _ramp(list(lines)))


def _group_by_condition(study: Study) -> dict[str, list[Line]]:
    return {study.at(condition): [] for condition in study.conditions}


def _retrieval(study: Study, name: str) -> Figure:
    panels, splits = [], {}
    for metric, way in claims.RETRIEVAL.items() if len(study.conditions) > 1 else ():
        splits = {claims.split_name(m.key): m.key for m in claims.measures(study, "") if m.key.metric == metric}
        if splits:
            series = {split: _seeds(study, key) for split, key in splits.items()}
            label = f"{way} recall@1 (%)"
            panels.append(figures.response(f"{name}{metric[:3]}", label, _axis(study), series, scale=100))
    return Figure("Retrieval", panels, DOTS, _heads(list(splits)))


def _training(study: Study, name: str) -> Figure:
    panels = []
    for i, (metric, (title, scale)) in enumerate(CURVES.items()):
        lines = _group_by_condition(study)
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
    return Figure("Pre-training", panels, caption, _ramp([study.at(condition) for condition in study.conditions]))


def _wise(study: Study, task: str, name: str, title: str) -> Figure:
    """Accuracy by the share of the tuned weights."""
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
            legend = _heads(list(series))
    caption = (
        "Between the weights before fine-tuning (0) and after it (1): mean and sample sd over runs, every run a dot."
    )
    return Figure(title, panels, caption, legend)


def _differences(contest: Contest, name: str) -> Figure:
    panels = []
    for i, test in enumerate(contest.decided):
        lines = {}
        for method in contest.methods[1:]:
            versus = contest.versus[method, test]
            if versus.plain.n > 1:
                a, b = contest.values(contest.reference, test), contest.values(method, test)
                lines[str(method)] = versus, [b[seed] - a[seed] for seed in a if seed in b]
        if lines:
            label = f"points of accuracy over {contest.reference}"
            panels.append(figures.differences(f"{name}{i}", full_name(test), label, lines))
    caption = (
        f"Mean difference to {contest.reference} (the line at 0), paired over test rows and {contest.seeds} seeds, "
        f"each a dot. Thick: the 95 % interval. Thin: the same{contest.widened()}. Every panel has a scale of its own."
    )
    title = f"Differences at a glance{f': {contest.name}' if contest.name else ''}"
    return Figure(title, panels, caption, list(figures.VERDICTS.values()))


def _file_spectra(study: Study, task: str, name: str) -> Figure:
    """The singular values of features on every split."""
    layer = next(iter(study.names("layer", metric="sve", task=task, method=None)), "")
    lines: dict[str, list[Line]] = {}
    for entry in (entry for cell in study.cells for entry in cell.spectra):
        if (entry["task"], entry["mode"], entry["layer"]) == (task, "paper", layer):
            where = f"{entry['domain'].upper()} {entry['split']}"
            lines.setdefault(where, []).append(figures.shares(entry["s"]))
    panels = [figures.curves(f"{name}s", SIGMA, "i", lines, log="xy")] if lines else []
    caption = (
        f"Features of {listed(list(lines))}, neither centred nor normalised, a thin line for every seed. Splits of "
        "different numbers of rows have different spectra for that reason alone."
    )
    of = f": {task}" if len(study.tasks) > 1 else ""
    return Figure(f"Spectrum of the features{of}", panels, caption, _ramp(list(lines)))
