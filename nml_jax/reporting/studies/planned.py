"""Plan a study before its runs are finished: its conditions, seeds and heads, with the numbers that are there."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nml_jax.evals.correlations import UNDEFINED
from nml_jax.objectives import finetune
from nml_jax.reporting.statistics.grouping import find_studies
from nml_jax.reporting.statistics.studies import REPLICATE, Study
from nml_jax.reporting.studies.numbers import DETECTORS
from nml_jax.reporting.studies.rates import NOISE_KEYS
from nml_jax.runs.finished import FinishedRun
from nml_jax.runs.rows import DIVERGED, Row
from nml_jax.settings import FIXED_RATE, flatten, to_json
from nml_jax.tuning import methods

# The fields of rows that tell the heads of a stage apart.
HEADS = {
    "tune": ("method", "preset", "train_share", "downstream_noise", "suspects"),
    "finetune": ("method", "preset", "train_share", "downstream_noise"),
    "detect": ("method", "preset"),
}
TEST = ("task", "split", "domain", "metric", "layer", "spectrum_mode", "output", "weights")


class Plan(NamedTuple):
    """Studies as their finished runs will be, with the numbers that are known already.

    exact: whether the tests and the rates of all runs are known; if not, there may be more comparisons.
    """

    studies: list[Study]
    exact: bool


def plan_study(config: ConfigDict, cells: Mapping[str, ConfigDict], finished: Sequence[FinishedRun]) -> Plan:
    """Plan the study of a config.

    Args:
        cells: its runs, by the names of their folders.
        finished: runs, of which those of other names or other noise are left out. Their conditions are called as in
            `cells`, for the folder may have been made by another sweep.
    """
    flat = {name: dict(flatten(to_json(cell))) for name, cell in cells.items()}
    own = {run.folder.name: run for run in finished
           if run.folder.name in cells and _are_alike(run.config, flat[run.folder.name])}  # fmt: skip
    if not own:
        return Plan([], exact=False)
    rows = [row for run in own.values() for row in run.rows]
    tests, exact = _find_tests(config, rows)
    runs = []
    for name, cell in cells.items():
        asked, done = list_heads(cell), own.get(name)
        more = [row for stage in HEADS for row in _list_missing(stage, asked[stage], tests[stage], done)]
        if done is None:
            ledger = _expect_noise(cell, own.values())
            exact &= ledger["asked"] is not None or ledger["realised"] is not None
            more += [_blank(row) for row in tests["other"]]
            runs.append(FinishedRun(name, Path(name), flat[name], {}, more, ledger, [], [], []))
            continue
        kept = [row for row in done.rows if row.stage not in HEADS or _name_head(row) in asked[row.stage]]
        kept = [row for row in kept if row.stage in cell.stages]
        runs.append(dataclasses.replace(done, config=flat[name], rows=[*kept, *more]))
    return Plan([_drop_unknown(study) for study in find_studies(runs)], exact)


def list_heads(config: ConfigDict) -> dict[str, set[tuple[Any, ...]]]:
    """Return what a run trains on its encoder: for each stage of HEADS that it has, the values of these fields."""
    tune, tuned, detect = config.tune, config.finetune, config.detect
    presets = [(method, methods.name_preset(preset, tune)) for method, preset in methods.list_methods(tune)]
    heads = itertools.product(presets, tune.shares, tune.noises, {"keep", tune.suspects})
    terms = [finetune.preset_label(name, **tuned.nmtune) for name in tuned.terms]
    found = {
        "tune": {(*method, *rest) for method, *rest in heads},
        "finetune": {*itertools.product(tuned.methods, terms, tuned.shares, tuned.noises)},
        "detect": {*itertools.product(detect.systems, detect.starts)},
    }
    return {stage: of if stage in config.stages else set() for stage, of in found.items()}


def _are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two runs have the same seeds and noise."""
    return all(one.get(key) == other.get(key) for key in (*REPLICATE, *NOISE_KEYS))


def _name_head(row: Row) -> tuple[Any, ...]:
    """Return what a row's head is among those of its stage."""
    return tuple((getattr(row, field) or "keep") if field == "suspects" else getattr(row, field)
                 for field in HEADS[row.stage])  # fmt: skip


def _find_tests(config: ConfigDict, rows: Sequence[Row]) -> tuple[dict[str, list[Row]], bool]:
    """Find one row for every test that each stage of HEADS has, and every number of "other" stages.

    Where no head of a stage is there yet, its tests are those of another stage, or of the spectra.

    Returns:
        The rows, and whether extract, tune and detect, if the config has them, have theirs.
    """
    scored = [row for row in rows if row.wise_alpha is None and not row.output and row.metric != DIVERGED
              and not row.metric.endswith(UNDEFINED)]  # fmt: skip
    found = {stage: _take_each(row for row in scored if row.stage == stage) for stage in HEADS}
    found["other"] = _take_each(row for row in rows if row.stage not in HEADS and row.stage in config.stages)
    known = {row.stage for row in rows}
    spectra = [dataclasses.replace(row, metric="accuracy", layer=None, output=None, spectrum_mode=None)
               for row in rows if row.stage == "extract" and row.split != "train" and row.spectrum_mode]  # fmt: skip
    found["tune"] = found["tune"] or found["finetune"] or _take_each(spectra)
    found["finetune"] = found["finetune"] or [dataclasses.replace(row, layer=None) for row in found["tune"]]
    found["detect"] = [dataclasses.replace(row, metric=metric) for row in found["detect"] for metric in DETECTORS]
    needed = {"extract", "tune", "detect"} & {*config.stages}
    return found, needed <= known


def _take_each(rows: Iterable[Row]) -> list[Row]:
    """Return the first row of every test."""
    return list({tuple(getattr(row, field) for field in TEST): row for row in rows}.values())


def _blank(row: Row, **fields: Any) -> Row:
    """Return a row whose number is not known yet."""
    return dataclasses.replace(row, value=math.nan, hyper=None, **fields)


def _list_missing(stage: str, asked: set[tuple[Any, ...]], tests: Sequence[Row], done: FinishedRun | None) -> list[Row]:
    """Return the rows of the heads that a run does not have yet, without numbers."""
    there = {_name_head(row) for row in done.rows if row.stage == stage} if done else set()
    heads = [dict(zip(HEADS[stage], head, strict=True)) for head in sorted(asked - there, key=str)]
    return [_blank(row, stage=stage, **head) for head in heads for row in tests]


def _expect_noise(cell: ConfigDict, finished: Iterable[FinishedRun]) -> dict[str, Any]:
    """Return what the ledger of a run will say. The rate of given labels is that of a finished run with them."""
    kind, fixed = cell.noise_kind, cell.noise_kind in FIXED_RATE
    same = (run.noise for run in finished if (run.noise_kind, run.value("noise_file")) == (kind, cell.noise_file))
    return {"kind": kind, "asked": None if fixed else cell.noise, "realised": next(same, None) if fixed else None}


def _drop_unknown(study: Study) -> Study:
    """Leave out the numbers that are not known. The rows behind them stay, as they tell shares and settings."""
    table = {
        key: [{seed: value for seed, value in of.items() if math.isfinite(value)} for of in values]
        for key, values in study.table.items()
    }
    return dataclasses.replace(study, table=table)
