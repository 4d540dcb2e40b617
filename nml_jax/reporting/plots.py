"""Which numbers of a study are drawn, and how."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nml_jax.console import list_words
from nml_jax.reporting import claims, figures
from nml_jax.reporting.blocks import Block, Figure, Mark, Panel
from nml_jax.reporting.statistics.choose_method import DOMAINS, Contest, name_test
from nml_jax.reporting.statistics.compare import uses_files
from nml_jax.reporting.statistics.paired import unit
from nml_jax.reporting.statistics.studies import MEAN, Key, Study
from nml_jax.reporting.tables import conditions, detection
from nml_jax.runs.finished import FinishedRun

CURVES = {
    "validation/accuracy": ("Clean validation accuracy (%)", 100),
    "validation/i2t_recall@1": ("Clean validation, image→text recall@1 (%)", 100),
    "train/loss": ("Training loss", 1),
    "probe/sve": ("SVE of the probe batch", 1),
}
SIGMA = "Singular values σᵢ/Σσ, raw mode, log scales"
DOTS = "Mean and sample sd over runs, and every run as a dot."
Line = tuple[Any, Any]  # x, y


def draw(study: Study, contests: Sequence[Contest], tasks: Sequence[tuple[str, str]], name: str) -> list[Block]:
    """Return the figures of a study that have panels; `name` makes their ids unique.

    Args:
        tasks: (task, its name in headings, "" where it needs none).
    """
    compared = bool(contests) or uses_files(study)
    found = [_draw_differences(contest, f"{name}d{i}") for i, contest in enumerate(contests)]
    found += [_draw_file_spectra(study, task, f"{name}s{i}") for i, task in enumerate(study.tasks) if compared]
    for i, (task, of_task) in enumerate(tasks):
        suffix = f": {of_task}" if of_task else ""
        found.append(_draw_wise(study, task, f"{name}w{i}", f"WiSE-FT{suffix}"))
        if not compared:
            for metric, words in (("accuracy", ""), ("macro_f1", ", macro-F1")):
                title = f"Transfer of each head{words}{suffix}"
                found.append(_draw_transfer(study, task, f"{name}t{i}{metric[0]}", title, metric))
            found.append(_draw_spectrum(study, task, f"{name}f{i}", f"Spectrum of the features{suffix}"))
    found += [_draw_retrieval(study, f"{name}r"), _draw_detection(study, f"{name}o"), _draw_training(study, f"{name}p")]
    return [Block("figure", figure) for figure in found if figure.panels]


def _respond(study: Study, name: str, title: str, keys: Mapping[str, Key], **how: Any) -> list[Panel]:
    """Draw numbers against the conditions, to scale, or evenly spaced where these are too close or no numbers."""
    if len(study.conditions) < 2 or not any(key in study.table for key in keys.values()):
        return []
    x, label = [condition.x for condition in study.conditions], study.axis
    ticks = [condition.label for condition in study.conditions]
    if study.axis == "noise":
        x, label = [100 * value for value in x], "noise in pre-training (%)"
        ticks = [tick.replace(" %", "") for tick in ticks]
    if not np.all(np.diff(x) >= 0.04 * (x[-1] - x[0])):
        x, label = list(range(len(x))), f"{label}, not to scale"
    none = [{} for _ in x]
    series = {who: [list(v.values()) for v in study.table.get(key, none)] for who, key in keys.items()}
    return [figures.draw_response(name, title, figures.Axis(x, ticks, label), series, **how)]


def _mark_conditions(names: Sequence[str]) -> list[Mark]:
    return [Mark(name, figures.choose_colour(i, len(names)), "━━") for i, name in enumerate(names)]


def _mark_heads(names: Iterable[str]) -> list[Mark]:
    return [figures.choose_mark(i, name) for i, name in enumerate(names)]


def _draw_transfer(study: Study, task: str, name: str, title: str, metric: str) -> Figure:
    heads, panels = {key.head: key for key in study.keys(metric="accuracy", task=task, split=MEAN)}, []
    for domain in DOMAINS:
        keys = {head: key._replace(metric=metric, domain=domain) for head, key in heads.items()}
        label = f"{domain.upper()} {conditions.SCORES[metric]} (%)"
        panels += _respond(study, f"{name}{len(panels)}", label, keys, scale=100)
    caption = f"{DOTS} Heads stand side by side to be told apart." if metric == "accuracy" else "Drawn as the accuracy."
    return Figure(title, panels, caption, _mark_heads(heads))


def _draw_spectrum(study: Study, task: str, name: str, title: str) -> Figure:
    panels = []
    for metric, label, way in (("sve", "SVE", "↑"), ("lsvr", "LSVR", "↑"), ("top_share", "Top share (%)", "↓")):
        found = claims.find_raw_spectrum(study, task, metric)
        keys = {label: found[0]} if found else {}
        how = {"scale": unit(metric).scale, "by_condition": True}
        panels += _respond(study, f"{name}{metric}", f"{label}, raw mode ({way} flatter)", keys, **how)
    wanted = [(task, "paper", key.split, key.layer) for key in claims.find_raw_spectrum(study, task, "sve")]
    lines = _group_lines(study, lambda cell: _list_shares(cell, wanted))
    if any(lines.values()):
        panels.append(figures.draw_curves(f"{name}s", SIGMA, "i", lines, log="xy"))
    caption = (
        f"In-domain features ({task}, split {study.id_split(task)}), neither centred nor normalised. SVE is the "
        "entropy of the singular values' shares, LSVR is \N{MINUS SIGN}log of the top share. They compare within one "
        "data set only."
    )
    return Figure(title, panels, caption, _mark_conditions(list(lines)))


def _list_shares(cell: FinishedRun, wanted: Sequence[tuple[str, ...]]) -> list[Line]:
    """Return the shares of the singular values of spectra, of (task, mode, split, layer)."""
    of = [entry for entry in cell.spectra if tuple(entry[k] for k in ("task", "mode", "split", "layer")) in wanted]
    return [figures.thin_shares(entry["s"]) for entry in of]


def _group_lines(study: Study, lines: Callable[[FinishedRun], list[Line]]) -> dict[str, list[Line]]:
    return {study.at(c): [line for cell in c.cells for line in lines(cell)] for c in study.conditions}


def _draw_retrieval(study: Study, name: str) -> Figure:
    panels, found = [], [m.key for m in claims.list_measures(study, "")]
    splits = {claims.name_split(key): key for key in found if key.metric in claims.RETRIEVAL}
    for metric, way in claims.RETRIEVAL.items():
        keys = {split: key._replace(metric=metric) for split, key in splits.items()}
        panels += _respond(study, f"{name}{metric[:3]}", f"{way} recall@1 (%)", keys, scale=100)
    return Figure("Retrieval", panels, DOTS, _mark_heads(splits))


def _draw_detection(study: Study, name: str) -> Figure:
    kinds, panels = {"box_AP": "boxes", "mask_AP": "masks"}, []
    detectors = {key.head: key for metric in kinds for key in detection.list_keys(study, metric)}
    for metric, words in kinds.items():  # a detector without masks keeps its mark and its place in both panels
        keys = {head: key._replace(metric=metric) for head, key in detectors.items()}
        panels += _respond(study, f"{name}{metric[0]}", f"AP of {words} (%)", keys, scale=100)
    return Figure("Detection", panels, DOTS, _mark_heads(detectors))


def _draw_training(study: Study, name: str) -> Figure:
    panels = []
    for i, (metric, (title, scale)) in enumerate(CURVES.items()):
        lines = _group_lines(study, functools.partial(_list_curves, metric=metric, scale=scale))
        if any(lines.values()):
            panels.append(figures.draw_curves(f"{name}{i}", title, "epoch", lines))
    caption = "Every run thin, their mean thick. The loss is that on the noisy supervision it is trained on."
    return Figure(
        "Pre-training", panels, caption, _mark_conditions([study.at(condition) for condition in study.conditions])
    )


def _list_curves(cell: FinishedRun, metric: str, scale: float) -> list[Line]:
    """Return a metric of training against the epoch, where it is known."""
    known = [(m["step"], scale * m[metric]) for m in cell.metrics if metric in m]
    epochs = [m["epoch"] / m["step"] for m in cell.metrics if m.get("epoch") and m["step"]]
    if not known or not epochs:
        return []
    steps, values = zip(*known, strict=True)
    x, y = figures.thin(epochs[-1] * np.asarray(steps), values)
    if metric.startswith("validation/") and len(x) < len(values):  # the last evaluation is that of the model
        x, y = np.append(x, epochs[-1] * steps[-1]), np.append(y, values[-1])
    return [(x, y)]


def _draw_wise(study: Study, task: str, name: str, title: str) -> Figure:
    """Draw accuracy by the share of the tuned weights."""
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
            panels.append(figures.draw_response(f"{name}{domain}", f"Accuracy, {where} (%)", axis, series, scale=100))
            legend = _mark_heads(series)
    caption = (
        "Between the weights before fine-tuning (0) and after it (1): mean and sample sd over runs, every run a dot."
    )
    return Figure(title, panels, caption, legend)


def _draw_differences(contest: Contest, name: str) -> Figure:
    panels = []
    for i, test in enumerate(contest.decided):
        lines = {}
        for method in contest.methods[1:]:
            versus = contest.versus[method, test]
            if versus.plain.n > 1:
                a, b = contest.values(contest.reference, test), contest.values(method, test)
                lines[str(method)] = versus, [b[seed] - a[seed] for seed in a if seed in b]
        if lines:
            label = f"{contest.points} of {contest.measure.removeprefix('the ')} over {contest.reference}"
            scale = unit(contest.metric).scale
            panels.append(figures.draw_differences(f"{name}{i}", name_test(test), label, lines, scale))
    thin = f" Thin: the same{contest.widened()}." if contest.widened() else ""
    caption = (
        f"Mean difference to {contest.reference} (the line at 0), paired over test rows and {contest.seeds} seeds, "
        f"each a dot. Thick: the 95 % interval.{thin} Every panel has a scale of its own."
    )
    title = f"Differences at a glance{f': {contest.name}' if contest.name else ''}"
    return Figure(title, panels, caption, list(figures.VERDICTS.values()))


def _draw_file_spectra(study: Study, task: str, name: str) -> Figure:
    """Draw the singular values of features on every split."""
    layer = next(iter(study.names("layer", metric="sve", task=task, method=None)), "")
    lines: dict[str, list[Line]] = {}
    for entry in (entry for cell in study.cells for entry in cell.spectra):
        if (entry["task"], entry["mode"], entry["layer"]) == (task, "paper", layer):
            where = f"{entry['domain'].upper()} {entry['split']}"
            lines.setdefault(where, []).append(figures.thin_shares(entry["s"]))
    panels = [figures.draw_curves(f"{name}s", SIGMA, "i", lines, log="xy")] if lines else []
    caption = (
        f"Features of {list_words(lines)}, neither centred nor normalised, a thin line for every seed. Splits of "
        "different numbers of rows have different spectra for that reason alone."
    )
    of = f": {task}" if len(study.tasks) > 1 else ""
    return Figure(f"Spectrum of the features{of}", panels, caption, _mark_conditions(list(lines)))
