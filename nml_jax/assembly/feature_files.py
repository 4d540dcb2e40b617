"""Open the feature files that the section `features` of the config names."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nml_jax import inputs
from nml_jax.data.features import files
from nml_jax.data.features.formats import list_names
from nml_jax.data.features.sets import FeatureSet, Split, Subset
from nml_jax.data.stratify import bin_scores, hold_out, hold_out_groups
from nml_jax.errors import UserError
from nml_jax.tuning.head_file import classes_to_json

RESERVED = {"train", "holdout", "mean"}  # split names that have another meaning
MANY = 1000  # above this number of classes, labels that rarely repeat are taken for ids
DISTINCT = 0.1  # share of different training rows below which equal rows are expected, as for a few whole numbers
TASK, LAYER = "features", "features"  # their names in rows


def open_files(config: ConfigDict, workdir: Path) -> FeatureSet:
    """Open the files that the section `features` of configs/common.py names. Read labels only, not features.

    Without a test file, hold out the share `holdout` of the training file for testing, drawn with the run's seed. A
    test split has the name of its file.

    Raises:
        UserError: a file is missing or damaged, files do not match, or a test has a class that training lacks.
    """
    keys = config.features
    whole, classes, labels = read_training_file(keys)
    tests: list[Split] = []
    groups = number_groups(whole, keys.group)
    train = Split("train", "id", whole, labels, groups=groups)
    if not keys.test:
        if not 0 < keys.holdout < 1:
            raise UserError(
                f"features.holdout must be between 0 and 1, got {keys.holdout}", "set it, or give features.test=FILE"
            )
        strata = bin_scores(labels)
        if np.bincount(strata).max() < 2:
            raise UserError(f"{keys.train} has one row of each class", "give more rows, or features.test=FILE")
        if groups is None:
            kept, held = (np.sort(rows) for rows in hold_out(strata, keys.holdout, config.seed))
        else:
            kept, held = hold_out_groups(strata, groups, keys.holdout, config.seed)
        own = None if groups is None else groups[kept]
        train = Split("train", "id", Subset(whole, kept), labels[kept], groups=own)
        tests.append(Split("holdout", "id", Subset(whole, held), labels[held]))
    for domain, specs in (("id", keys.test), ("ood", keys.ood)):
        for spec in inputs.split_specs(specs):
            other = _open(keys, spec, whole.names)
            files.check_alike(whole, other)
            name = _name_split(other.path, {test.name for test in tests} | RESERVED)
            own = files.translate_labels(whole, other)
            tests.append(Split(name, domain, other, own if keys.regression else files.encode(own, classes, spec)))
    origin = {
        "run": workdir.name, "step": 0, "weights": "raw", "noise_kind": "unknown", "noise_asked": None,
        "noise_realised": None, "noise_seed": config.noise_seed, "seed": config.seed, "objective": "unknown",
        "model": "black box",
    }  # fmt: skip
    names = (whole.label or "target",) if keys.regression else name_classes(whole, classes)
    return FeatureSet(
        TASK, LAYER, train, tuple(tests), names, origin, keys.scale, whole.names, whole.label or keys.label
    )


def name_classes(whole: files.Features, classes: np.ndarray) -> tuple[Any, ...]:
    """Return the classes of a file by the names that it has for them, or as they are, as JSON values."""
    if (
        whole.class_names
        and classes.dtype.kind in "iu"
        and 0 <= classes.min() <= classes.max() < len(whole.class_names)
    ):
        return tuple(whole.class_names[c] for c in classes)
    return classes_to_json(classes)


def read_groups(file: files.Features, name: str) -> np.ndarray | None:
    """Return the group of every row as text, [N]; None if `name` is "".

    Raises:
        UserError: there is no such column, a cell is empty, or all rows are one group.
    """
    if not name:
        return None
    cells = files.read_more(file, [name])[name]
    if empty := [row for row, cell in enumerate(cells) if cell is None or cell == ""]:
        raise UserError(
            f"{file.path}: {len(empty)} rows have no group in column {name!r}, such as row {empty[0]}",
            "give every row a group; a row that belongs to no other gets one of its own",
        )
    groups = np.array([str(cell) for cell in cells])
    if len(np.unique(groups)) < 2:
        raise UserError(f"{file.path}: all rows have the group {cells[0]!r}", "name a column with several values")
    return groups


def number_groups(file: files.Features, name: str) -> np.ndarray | None:
    """Return the number of every row's group, int [N]; None if `name` is "". It raises what `read_groups` does."""
    named = read_groups(file, name)
    return None if named is None else np.unique(named, return_inverse=True)[1]


def describe_groups(found: FeatureSet, name: str) -> list[str]:
    """Return a line for the training rows, and for every test file that shares groups with them, if groups are named.

    Raises:
        UserError: see `read_groups`.
    """
    whole = get_file(found.train)
    known = read_groups(whole, name)
    if known is None:
        return []
    how = "their rows stay together, in training, tests, the choice of settings and folds"
    out = [f"{whole.path}: {len(np.unique(known)):,} groups in column {name!r}: {how}"]
    for split in found.tests:
        file = get_file(split)
        if split.name == "holdout" or not files.has_column(file.spec, name):
            continue
        own = np.array([str(cell) for cell in files.read_more(file, [name])[name]])
        if count := int((shared := np.isin(own, known)).sum()):
            out.append(
                f"{count:,} of {len(own):,} rows of {file.path} have a group that training rows have, such as "
                f"{str(own[shared.argmax()])!r}: scores on them say nothing about new groups"
            )
    return out


def read_training_file(keys: Any) -> tuple[files.Features, np.ndarray, np.ndarray]:
    """Open the training file.

    Args:
        keys: the section `features` of the config.

    Returns:
        The file, its classes, and its labels as class numbers, int [N]; with `regression` as scores, float32 [N].
        `positive` is the name of class 1.

    Raises:
        UserError: the file is missing or damaged, has one class only, or its labels look like ids; `positive` is not
            one of two classes.
    """
    whole = _open(keys, keys.train)
    if keys.regression:
        if np.ptp(whole.labels) == 0:
            raise UserError(f"{keys.train}: every score is {whole.labels[0]:g}", "give rows with different scores")
        return whole, np.unique(whole.labels), whole.labels
    classes = files.find_classes(whole.labels, keys.train)
    if keys.positive:
        classes = _order_classes(whole, classes, keys)
    if not keys.label and len(classes) > max(MANY, len(whole) // 2):
        raise UserError(
            f"{keys.train} has {len(classes):,} classes in {len(whole):,} rows",
            "set features.label to the name of the column or array of labels",
        )
    return whole, classes, files.encode(whole.labels, classes, keys.train)


def _order_classes(whole: files.Features, classes: np.ndarray, keys: Any) -> np.ndarray:
    """Return the two classes, the positive one last. Raise UserError if there are not two, or none has its name."""
    names = [str(name) for name in name_classes(whole, classes)]
    if len(names) != 2 or keys.positive not in names:
        raise UserError(
            f"features.positive={keys.positive!r} is not one of two classes of {keys.train}: {list_names(names)}",
            "name one of two classes, or leave the key out",
        )
    return classes if names[1] == keys.positive else classes[::-1]


def _open(keys: Any, spec: str, wanted: Sequence[str] = ()) -> files.Features:
    """Open a file. From a table take the columns `wanted`, in that order: those of the training file.

    All stages and runs of a process share an open file as long as it does not change.
    """
    stamps = tuple((str(path.resolve()), *_stamp(path)) for path in map(Path, inputs.list_files(spec)))
    how = keys.label, keys.columns, keys.scale, tuple(wanted), keys.group, keys.regression
    return _open_once(spec, *how, stamps)


@functools.lru_cache(maxsize=128)
def _open_once(
    spec: str, label: str, columns: str, scale: float, wanted: tuple[str, ...], group: str, scored: bool, _: Any
) -> files.Features:
    how: dict[str, Any] = ({"group": group} if group else {}) | ({"scored": True} if scored else {})
    return files.open_features(spec, label=label, columns=columns, scale=scale, wanted=wanted, **how)


def _stamp(path: Path) -> tuple[int, int]:
    """Return the size and modification time of a file, or zeros if it does not exist."""
    status = path.stat() if path.is_file() else None
    return (status.st_size, status.st_mtime_ns) if status else (0, 0)


def list_specs(config: ConfigDict) -> list[str]:
    """List the training file and then the test files, in the order of `open_files`."""
    keys = config.features
    return [keys.train, *inputs.split_specs(keys.test), *inputs.split_specs(keys.ood)]


def find_faults(config: ConfigDict) -> list[UserError]:
    """Return what is wrong with each file by itself, of those that exist. Read labels only, not features."""
    found, names = [], ()
    for spec in list_specs(config):
        if all(path.exists() for path in inputs.split_pair(spec)):
            try:
                opened = _open(config.features, spec, names)
                names = names or opened.names
            except UserError as e:
                found.append(e)
    return found


def match_specs(config: ConfigDict, found: FeatureSet) -> dict[str, Split]:
    """Map each spec to the split from its file. A held-out split has no spec."""
    splits = [split for split in (found.train, *found.tests) if split.name != "holdout"]
    return dict(zip(list_specs(config), splits, strict=True))


def count_seen(found: FeatureSet) -> dict[str, int]:
    """Count the rows of every test split whose first view is bit-equal to that of a row of the training file.

    The rows of a held-out part are compared with the rest of the file.

    Raises:
        UserError: all rows of a split are, though the training rows differ from each other; see `Features.blocks`.
    """
    known, counts = np.unique(get_file(found.train).row_hashes), {}
    for split in found.tests:
        others = _hash_rows(found.train) if split.name == "holdout" else known
        counts[split.name] = seen = int(np.isin(_hash_rows(split), others).sum())
        if seen == len(split.labels) and len(known) >= DISTINCT * len(get_file(found.train)):
            raise UserError(
                f"all {seen:,} rows of {_describe_split(split)} are bit-equal to training rows",
                "give a test file with rows that training does not have",
            )
    return counts


def describe_seen(found: FeatureSet, counts: Mapping[str, int]) -> list[str]:
    """Return a line for every test split that has rows of the training split."""
    return [
        f"{counts[split.name]:,} of {len(split.labels):,} rows of {_describe_split(split)} are bit-equal to training "
        "rows: scores on them say nothing about new rows"
        for split in found.tests
        if counts[split.name]
    ]


def _describe_split(split: Split) -> str:
    path = get_file(split).path
    return f"the held-out part of {path}" if split.name == "holdout" else str(path)


def _hash_rows(split: Split) -> np.ndarray:
    hashes = get_file(split).row_hashes
    return hashes[split.features.index] if isinstance(split.features, Subset) else hashes


def get_file(split: Split) -> files.Features:
    """Return the open file of a split from `open_files`."""
    rows: Any = split.features.whole if isinstance(split.features, Subset) else split.features
    return rows


def _name_split(path: Path, taken: set[str]) -> str:
    """Name a split by its file without suffixes, with the folder's name or a number if that name is taken."""
    stem = Path(path.name.removesuffix(".gz")).stem
    names = [stem, f"{path.resolve().parent.name}/{stem}", *(f"{stem}-{i}" for i in range(2, 100))]
    return next(name for name in names if name not in taken)
