"""Measure training features and test whether NMTune beats a linear probe on them -> rows and `diagnosis.json`."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, errors, settings
from nml_jax.assembly.feature_files import read_training_file
from nml_jax.assembly.feature_sets import open_feature_sets
from nml_jax.data.stratify import draw_stratified
from nml_jax.runs.files import write_json
from nml_jax.runs.record import name_run
from nml_jax.runs.rows import Row, write_rows
from nml_jax.stages.stage import Outputs, Stage
from nml_jax.tuning import diagnosis

CAP = 50_000  # rows that are measured: more would take longer and change little


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Diagnose the first views of the training features of every task and layer.

    A training file is the same for every seed. It is therefore diagnosed once for all runs of a process, with a fixed
    seed.

    Returns:
        The digest of the rows.

    Raises:
        UserError: there are no features, or they are damaged.
    """
    if jax.process_index() > 0:
        return ""
    rows: list[Row] = []
    entries = []
    for found in open_feature_sets(config, workdir):
        if config.features.train:
            whole, *_ = read_training_file(config.features)
            result = _diagnose_file(whole.fingerprint, *settings.freeze_sections(config.features, config.diagnose))
        else:
            result = _diagnose_sample(found.train.features, found.train.labels, config.diagnose, config.seed)
        if result.untold:
            console.notice(f"{name_run(workdir)}: {found.task} {result.verdict}")
        known = {name: value for name, value in result.measures.items() if np.isfinite(value)}
        fields = dataclasses.asdict(dataclasses.replace(result, measures=known))
        interval = [] if result.untold else result.interval
        entries.append({"task": found.task, "layer": found.layer, "verdict": result.verdict,
                        **fields, "interval": interval})  # fmt: skip
        shared = {**found.origin, "stage": "diagnose", "task": found.task, "split": "train", "domain": "id",
                  "layer": found.layer, "output": "features", "n_train": result.n}  # fmt: skip
        rows += [Row(**shared, metric=f"diagnosis/{name}", value=value) for name, value in known.items()]
        if not result.untold:
            rows.append(Row(**shared, metric="diagnosis/gain", value=result.difference))
    with errors.report_disk_errors(workdir):
        write_json(workdir / "diagnosis.json", entries)
        write_rows(workdir, "diagnose", rows)
    return settings.hash_json([[row.metric, row.value] for row in rows])


def _diagnose_sample(source: Any, labels: np.ndarray, keys: Any, seed: int) -> diagnosis.Diagnosis:
    """Diagnose at most CAP rows, drawn with the same share of each class."""
    chosen = draw_stratified(labels, min(1.0, CAP / len(labels)), seed)
    own = source.rows(chosen)[:, 0]
    return diagnosis.diagnose_checked(
        own, labels[chosen], folds=keys.folds, rows=keys.rows, seed=seed, start=keys.start
    )


@functools.lru_cache(maxsize=4)
def _diagnose_file(fingerprint: str, keys: Any, diagnose: Any) -> diagnosis.Diagnosis:
    """Diagnose the training file of the section `features`. `fingerprint` makes the cache notice a changed file."""
    whole, _, labels = read_training_file(keys)
    return _diagnose_sample(whole, labels, diagnose, seed=0)


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Do nothing: every run checks the values of this section (stages/sections.py)."""


STAGE = Stage(
    name="diagnose",
    version=4,
    keys=("seed", "downstream", "extract", "features", "diagnose"),
    upstream=("extract", "features"),
    outputs=Outputs(("diagnosis.json",), proved=("diagnosis.json",)),
    check=check,
    run=run,
)
