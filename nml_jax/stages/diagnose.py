"""What training features look like, and whether NMTune beats a linear probe on them -> rows and `diagnosis.json`."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import diagnosis, errors, log, settings
from nml_jax.data.shares import stratified
from nml_jax.stages import feature_sets

VERSION = 2
KEYS = ("seed", "downstream", "extract", "features", "diagnose")
UPSTREAM = ("extract", "features")
CAP = 50_000  # rows that are measured: more would only take longer


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Diagnose the training features of every task and layer, on the first views.

    Returns:
        The digest of the rows.

    Raises:
        UserError: no features, damaged ones, or too few to hold any out.
    """
    if jax.process_index() > 0:
        return ""
    rows: list[log.Row] = []
    told = []
    for found in feature_sets.opened(config, workdir):
        labels = found.train.labels
        chosen = stratified(labels, min(1.0, CAP / len(labels)), config.seed)
        features = found.train.features.rows(chosen)[:, 0]
        try:
            result = diagnosis.diagnose(
                features, labels[chosen], folds=config.diagnose.folds, rows=config.diagnose.rows, seed=config.seed
            )
        except ValueError as e:
            raise errors.UserError(f"{found.task}: {e}", "leave the stage diagnose out of --config.stages") from e
        known = {name: value for name, value in result.measures.items() if np.isfinite(value)}
        told.append({"task": found.task, "layer": found.layer, "verdict": result.verdict,
                     **dataclasses.asdict(dataclasses.replace(result, measures=known))})  # fmt: skip
        shared = {**found.origin, "stage": "diagnose", "task": found.task, "split": "train", "domain": "id",
                  "layer": found.layer, "n_train": len(chosen)}  # fmt: skip
        rows += [log.Row(**shared, metric=f"diagnosis/{name}", value=value) for name, value in known.items()]
        rows.append(log.Row(**shared, metric="diagnosis/gain", value=result.difference))
    with errors.storage(workdir):
        log.write_json(workdir / "diagnosis.json", told)
        log.write_rows(workdir, "diagnose", rows)
    return settings.sha([[row.metric, row.value] for row in rows])


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Its numbers are checked with all others (settings.check)."""


def intact(workdir: Path) -> bool:
    return (workdir / "diagnosis.json").exists()


def forget(workdir: Path) -> None:
    (workdir / "diagnosis.json").unlink(missing_ok=True)
