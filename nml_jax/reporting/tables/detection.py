"""Tables and pictures of detectors."""

import base64
from collections.abc import Sequence

from nml_jax.reporting.blocks import Block, Picture, fold, table
from nml_jax.reporting.statistics.paired import DASH, format_mean
from nml_jax.reporting.statistics.studies import MEAN, Key, Study
from nml_jax.runs.detections import METRICS, PICTURES, find_folder
from nml_jax.runs.finished import FinishedRun

CAPTION = (
    "COCO's average precision (AP) and recall (AR) in %, mean ± sample sd over n runs; higher is better. AP is the "
    "mean over overlaps of 50 to 95 %. A number that is undefined, as without objects of that size, is left out."
)


def list_keys(study: Study, metric: str) -> list[Key]:
    """Return the keys of a metric of detectors, one for each detector and task."""
    return [key for key in study.keys(metric=metric) if MEAN not in (key.split, key.task)]


def list_detectors(study: Study) -> dict[tuple[str, str], Key]:
    """Return (task, detector) -> the key of its box AP."""
    return {(key.task, key.head): key for key in list_keys(study, "box_AP")}


def list_scores(study: Study) -> list[Block]:
    """Return a table of each task: for every detector and condition, all metrics of boxes and masks."""
    out = []
    detectors = list_detectors(study)
    for task in dict.fromkeys(task for task, _ in detectors):
        own = {head: key for (of, head), key in detectors.items() if of == task}
        metrics = [m for m in METRICS if any(key._replace(metric=m) in study.table for key in own.values())]
        groups = {head: _list_lines(study, key, metrics) for head, key in own.items()}
        out.append(table(f"{task}. {CAPTION}", [study.axis, "n", *(METRICS[m] for m in metrics)], groups))
    return out


def _list_lines(study: Study, key: Key, metrics: Sequence[str]) -> list[list[str]]:
    """Return a line for each condition: its label, n, and the numbers of a detector."""
    lines = []
    for i, condition in enumerate(study.conditions):
        stats = [study.stat(i, key._replace(metric=metric)) for metric in metrics]
        cells = [format_mean(s, metric) if s.n else DASH for s, metric in zip(stats, metrics, strict=True)]
        lines.append([condition.label, str(study.stat(i, key).n), *cells])
    return lines


def show_pictures(study: Study) -> list[Block]:
    """Return the test images of every detector of the first run, with true and with found objects."""
    out = []
    for condition in study.conditions[:1]:
        for cell in condition.cells[:1]:
            out += [Block("picture", picture) for picture in _list_pictures(cell, study.at(condition))]
    return [fold("Test images: true objects, and beside them what was found", *out)] if out else []


def _list_pictures(cell: FinishedRun, where: str) -> list[Picture]:
    """Return the sheets of a run's detectors that are there."""
    detectors = dict.fromkeys((r.method, r.preset) for r in cell.rows if r.metric == "box_AP")
    found = []
    for system, start in detectors:
        path = find_folder(cell.folder, system or "", start or "") / PICTURES
        if path.is_file():
            text = f"{system}, {start}, {where}, {cell.name}: pairs of true objects (left) and detections (right)"
            found.append(Picture(base64.b64encode(path.read_bytes()).decode("ascii"), text))
    return found
