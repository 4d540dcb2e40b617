"""Measure training features, test whether NMTune beats a linear probe on them, and judge their labels.

It writes rows, `diagnosis.json`, `label_errors.json` and `suspects.csv`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, errors, settings
from nml_jax.assembly.feature_files import name_classes, number_groups, read_training_file
from nml_jax.assembly.feature_sets import fit_in_memory, open_feature_sets
from nml_jax.assembly.suspects import judge_rows, read_ids
from nml_jax.data.features.sets import FeatureSet
from nml_jax.data.stratify import draw_stratified
from nml_jax.runs.files import write_atomic, write_json
from nml_jax.runs.record import name_run
from nml_jax.runs.rows import Row, write_rows
from nml_jax.stages.stage import Outputs, Stage
from nml_jax.tuning import diagnosis
from nml_jax.tuning.label_errors import LabelErrors, format_suspects

LABEL_ERRORS, SUSPECTS = "label_errors.json", "suspects.csv"
HALF = 0.5  # expected rows from which a pair of given and likely label is listed
CAP = 50_000  # rows that are measured: more would take longer and change little


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Diagnose the first views of the training features of every task and layer, and judge their labels.

    Without folds, features are measured only.

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
    entries, judged = [], []
    run = "" if config.features.train else f"{name_run(workdir)}: "  # a file is diagnosed once for all seeds
    for found in open_feature_sets(config, workdir):
        if found.is_scored:
            console.notice_once(f"{found.task} is a regression: the stage diagnose, which is of classes, leaves it out")
            continue
        if config.features.train:
            whole, *_ = read_training_file(config.features)
            frozen = settings.freeze_sections(config.features, config.diagnose)
            result = _diagnose_file(whole.fingerprint, *frozen)
            judged += [(found, _judge_file(whole.fingerprint, frozen[0]))] if config.diagnose.folds else []
        else:
            train = found.train
            result = _diagnose_sample(train.features, train.labels, config.diagnose, config.seed, train.groups)
            if config.diagnose.folds:
                judged.append((found, _judge(train.features, train.labels, found.classes, config.features)))
        if result.untold and config.diagnose.folds:
            console.notice_once(f"{run}{found.task} {result.verdict}")
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
        if config.diagnose.folds:
            write_json(workdir / LABEL_ERRORS, [_describe_labels(run, *one) for one in judged])
            write_atomic(workdir / SUSPECTS, _list_suspects(judged))
        write_rows(workdir, "diagnose", rows)
    return settings.hash_json([[row.metric, row.value] for row in rows])


def _diagnose_sample(
    source: Any, labels: np.ndarray, keys: Any, seed: int, groups: np.ndarray | None = None
) -> diagnosis.Diagnosis:
    """Diagnose at most CAP rows, drawn with the same share of each class."""
    chosen = draw_stratified(labels, min(1.0, CAP / len(labels)), seed)
    own = source.rows(chosen)[:, 0]
    how = {"folds": keys.folds, "rows": keys.rows, "seed": seed, "start": keys.start}
    return diagnosis.diagnose_checked(own, labels[chosen], **how, groups=None if groups is None else groups[chosen])


@functools.lru_cache(maxsize=4)
def _diagnose_file(fingerprint: str, keys: Any, diagnose: Any) -> diagnosis.Diagnosis:
    """Diagnose the training file of the section `features`. `fingerprint` makes the cache notice a changed file."""
    whole, _, labels = read_training_file(keys)
    return _diagnose_sample(whole, labels, diagnose, 0, number_groups(whole, keys.group))


def _judge(
    rows: Any, labels: np.ndarray, classes: Any, keys: Any, ids: Any = None, groups: Any = None
) -> LabelErrors | str:
    """Judge as many labels as fit into memory; return why none can be judged."""
    try:
        return judge_rows(rows, labels, classes, most=fit_in_memory(keys.memory, rows, CAP), ids=ids, groups=groups)
    except errors.UserError as e:
        return e.cause


@functools.lru_cache(maxsize=4)
def _judge_file(fingerprint: str, keys: Any) -> LabelErrors | str:
    """Judge the labels of the training file. `fingerprint` makes the cache notice a changed file."""
    whole, classes, labels = read_training_file(keys)
    groups = number_groups(whole, keys.group)
    return _judge(whole, labels, name_classes(whole, classes), keys, read_ids(whole), groups)


def _describe_labels(run: str, found: FeatureSet, labels: LabelErrors | str) -> dict[str, Any]:
    """Return the entry of a feature set in `label_errors.json`. Print what was found, after the name of the run."""
    entry = {"task": found.task, "layer": found.layer}
    told = f"labels cannot be judged: {labels}" if isinstance(labels, str) else str(labels)
    console.notice_once(f"{run}{found.task}: {told}")
    if isinstance(labels, str):
        return {**entry, "untold": labels, "rows": 0, "suspects": 0, "share": 0.0, "interval": [], "pairs": []}
    names = [str(name) for name in labels.classes.tolist()]
    n, pairs = int(labels.judged.sum()), []
    for i, j in zip(*np.nonzero(labels.joint * n >= HALF), strict=True):
        pairs.append({"given": names[i], "likely": names[j], "share": float(labels.joint[i, j])})
    pairs.sort(key=lambda pair: (pair["given"] == pair["likely"], -pair["share"]))
    return {**entry, "untold": "", "rows": n, "suspects": len(labels.suspects), "share": labels.share,
            "interval": list(labels.interval), "pairs": pairs}  # fmt: skip


def _list_suspects(judged: Sequence[tuple[FeatureSet, LabelErrors | str]]) -> str:
    """Return the suspects of all feature sets as CSV; the columns task and layer only where there are several."""
    several = len(judged) > 1
    lines = [(suspect, (found.task, found.layer) if several else ())
             for found, labels in judged if not isinstance(labels, str) for suspect in labels.suspects]  # fmt: skip
    return format_suspects(lines, ("task", "layer") if several else ())


def list_needed(workdir: Path) -> list[Path]:
    """List the files without which the stage is not done. Runs of earlier versions did not judge labels."""
    labels = [workdir / SUSPECTS] if (workdir / LABEL_ERRORS).exists() else []
    return [workdir / "diagnosis.json", *labels]


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Do nothing: every run checks the values of this section (assembly/sections.py)."""


STAGE = Stage(
    name="diagnose",
    version=4,
    keys=("seed", "downstream", "extract", "features", "diagnose"),
    upstream=("extract", "features"),
    outputs=Outputs(
        ("diagnosis.json", LABEL_ERRORS, SUSPECTS),
        lambda workdir, _: list_needed(workdir),
        proved=("diagnosis.json", LABEL_ERRORS),
    ),
    check=check,
    run=run,
)
