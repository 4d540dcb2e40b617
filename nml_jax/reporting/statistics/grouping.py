"""Finished runs sorted into studies and conditions, and averaged over what repeats within a run."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax.evals.correlations import UNDEFINED
from nml_jax.reporting.statistics.studies import (
    FILES,
    MEAN,
    NOISE,
    PRIMARY,
    RELATED,
    REPLICATE,
    SUSPECTS,
    UNRELATED,
    Condition,
    Key,
    Source,
    Study,
    find_own_metric,
    list_related,
    method_of,
)
from nml_jax.runs.finished import FinishedRun, Seed
from nml_jax.runs.rows import Row
from nml_jax.settings import NOT_IDENTITY

SETTINGS = {"train_share": "{} of the training data", "downstream_noise": "{} downstream noise",
            "views": "{} views", "layer": "layer {}", "suspects": SUSPECTS}  # fmt: skip
CONDITION = "condition"
Table = dict[Key, list[dict[Seed, float]]]  # as `Study.table`
SHOWN = 4  # differing keys in a study's title
DIGITS = range(4, 18)  # of numbers in labels: as many as tell them apart


def find_studies(cells: Sequence[FinishedRun]) -> list[Study]:
    """Sort runs into studies: by name, then by every key in which they differ but the axis and the seeds."""
    out: list[Study] = []
    for name, same in _group(cells, lambda cell: cell.config["name"]).items():
        axis = _find_axis(same)
        keys = _list_varied(same, axis)
        groups = _split(same, keys)
        apart = find_differences([group[0] for group in groups], (*REPLICATE, *keys))
        for group in groups:
            words = [f"{key} = {_format(group[0].value(key))}" for key in apart[:SHOWN]]
            more = [f"and {len(apart) - SHOWN} more keys"] if len(apart) > SHOWN else []
            title = ", ".join([name, *words, *more])
            if any(study.title == title for study in out):
                title += f" ({len(out) + 1})"
            conditions = _make_conditions(group, axis, keys)
            out.append(Study(title, axis, conditions, *_tabulate(conditions)))
    return out


def _list_varied(cells: Sequence[FinishedRun], axis: str) -> tuple[str, ...]:
    """Return the keys in which the conditions of an axis differ; of named conditions all that any of them sets."""
    if axis != CONDITION:
        return NOISE if axis == "noise" else (axis,)
    named = (key for cell in cells for _, pairs in cell.value("sweep.conditions") or () for key, _ in pairs)
    return tuple(dict.fromkeys([CONDITION, *named]))


def _find_axis(cells: Sequence[FinishedRun]) -> str:
    """Return what the runs vary.

    This is the named condition if they have any, else the noise if they vary it, else the key with the most values,
    else the noise.
    """
    if len({cell.value(CONDITION) or "" for cell in cells}) > 1:
        return CONDITION
    groups = _split(cells, NOISE)
    if len(groups) > 1 and all(len(_group(group, lambda cell: _identify(cell, NOISE))) == 1 for group in groups):
        counts = {key: len({_identify(cell, (key,)) for cell in cells}) for key in find_differences(cells, REPLICATE)}
        counts = {key: n for key, n in counts.items() if not key.startswith(FILES)}  # other files, another question
        axis = max(sorted(counts), key=counts.__getitem__, default="noise")
        if len(_split(cells, (axis,))) < len(groups):
            return axis
    return "noise"


def _make_conditions(cells: Sequence[FinishedRun], axis: str, keys: Sequence[str]) -> tuple[Condition, ...]:
    out = []
    groups = list(_group(cells, lambda cell: _identify(cell, keys)).values())
    given = [group[0].value(axis) or "" if axis == CONDITION else group[0].value(axis) for group in groups]
    order = [*dict.fromkeys(name for cell in cells for name, _ in cell.value("sweep.conditions") or ())]
    numbers = all(isinstance(value, int | float) for value in given)

    def name(i: int, digits: int) -> tuple[float, str]:
        group, value = groups[i], given[i]
        if axis == "noise":
            return _name_noise(group, digits)
        if axis != CONDITION:
            return float(value) if numbers else float(i), _format(value, digits)
        label = value or f"no condition, {_name_noise(group, digits)[1]}"  # runs of another study of the folder
        return float(order.index(value) if value in order else len(order)), label

    tries = ([name(i, digits) for i in range(len(groups))] for digits in DIGITS)
    found = next((named for named in tries if len({label for _, label in named}) == len(named)), None)
    for i, (x, label) in enumerate(found or [name(i, DIGITS[-1]) for i in range(len(groups))]):
        label += "" if found else f" ({i + 1})"
        out.append(Condition(x, label, tuple(sorted(groups[i], key=lambda cell: cell.seed))))
    return tuple(sorted(out, key=lambda condition: (not np.isfinite(condition.x), condition.x, condition.label)))


def _name_noise(cells: Sequence[FinishedRun], digits: int) -> tuple[float, str]:
    """Return the rate of runs of one condition, and what it is called: the rate, with the file of its labels.

    With more than the usual digits the file is named with its folder, too.
    """
    x = float(np.median([cell.noise for cell in cells]))  # of equal numbers: the number itself
    path = cells[0].config["noise_file"]
    file = Path(path).stem if digits == DIGITS[0] else path
    label = f"{100 * x:.{digits}g} %" if np.isfinite(x) else "unknown"
    return x, label + (f" ({file})" if file else "")


def count_digits(values: Iterable[float]) -> int:
    """Return with how many significant digits different numbers print differently."""
    different = {*values}
    return next((n for n in DIGITS if len({f"{v:.{n}g}" for v in different}) == len(different)), DIGITS[-1])


def _group(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    out: dict[Any, list[Any]] = {}
    for item in items:
        out.setdefault(key(item), []).append(item)
    return out


def _split(cells: Sequence[FinishedRun], axes: Sequence[str]) -> list[list[FinishedRun]]:
    keys = find_differences(cells, (*REPLICATE, *axes))
    return list(_group(cells, lambda cell: _identify(cell, keys)).values())


def find_differences(cells: Sequence[FinishedRun], apart_from: Sequence[str]) -> list[str]:
    """Return the keys in which runs differ. A key that an older run lacks counts as None."""
    known = dict.fromkeys(key for cell in cells for key in cell.config)
    keys = [key for key in known if key not in apart_from and key.split(".")[0] not in NOT_IDENTITY]
    return [key for key in keys if len({_identify(cell, (key,)) for cell in cells}) > 1]


def _identify(cell: FinishedRun, keys: Iterable[str]) -> str:
    return json.dumps([cell.value(key) for key in keys])


def _format(value: Any, digits: int = DIGITS[0]) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _tabulate(
    conditions: Sequence[Condition],
) -> tuple[Table, dict[Key, list[dict[Seed, Source]]]]:
    """Average the rows of each run by key, then over splits and tasks: `Study.table` and `Study.sources`."""
    heads = [row for condition in conditions for cell in condition.cells for row in cell.rows if row.method]
    varied: dict[str, int] = {}
    for field in SETTINGS:
        values = {value for row in heads if (value := _read_setting(row, field)) is not None}
        if len(values) > 1:
            varied[field] = count_digits(v for v in values if isinstance(v, float))
    table: Table = {}
    sources: dict[Key, list[dict[Seed, Source]]] = {}
    for i, condition in enumerate(conditions):
        for cell in condition.cells:
            for key, rows in _group(cell.rows, lambda row, cell=cell: _make_key(row, cell, varied)).items():
                values = table.setdefault(key, [{} for _ in conditions])[i]
                values[cell.seed] = float(np.mean([row.value for row in rows]))
                of_key = sources.setdefault(key, [{} for _ in conditions])[i]
                of_key[cell.seed] = Source(cell.folder, tuple(rows))
    _drop_undefined(table, sources)
    _add_means(table, list_related(cell for condition in conditions for cell in condition.cells))
    return table, sources


def _drop_undefined(table: Table, sources: dict[Key, Any]) -> None:
    """Drop a score in the runs in which some head has none, as of constant predictions; a mean would leave it out."""
    for key in [key for key in table if key.metric.endswith(UNDEFINED)]:
        score = key._replace(metric=key.metric.removesuffix(UNDEFINED))
        for i, values in enumerate(table[key]):
            for seed in values if score in table else ():
                table[score][i].pop(seed, None)
                sources[score][i].pop(seed, None)


def _add_means(table: Table, related: Iterable[str] = ()) -> None:
    """Add the means over the tests of a task and domain, and over tasks; none where a part is missing.

    A method must have all tests that another has, and all tasks. Where tasks have metrics of their own, PRIMARY is the
    mean of these. Tasks that are related to the noise have a mean of their own, and so have the others.
    """
    scores = [key for key in table if key.method and not key.output and not key.metric.endswith(UNDEFINED)]

    def blank(key: Key) -> Key:
        return key._replace(method=None, setting="", split=MEAN)

    tests = {whole: {key.split for key in keys} for whole, keys in _group(scores, blank).items()}
    by_task: list[Key] = []
    for whole, parts in _group(scores, lambda key: key._replace(split=MEAN)).items():
        if {key.split for key in parts} == tests[blank(whole)]:
            table[whole] = _average([table[part] for part in parts])
            by_task.append(whole)
    tasks = {key.task for key in scores}
    own = tasks & {*related}
    means = {MEAN: tasks, RELATED: own, UNRELATED: tasks - own if own else set()}
    known = {task: find_own_metric(task, [*table]) for task in tasks}
    for name, members in means.items():
        if len(members) > 1:
            needed = [key for key in scores if key.task in members]
            _add_mean_over_tasks(table, name, [key for key in by_task if key.task in members], needed, known)


def _add_mean_over_tasks(
    table: Table, name: str, by_task: Sequence[Key], needed: Sequence[Key], known: Mapping[str, str]
) -> None:
    """Add a mean over tasks for the heads that have all tasks of `needed`. `known` are the tasks' own metrics."""
    tasks = {domain: {key.task for key in keys} for domain, keys in _group(needed, lambda key: key.domain).items()}
    for whole, parts in _group(by_task, lambda key: key._replace(task=name)).items():
        if {key.task for key in parts} == tasks[whole.domain]:
            table[whole] = _average([table[part] for part in parts])
    own = [key for key in by_task if key.metric == known[key.task]]
    for whole, parts in _group(own, lambda key: key._replace(task=name, metric=PRIMARY)).items():
        if {key.task for key in parts} == tasks[whole.domain] and len({key.metric for key in parts}) > 1:
            table[whole] = _average([table[part] for part in parts])


def _read_setting(row: Row, field: str) -> Any:
    """Return one field of SETTINGS; None if it does not apply."""
    value = getattr(row, field)
    if field == "suspects" and row.train_share is not None:
        return value or "keep"  # as of encoders that are tuned: they see all rows
    return value


def _make_key(row: Row, cell: FinishedRun, varied: Mapping[str, int]) -> Key:
    """Return what a row measures. The layer of a head is part of its setting.

    Args:
        varied: the fields that tell the study's heads apart, with the digits of each.
    """
    key = Key(
        row.metric, row.task, row.split, row.domain, mode=row.spectrum_mode or "", output=row.output or "",
        weights="" if row.weights == cell.config["extract.weights"] else row.weights, wise_alpha=row.wise_alpha,
    )  # fmt: skip
    if not row.method:
        return key._replace(layer=row.layer or "")
    values = (
        (field, _format(value, n)) for field, n in varied.items() if (value := _read_setting(row, field)) is not None
    )
    setting = ", ".join(SETTINGS[field].format(value) for field, value in values)
    return key._replace(method=method_of(row), setting=setting)


def _average(parts: Sequence[list[dict[Seed, float]]]) -> list[dict[Seed, float]]:
    """Return the mean of several measures, run by run, for the runs that have them all."""
    out = []
    for of_condition in zip(*parts, strict=True):
        seeds = [seed for seed in of_condition[0] if all(seed in part for part in of_condition)]
        out.append({seed: float(np.mean([part[seed] for part in of_condition])) for seed in seeds})
    return out
