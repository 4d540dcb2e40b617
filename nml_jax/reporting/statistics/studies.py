"""The numbers of finished runs: sorted into studies and conditions, averaged over seeds.

A study is a set of runs that differ in one thing (the noise, or one other key) and in their seeds. A condition is one
value of that thing; its runs are the seeds. Several heads in one run are averaged first: they share the run's features
and are not independent repetitions.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nml_jax.evals.metrics import METRICS as SCORES
from nml_jax.evals.metrics import REGRESSION
from nml_jax.reporting.statistics.paired import Stat, format_mean, stat
from nml_jax.runs.detections import METRICS as METRICS_OF_DETECTORS
from nml_jax.runs.finished import FinishedRun, Seed
from nml_jax.runs.heads import preset_label
from nml_jax.runs.rows import Row
from nml_jax.spreadsheet import escape_cell
from nml_jax.tasks import catalogue
from nml_jax.tuning import methods

REPLICATE = ("seed", "noise_seed")  # what distinguishes repetitions of one condition
NOISE = ("noise", "noise_file")  # what distinguishes conditions, where it varies
MEAN = "mean"  # as a split or task: the mean over all of them
# As a task: means over those whose classes the noise is among (`noise_related`), and over the others.
RELATED, UNRELATED = "mean over related tasks", "mean over unrelated tasks"
MEANS = (MEAN, RELATED, UNRELATED)
# What methods are called; those of the stage finetune have no entry of their own. In this order of simplicity.
METHODS = {
    **{name: method.title for name, method in methods.METHODS.items()},
    "lora": "LoRA",
    "full": "full fine-tuning",
    "retina": "RetinaNet",
    "faster": "Faster R-CNN",
    "mask": "Mask R-CNN",
    "solo": "SOLOv2",
}
# What heads are compared with: the first that is there, and on regressions, where there is no L-BFGS, ridge.
REFERENCES = ("lbfgs", "linear")
REGRESSION_REFERENCES = ("lbfgs", "ridge", "linear")
ZERO_SHOT = "zero-shot"
SUSPECTS = (
    "tune.suspects = {}"  # the setting of heads that were trained on all rows, without the suspects, or relabelled
)
FILES = "features."  # keys of feature files
# Columns of summary.csv. The first ones keep the words of schema 1, in which strings were parsed.
COLUMNS = ["study", "noise_kind", "axis", "condition", "x", "metric", "task", "split", "domain", "layer", "mode",
           "method", "setting", "mean", "sd", "n", "seeds",
           "method_key", "preset", "output", "weights", "wise_alpha"]  # fmt: skip
NUMBERS = {"x", "mean", "sd", "n", "seeds", "wise_alpha"}  # those that hold no words


PRIMARY = "primary"  # as a metric, over tasks: each task's own


class Measure(NamedTuple):
    """What decides in a contest: a metric of a task, or the mean of several.

    title, needs, way: as of `evals.metrics.Metric`; a mean of several needs "metrics".
    """

    title: str
    needs: str
    way: int = 1


MEASURES = {name: Measure(metric.title, metric.needs, metric.way) for name, metric in SCORES.items()}
MEASURES[PRIMARY] = Measure("the mean of each task's own metric", "metrics")


class Method(NamedTuple):
    """A way to make a classifier. Its `str` is its title in tables."""

    name: str  # a key of METHODS, or ZERO_SHOT
    preset: str = ""  # with its views, as in "code/1view"

    def __str__(self) -> str:
        return METHODS.get(self.name, self.name) + (f" ({self.preset})" if self.preset else "")

    @property
    def simplicity(self) -> int:
        """The method's position in METHODS."""
        return list(METHODS).index(self.name) if self.name in METHODS else len(METHODS)


class Key(NamedTuple):
    """What a number measures; "" if a field does not apply."""

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
        """The split, with the weights if they are not the extracted ones."""
        return f"{self.split} ({self.weights})" if self.weights else self.split


class Source(NamedTuple):
    """The rows of one run behind a number, and the run's folder."""

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
        """The tasks of heads and features; those of detectors have tables of their own."""
        scored = (key.task for key in self.keys() if key.metric not in METRICS_OF_DETECTORS)
        return [task for task in dict.fromkeys(scored) if task not in ("pretrain", *MEANS)]

    @property
    def related(self) -> list[str]:
        """The tasks whose classes the noise is among."""
        named = list_related(self.cells)
        return [task for task in self.tasks if task in named]

    def list_members(self, task: str) -> list[str]:
        """Return the tasks that one of MEANS is over; of another task itself."""
        if task not in MEANS:
            return [task]
        if task == MEAN:
            return self.tasks
        related = self.related
        return related if task == RELATED else [name for name in self.tasks if name not in related]

    def find_metric_of(self, task: str, metric: str) -> str:
        """Return the metric of one task that counts in a mean over tasks: its own where that is of PRIMARY."""
        return find_own_metric(task, self.table) if metric == PRIMARY else metric

    def keys(self, **where: Any) -> list[Key]:
        """Return the keys whose fields have these values, in the order of the rows; by default no WiSE-FT."""
        where = {"wise_alpha": None, **where}
        return [key for key in self.table if all(getattr(key, name) == value for name, value in where.items())]

    def names(self, field: str, **where: Any) -> list[Any]:
        """Return the values of one field of those keys, once each."""
        return list(dict.fromkeys(getattr(key, field) for key in self.keys(**where)))

    def stat(self, i: int, key: Key) -> Stat:
        """Return the mean, sd and count of condition i over its seeds."""
        return stat(self.table[key][i].values() if key in self.table else ())

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """A line per number and condition: COLUMNS, "i" of the condition, "head", and "text" for tables."""
        lines = []
        for key, by_condition in self.table.items():
            method, preset = key.method or ("", "")
            words = {
                "study": self.title, "axis": self.axis, **key._asdict(),
                "metric": key.metric if key.wise_alpha is None else f"{key.metric}@wise={key.wise_alpha:g}",
                "split": key.place, "layer": "Z" if key.output == "Z" else key.layer, "method": str(key.method or ""),
                "method_key": method, "preset": preset, "head": key.head,
            }  # fmt: skip
            for i, (condition, values) in enumerate(zip(self.conditions, by_condition, strict=True)):
                s = stat(values.values())
                numbers = {"mean": repr(s.mean), "sd": repr(s.sd) if s.n > 1 else "", "n": s.n,
                           "seeds": " ".join(str(seed) for seed, _ in values),
                           "text": format_mean(s, key.metric)}  # fmt: skip
                kinds = ", ".join(dict.fromkeys(cell.noise_kind for cell in condition.cells))
                own = {"noise_kind": kinds, "condition": condition.label, "x": repr(condition.x)}
                lines.append({**words, "i": i, **own, **numbers})
        return pd.DataFrame(lines)

    def at(self, condition: Condition) -> str:
        """Return the condition in words."""
        return f"{condition.label} noise" if self.axis == "noise" else f"{self.axis} = {condition.label}"

    def id_split(self, task: str) -> str:
        """Return the in-domain split whose spectrum is shown first; heads are scored on it."""
        known = self.names("split", metric="sve", task=task, domain="id", method=None)
        scored = self.names("split", metric="accuracy", task=task, domain="id")
        return next(iter([s for s in known if s in scored] or [s for s in known if s != "train"] or known), "")


def find_own_metric(task: str, keys: Iterable[Key]) -> str:
    """Return a task's own metric: the customary one, or of a regression without one R².

    Args:
        keys: what was measured.
    """
    metric = catalogue.find_metric(task)
    known = {key.metric for key in keys if key.task == task}
    return REGRESSION if metric == "accuracy" and metric not in known and REGRESSION in known else metric


def list_related(cells: Iterable[FinishedRun]) -> list[str]:
    """Return the names in `noise_related` of any run."""
    return list(dict.fromkeys(name for cell in cells for name in cell.value("noise_related") or ()))


def method_of(row: Row) -> Method:
    return Method(row.method or "", preset_label(vars(row)) or "")


def write_csv(all_studies: Sequence[Study]) -> str:
    """Return every number of every study, one line each: mean, sample sd, n and the seeds it is over.

    The columns from "metric" to "setting" are words for readers; those from "method_key" on are the fields of `Row`.
    Words that a spreadsheet would take for formulas are escaped (spreadsheet.py).
    """
    frame = pd.concat([study.frame for study in all_studies])
    for column in set(COLUMNS) - NUMBERS:
        frame[column] = frame[column].map(lambda cell: escape_cell(cell) if isinstance(cell, str) else cell)
    return frame[frame["n"] > 0].to_csv(index=False, columns=COLUMNS, lineterminator="\n")
