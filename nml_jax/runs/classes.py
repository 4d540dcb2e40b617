"""Write and read how many records of each class the splits of a run have.

`classes.json` is of pre-training, `banks/classes.json` of the downstream tasks, and `features.json` of feature files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml_jax.runs.files import write_json
from nml_jax.stored import FAULTS, make_damage, read_json

Counts = Mapping[str, Mapping[str, int]]  # split -> class -> number of records

PRETRAINING, TASKS, FEATURES = "classes.json", "banks/classes.json", "features.json"


def write_counts(path: Path, counts: Counts) -> None:
    """Write the counts of the splits of a stage."""
    write_json(path, counts)


def read_counts(workdir: Path) -> dict[str, dict[str, int]]:
    """Read the counts of all splits of a run; {} for runs of older versions.

    Raises:
        UserError: a file is damaged.
    """
    counts, cure = {}, f"delete it; the command of the run {workdir.name} writes it again"
    for name in (PRETRAINING, TASKS, FEATURES):
        path = workdir / name
        try:
            content = read_json(path, cure) if path.exists() else {}
            counts |= _count_features(content) if name == FEATURES else _check(content)
        except FAULTS as e:
            raise make_damage(path, e, cure) from e
    return counts


def _count_features(content: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    classes = [str(name) for name in content.get("classes", ())]
    splits = {split["split"]: split["per_class"] for split in content.get("splits", ())}
    return _check({split: dict(zip(classes, counts, strict=True)) for split, counts in splits.items()})


def _check(content: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    counts = {str(split): {str(name): n for name, n in of.items()} for split, of in content.items()}
    if not all(type(n) is int for of in counts.values() for n in of.values()):
        raise TypeError("a count of records is not a whole number")
    return counts
