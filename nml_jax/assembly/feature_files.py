"""Features from files of the section `features` of the config."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nml_jax import inputs
from nml_jax.data.features import files
from nml_jax.data.features.sets import FeatureSet, Split, Subset
from nml_jax.data.stratify import hold_out
from nml_jax.errors import UserError
from nml_jax.tuning.head_file import classes_to_json

RESERVED = {"train", "holdout", "mean"}  # names of splits that mean something else
MANY = 1000  # classes, from which on labels that hardly ever repeat are taken for ids
TASK, LAYER = "features", "features"  # as rows call them


def open_files(config: ConfigDict, workdir: Path) -> FeatureSet:
    """The features that the section `features` of configs/common.py names. Labels are read, features are not.

    Without a test file the share `holdout` of the training file is tested on, drawn by the run's seed. A test split is
    called as its file is.

    Raises:
        UserError: a file is missing or damaged, files do not fit each other, or a test has a class that training lacks.
    """
    keys = config.features
    whole, classes, labels = read_training_file(keys)
    tests: list[Split] = []
    train = Split("train", "id", whole, labels)
    if not keys.test:
        if not 0 < keys.holdout < 1:
            raise UserError(f"features.holdout={keys.holdout}", "give a share between 0 and 1, or features.test=FILE")
        if np.bincount(labels).max() < 2:
            raise UserError(f"{keys.train} has one row of each class", "give more rows, or features.test=FILE")
        kept, held = (np.sort(rows) for rows in hold_out(labels, keys.holdout, config.seed))
        train = Split("train", "id", Subset(whole, kept), labels[kept])
        tests.append(Split("holdout", "id", Subset(whole, held), labels[held]))
    for domain, specs in (("id", keys.test), ("ood", keys.ood)):
        for spec in inputs.split_specs(specs):
            other = _open(keys, spec, whole.names)
            files.check_alike(whole, other)
            name = _name_split(other.path, {test.name for test in tests} | RESERVED)
            tests.append(Split(name, domain, other, files.encode(other.labels, classes, spec)))
    origin = {
        "run": workdir.name, "step": 0, "weights": "raw", "noise_kind": "unknown", "noise_asked": None,
        "noise_realised": None, "noise_seed": config.noise_seed, "seed": config.seed, "objective": "unknown",
        "model": "black box",
    }  # fmt: skip
    names = classes_to_json(classes)
    if (
        whole.class_names
        and classes.dtype.kind in "iu"
        and 0 <= classes.min() <= classes.max() < len(whole.class_names)
    ):
        names = tuple(whole.class_names[c] for c in classes)
    return FeatureSet(TASK, LAYER, train, tuple(tests), names, origin, keys.scale, whole.names)


def read_training_file(keys: Any) -> tuple[files.Features, np.ndarray, np.ndarray]:
    """The file that `keys`, the section `features`, names to train on, its classes, and its labels as their numbers.

    Raises:
        UserError: it is missing or damaged, has one class, or labels that look like ids.
    """
    whole = _open(keys, keys.train)
    classes = files.find_classes(whole.labels, keys.train)
    if not keys.label and len(classes) > max(MANY, len(whole) // 2):
        raise UserError(
            f"{keys.train} has {len(classes):,} classes in {len(whole):,} rows",
            "name the label with features.label, if these are its classes or another one is",
        )
    return whole, classes, files.encode(whole.labels, classes, keys.train)


def _open(keys: Any, spec: str, wanted: Sequence[str] = ()) -> files.Features:
    """A file; of a table the columns `wanted`, as the training file calls them, in that order.

    All stages of all runs of a process share what was opened, as long as the file has not changed.
    """
    stamps = tuple((str(path.resolve()), *_stamp(path)) for path in inputs.split_pair(spec))
    return _open_once(spec, keys.label, keys.columns, keys.scale, tuple(wanted), stamps)


@functools.lru_cache(maxsize=128)
def _open_once(spec: str, label: str, columns: str, scale: float, wanted: tuple[str, ...], _: Any) -> files.Features:
    return files.open_features(spec, label=label, columns=columns, scale=scale, wanted=wanted)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; zeros where there is none."""
    status = path.stat() if path.is_file() else None
    return (status.st_size, status.st_mtime_ns) if status else (0, 0)


def list_specs(config: ConfigDict) -> list[str]:
    """What the section `features` names: the training file, then the tests, in the order of `open_files`."""
    keys = config.features
    return [keys.train, *inputs.split_specs(keys.test), *inputs.split_specs(keys.ood)]


def match_specs(config: ConfigDict, found: FeatureSet) -> dict[str, Split]:
    """Spec -> the split that comes from its file; a part that is held out has no spec."""
    splits = [split for split in (found.train, *found.tests) if split.name != "holdout"]
    return dict(zip(list_specs(config), splits, strict=True))


def get_file(split: Split) -> files.Features:
    """The open file of a split that `open_files` found."""
    rows: Any = split.features.whole if isinstance(split.features, Subset) else split.features
    return rows


def _name_split(path: Path, taken: set[str]) -> str:
    """The file's stem; with the folder's name, or a number, where another split is called so."""
    names = [path.stem, f"{path.resolve().parent.name}/{path.stem}", *(f"{path.stem}-{i}" for i in range(2, 100))]
    return next(name for name in names if name not in taken)
