"""Read `downstream.directories`: tasks of prepared datasets beside the one of `downstream.path`."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nml_jax.errors import UserError

CURE = "write downstream.directories=(('name', 'path', 'train', ('test',), ('art',)), ...)"

VERSION = re.compile(r"\d+\.\d+\.\d+")  # name of the folder that TFDS makes for a version


class Directory(NamedTuple):
    """A downstream task of a prepared dataset. `test` are in-domain splits, `ood` out-of-domain ones."""

    name: str
    path: str
    train: str
    test: tuple[str, ...]
    ood: tuple[str, ...]


def read(config: Any, taken: Collection[str] = ()) -> dict[str, Directory]:
    """Return the tasks in `downstream.directories`, by name.

    Args:
        taken: names that other tasks have.

    Raises:
        UserError: an entry has another form, or a name that is taken.
    """
    out: dict[str, Directory] = {}
    for entry in config.downstream.directories:
        if not _fits(entry):
            raise UserError(f"downstream.directories has {entry!r}", CURE)
        task = Directory(*entry)
        if task.name in out or task.name in taken:
            raise UserError(
                f"downstream.directories: {task.name!r} is the name of another task", "give it another name"
            )
        out[task.name] = task
    return out


def _fits(entry: Any) -> bool:
    """Return whether an entry has a name, a path and a split, and two tuples of splits."""
    if not isinstance(entry, tuple) or len(entry) != len(Directory._fields):
        return False
    *texts, test, ood = entry
    splits = (*test, *ood) if isinstance(test, tuple) and isinstance(ood, tuple) else (None,)
    return all(isinstance(value, str) and value for value in (*texts, *splits)) and bool(test)


def select(config: Any, task: Directory) -> Any:
    """Return a copy of the config in which the task "directory" is this one."""
    out = ConfigDict(config).copy_and_resolve_references()
    with out.unlocked():
        out.downstream.update(path=task.path, train=task.train, test=task.test, ood=task.ood, classes=())
    return out


def name_folder(path: str) -> str:
    """Return the name of a prepared dataset's folder, or of the one above that of a version, as TFDS makes it."""
    folder = Path(path).expanduser().resolve()
    return (folder.parent if VERSION.fullmatch(folder.name) else folder).name
