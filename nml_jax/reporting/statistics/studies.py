"""The numbers of finished runs: sorted into studies and conditions, averaged over seeds.

A study is a set of runs that differ in one thing (the noise, or one other key) and in their seeds. A condition is one
value of that thing; its runs are the seeds. Several heads in one run are averaged first: they share the run's features
and are no independent repetitions.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nml_jax.reporting.statistics.paired import Stat, shown, stat
from nml_jax.runs.finished import FinishedRun, Seed
from nml_jax.runs.heads import preset_label
from nml_jax.runs.rows import Row
from nml_jax.settings import NOT_IDENTITY
from nml_jax.tuning import methods

REPLICATE = ("seed", "noise_seed")  # what distinguishes repetitions of one condition
NOISE = ("noise", "noise_file")  # what distinguishes conditions, where it varies
MEAN = "mean"  # as a split or task: the mean over all of them
# What methods are called; those of the stage finetune have no entry of their own. In this order of simplicity.
METHODS = {
    **{name: method.title for name, method in methods.METHODS.items()},
    "lora": "LoRA",
    "full": "full fine-tuning",
}
SETTINGS = {"train_share": "{:.4g} of the training data", "downstream_noise": "{:.4g} downstream noise",
            "views": "{} views", "layer": "layer {}"}  # fmt: skip
REFERENCES = ("lbfgs", "linear")  # what heads are compared with: the first that is there
ZERO_SHOT = "zero-shot"
FILES = "features."  # keys of feature files
SHOWN = 4  # differing keys in a study's title
# Of summary.csv; what was parsed out of strings before schema 2 stays in the words of the first ones.
COLUMNS = ["study", "noise_kind", "axis", "condition", "x", "metric", "task", "split", "domain", "layer", "mode",
           "method", "setting", "mean", "sd", "n", "seeds",
           "method_key", "preset", "output", "weights", "wise_alpha"]  # fmt: skip


class Method(NamedTuple):
    """A way to make a classifier; `str` of it is what tables call it."""

    name: str  # a key of METHODS, or ZERO_SHOT
    preset: str = ""  # with its views, as in "code/1view"

    def __str__(self) -> str:
        return METHODS.get(self.name, self.name) + (f" ({self.preset})" if self.preset else "")

    @property
    def simplicity(self) -> int:
        """The position in METHODS."""
        return list(METHODS).index(self.name) if self.name in METHODS else len(METHODS)


class Key(NamedTuple):
    """What a number measures; "" where a field does not apply."""

    metric: str
    task: str
    split: str
    domain: str  # "id" or "ood"
    layer: str = ""  # of features without a head
    mode: str = ""
    method: Method | None = None  # of the head
    setting: str = ""  # of the head: what is not the same for all heads
    output: str = ""  # of what a spectrum is: "features" or "Z"
    weights: str = ""  # where these are others than the extracted ones
    wise_alpha: float | None = None

    @property
    def head(self) -> str:
        return ", ".join(filter(None, (str(self.method or ""), self.setting)))

    @property
    def place(self) -> str:
        """The split, and weights that are not the extracted ones."""
        return f"{self.split} ({self.weights})" if self.weights else self.split


class Source(NamedTuple):
    """The rows of one run that a number is the mean of, and the run's folder."""

    folder: Path
    rows: tuple[Row, ...]


class Condition(NamedTuple):
    x: float
    label: str
    cells: tuple[FinishedRun, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that differ in `axis` and seeds only.

    `table[key][i][seed]` is the number of the run with that seed in condition i, `sources` says where it comes from.
    """

    title: str
    axis: str  # "noise", or the dotted key that varies
    conditions: tuple[Condition, ...]
    table: dict[Key, list[dict[Seed, float]]]
    sources: dict[Key, list[dict[Seed, Source]]]  # without means over splits and tasks

    @property
    def cells(self) -> list[FinishedRun]:
        return [cell for condition in self.conditions for cell in condition.cells]

    @property
    def tasks(self) -> list[str]:
        return [task for task in self.names("task") if task not in ("pretrain", MEAN)]

    def keys(self, **where: Any) -> list[Key]:
        """Return the keys whose fields have these values, in the order of the rows; by default no WiSE-FT."""
        where = {"wise_alpha": None, **where}
        return [key for key in self.table if all(getattr(key, name) == value for name, value in where.items())]

    def names(self, field: str, **where: Any) -> list[Any]:
        """Return the values of one field of those keys, once each."""
        return list(dict.fromkeys(getattr(key, field) for key in self.keys(**where)))

    def stat(self, i: int, key: Key) -> Stat:
        """The number of condition i over its seeds."""
        return stat(self.table[key][i].values() if key in self.table else ())

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """One line per number and condition: COLUMNS, "i" of the condition, "head", and "text" for tables."""
        lines = []
        for key, by_condition in self.table.items():
            method, preset = key.method or ("", "")
            words = {
                "study": self.title, "noise_kind": self.cells[0].noise_kind, "axis": self.axis, **key._asdict(),
                "metric": key.metric if key.wise_alpha is None else f"{key.metric}@wise={key.wise_alpha:g}",
                "split": key.place, "layer": "Z" if key.output == "Z" else key.layer, "method": str(key.method or ""),
                "method_key": method, "preset": preset, "head": key.head,
            }  # fmt: skip
            for i, (condition, values) in enumerate(zip(self.conditions, by_condition, strict=True)):
                s = stat(values.values())
                numbers = {"mean": repr(s.mean), "sd": repr(s.sd) if s.n > 1 else "", "n": s.n,
                           "seeds": " ".join(str(seed) for seed, _ in values),
                           "text": shown(s, key.metric)}  # fmt: skip
                lines.append({**words, "i": i, "condition": condition.label, "x": repr(condition.x), **numbers})
        return pd.DataFrame(lines)

    def at(self, condition: Condition) -> str:
        """The condition in words."""
        return f"{condition.label} noise" if self.axis == "noise" else f"{self.axis} = {condition.label}"

    def id_split(self, task: str) -> str:
        """The in-domain split whose spectrum is shown first: one that heads are scored on, not the training split."""
        known = self.names("split", metric="sve", task=task, domain="id", method=None)
        scored = self.names("split", metric="accuracy", task=task, domain="id")
        return next(iter([s for s in known if s in scored] or [s for s in known if s != "train"] or known), "")


def find_studies(cells: Sequence[FinishedRun]) -> list[Study]:
    """Sort runs into studies: by name, then by every key in which they differ but the axis and the seeds."""
    out: list[Study] = []
    for name, same in _grouped(cells, lambda cell: cell.config["name"]).items():
        axis = _axis(same)
        keys = NOISE if axis == "noise" else (axis,)
        groups = _split(same, keys)
        told_apart = _differing([group[0] for group in groups], (*REPLICATE, *keys))
        for group in groups:
            words = [f"{key} = {_shown(group[0].value(key))}" for key in told_apart[:SHOWN]]
            more = [f"and {len(told_apart) - SHOWN} more keys"] if len(told_apart) > SHOWN else []
            title = ", ".join([name, *words, *more])
            if any(study.title == title for study in out):
                title += f" ({len(out) + 1})"
            conditions = _conditions(group, axis, keys)
            out.append(Study(title, axis, conditions, *_tabulated(conditions)))
    return out


def _axis(cells: Sequence[FinishedRun]) -> str:
    """What the runs vary: the noise if they do, else the key of most values by which they form studies, else noise."""
    groups = _split(cells, NOISE)
    if len(groups) > 1 and all(len(_grouped(group, lambda cell: _values(cell, NOISE))) == 1 for group in groups):
        counts = {key: len({_values(cell, (key,)) for cell in cells}) for key in _differing(cells, REPLICATE)}
        counts = {key: n for key, n in counts.items() if not key.startswith(FILES)}  # other files, another question
        axis = max(sorted(counts), key=counts.__getitem__, default="noise")
        if len(_split(cells, (axis,))) < len(groups):
            return axis
    return "noise"


def _conditions(cells: Sequence[FinishedRun], axis: str, keys: Sequence[str]) -> tuple[Condition, ...]:
    out = []
    groups = list(_grouped(cells, lambda cell: _values(cell, keys)).values())
    given = [group[0].value(axis) for group in groups]
    numbers = all(isinstance(value, int | float) for value in given)
    for i, (group, value) in enumerate(zip(groups, given, strict=True)):
        if axis == "noise":
            x = float(np.median([cell.noise for cell in group]))  # of equal numbers: the number itself
            file = Path(group[0].config["noise_file"]).stem
            label = f"{100 * x:.4g} %" if np.isfinite(x) else "unknown"
            label += f" ({file})" if file else ""
        else:
            x, label = float(value) if numbers else float(i), _shown(value)
        out.append(Condition(x, label, tuple(sorted(group, key=lambda cell: cell.seed))))
    return tuple(sorted(out, key=lambda condition: (not np.isfinite(condition.x), condition.x, condition.label)))


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    out: dict[Any, list[Any]] = {}
    for item in items:
        out.setdefault(key(item), []).append(item)
    return out


def _split(cells: Sequence[FinishedRun], axes: Sequence[str]) -> list[list[FinishedRun]]:
    keys = _differing(cells, (*REPLICATE, *axes))
    return list(_grouped(cells, lambda cell: _values(cell, keys)).values())


def _differing(cells: Sequence[FinishedRun], apart_from: Sequence[str]) -> list[str]:
    """The keys in which runs differ; one that an older run does not have counts as None."""
    known = dict.fromkeys(key for cell in cells for key in cell.config)
    keys = [key for key in known if key not in apart_from and key.split(".")[0] not in NOT_IDENTITY]
    return [key for key in keys if len({_values(cell, (key,)) for cell in cells}) > 1]


def _values(cell: FinishedRun, keys: Iterable[str]) -> str:
    return json.dumps([cell.value(key) for key in keys])


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tabulated(
    conditions: Sequence[Condition],
) -> tuple[dict[Key, list[dict[Seed, float]]], dict[Key, list[dict[Seed, Source]]]]:
    """Average the rows of each run by key, then over splits and tasks: `Study.table` and `Study.sources`."""
    heads = [row for condition in conditions for cell in condition.cells for row in cell.rows if row.method]
    varied = [field for field in SETTINGS if len({value for row in heads if (value := _setting(row, field))}) > 1]
    table: dict[Key, list[dict[Seed, float]]] = {}
    sources: dict[Key, list[dict[Seed, Source]]] = {}
    for i, condition in enumerate(conditions):
        for cell in condition.cells:
            for key, rows in _grouped(cell.rows, lambda row, cell=cell: _key(row, cell, varied)).items():
                values = table.setdefault(key, [{} for _ in conditions])[i]
                values[cell.seed] = float(np.mean([row.value for row in rows]))
                of_key = sources.setdefault(key, [{} for _ in conditions])[i]
                of_key[cell.seed] = Source(cell.folder, tuple(rows))
    scores = [key for key in table if key.method and not key.output]
    for whole, parts in _grouped(scores, lambda key: key._replace(split=MEAN)).items():
        table[whole] = _mean([table[part] for part in parts])
    by_task = dict.fromkeys(key._replace(split=MEAN) for key in scores)
    for whole, parts in _grouped(by_task, lambda key: key._replace(task=MEAN)).items():
        if len({key.task for key in by_task}) > 1:
            table[whole] = _mean([table[part] for part in parts])
    return table, sources


def _setting(row: Row, field: str) -> str:
    """One field of SETTINGS in words; "" where it does not apply."""
    value = getattr(row, field)
    return SETTINGS[field].format(value) if value is not None else ""


def _key(row: Row, cell: FinishedRun, varied: Sequence[str]) -> Key:
    """Return what a row measures. The layer of a head is part of its setting."""
    key = Key(
        row.metric, row.task, row.split, row.domain, mode=row.spectrum_mode or "", output=row.output or "",
        weights="" if row.weights == cell.config["extract.weights"] else row.weights, wise_alpha=row.wise_alpha,
    )  # fmt: skip
    if not row.method:
        return key._replace(layer=row.layer or "")
    setting = ", ".join(filter(None, (_setting(row, field) for field in varied)))
    return key._replace(method=method_of(row), setting=setting)


def method_of(row: Row) -> Method:
    return Method(row.method or "", preset_label(vars(row)) or "")


def _mean(parts: Sequence[list[dict[Seed, float]]]) -> list[dict[Seed, float]]:
    """The mean of several measures, run by run, of those runs that have them all."""
    out = []
    for of_condition in zip(*parts, strict=True):
        seeds = [seed for seed in of_condition[0] if all(seed in part for part in of_condition)]
        out.append({seed: float(np.mean([part[seed] for part in of_condition])) for seed in seeds})
    return out


def as_csv(all_studies: Sequence[Study]) -> str:
    """Return every number of every study, one line each: mean, sample sd, n and the seeds it is over.

    The columns from "metric" to "setting" are words for readers; those from "method_key" on are the fields of `Row`.
    """
    frame = pd.concat([study.frame for study in all_studies])
    return frame[frame["n"] > 0].to_csv(index=False, columns=COLUMNS, lineterminator="\n")
