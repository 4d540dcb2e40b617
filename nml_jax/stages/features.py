"""Features from files, whoever computed them: checked, their classes matched, their spectra measured.

They stay where they are. The run's folder gets `features.json`, which says what was read and how.
"""

import filecmp
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import errors, log, settings, spectrum
from nml_jax.data import features as files
from nml_jax.data.feature_checks import check_varied
from nml_jax.errors import UserError
from nml_jax.stages import feature_sets
from nml_jax.stages.feature_sets import FeatureSet, Split, Subset
from nml_jax.training.holdout import hold_out
from nml_jax.training.tuned import classes_to_json

VERSION = 3
KEYS = ("seed", "features", "extract")
UPSTREAM = ()
RESERVED = {"train", "holdout", "mean"}  # names of splits that mean something else
MANY = 1000  # classes, from which on labels that hardly ever repeat are taken for ids
TASK, LAYER = "features", "features"  # as rows call them


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Read every file once, write `features.json`, `spectra.json` and the spectrum rows.

    Returns:
        The digest of the files.

    Raises:
        UserError: see `opened`; or a value is not finite.
    """
    if jax.process_index() > 0:
        return ""
    found = opened(config, workdir)
    rows: list[log.Row] = []
    spectra: list[dict[str, Any]] = []
    for split in (found.train, *found.tests):
        for mode in config.extract.spectra:
            blocks = (block for block, _ in split.blocks())
            s = feature_sets.singular_values(blocks, len(split.labels), split.features.dim, mode)
            where = {"task": TASK, "split": split.name, "domain": split.domain, "layer": LAYER}
            spectra.append(feature_sets.spectrum_entry(s, **where, mode=mode))
            rows += feature_sets.spectrum_rows(s, **found.origin, **where, stage="features", spectrum_mode=mode,
                                               n_test=len(split.labels), views=split.features.views)  # fmt: skip
    several = {spec: _open(config.features, spec, found.columns) for spec in _specs(config)}
    read = {
        "classes": list(found.classes),
        "splits": [
            {"split": split.name, "domain": split.domain, "rows": len(split.labels), "views": split.features.views,
             "features": split.features.dim,
             "per_class": np.bincount(split.labels, minlength=len(found.classes)).tolist()}
            for split in (found.train, *found.tests)
        ],
        "files": {spec: file.fingerprint for spec, file in several.items()},
        "columns": {spec: {"label": file.label, "taken": list(file.columns), "left_out": list(file.left_out)}
                    for spec, file in several.items() if file.columns},
    }  # fmt: skip
    with errors.storage(workdir):
        log.write_json(workdir / "features.json", read)
        log.write_json(workdir / "spectra.json", spectra)
        log.write_rows(workdir, "features", rows)
    return settings.sha(read)


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    if not config.features.train:
        raise UserError(
            "the stage features has no training file", "set --config.features.train=FILE, or leave the stage out"
        )
    if not 0 < config.features.memory <= 1:
        raise UserError(f"features.memory={config.features.memory}", "give a share of the memory, above 0 and up to 1")
    for mode in config.extract.spectra:
        spectrum.preset(mode)
    specs = _specs(config)
    for i, spec in enumerate(specs):  # of a pair the features: other labels would not make them other rows
        for other in specs[:i]:
            if _same(settings.pair(other)[0], settings.pair(spec)[0], content=data):
                raise UserError(
                    f"{spec} is the same as {other}: what a head was trained on, or a test that there is, is no test",
                    "name each file once; leave features.test out, and a part of the training file is held out",
                )
    if data:
        found = opened(config, Path())
        splits = [split for split in (found.train, *found.tests) if split.name != "holdout"]
        for spec, split in zip(specs, splits, strict=True):
            check_varied((block for block, _ in split.blocks()), spec)
        if found.train.features.dim == 1 and "code" in config.extract.spectra:
            raise UserError(
                f"{config.features.train} has one feature, of which the mode code leaves no spectrum",
                "give two features or more, or --config.extract.spectra=\"('paper',)\"",
            )


def _same(a: Path, b: Path, *, content: bool) -> bool:
    """Whether two paths lead to one file, or to files with the same bytes, if these are to be looked at."""
    if a.resolve() == b.resolve():
        return True
    return content and a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False)


def intact(workdir: Path) -> bool:
    return all((workdir / name).exists() for name in ("features.json", "spectra.json"))


def forget(workdir: Path) -> None:
    (workdir / "features.json").unlink(missing_ok=True)


def opened(config: ConfigDict, workdir: Path) -> FeatureSet:
    """The features that the section `features` of configs/common.py names. Labels are read, features are not.

    Without a test file the share `holdout` of the training file is tested on, drawn by the run's seed. A test split is
    called as its file is.

    Raises:
        UserError: a file is missing or damaged, files do not fit each other, or a test has a class that training lacks.
    """
    keys = config.features
    whole, classes, labels = training_file(keys)
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
        for spec in settings.specs(specs):
            other = _open(keys, spec, whole.names)
            files.check_alike(whole, other)
            name = _name(other.path, {test.name for test in tests} | RESERVED)
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


def training_file(keys: Any) -> tuple[files.Features, np.ndarray, np.ndarray]:
    """The file that `keys`, the section `features`, names to train on, its classes, and its labels as their numbers.

    Raises:
        UserError: it is missing or damaged, has one class, or labels that look like ids.
    """
    whole = _open(keys, keys.train)
    classes = files.classes(whole.labels, keys.train)
    if not keys.label and len(classes) > max(MANY, len(whole) // 2):
        raise UserError(
            f"{keys.train} has {len(classes):,} classes in {len(whole):,} rows",
            "name the label with features.label, if these are its classes or another one is",
        )
    return whole, classes, files.encode(whole.labels, classes, keys.train)


def _open(keys: Any, spec: str, wanted: Sequence[str] = ()) -> files.Features:
    """A file; of a table the columns `wanted`, as the training file calls them, in that order."""
    return files.open_features(spec, label=keys.label, columns=keys.columns, scale=keys.scale, wanted=wanted)


def _specs(config: ConfigDict) -> list[str]:
    keys = config.features
    return [keys.train, *settings.specs(keys.test), *settings.specs(keys.ood)]


def _name(path: Path, taken: set[str]) -> str:
    """The file's stem; with the folder's name, or a number, where another split is called so."""
    names = [path.stem, f"{path.resolve().parent.name}/{path.stem}", *(f"{path.stem}-{i}" for i in range(2, 100))]
    return next(name for name in names if name not in taken)
