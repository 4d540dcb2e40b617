"""The table of downstream tasks: what a head is trained on, and on what it is scored in- and out-of-domain."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nml_jax.data import sources, transforms
from nml_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Test:
    """One test split of a task."""

    __test__ = False  # no test case, whatever pytest thinks of the name

    split: str
    domain: str  # "id" or "ood"
    source: sources.Source
    shift: str | None = None  # a key of transforms.SHIFTS, applied to every image


@dataclasses.dataclass(frozen=True)
class Task:
    """A downstream classification task. All splits share one class list."""

    name: str
    train: sources.Source
    tests: tuple[Test, ...]

    @property
    def num_classes(self) -> int:
        return self.train.num_classes


def digits(config: Any) -> Task:
    """The digits 5 to 9 of scikit-learn's set; out-of-domain are the same test images, shifted in five ways."""
    data = SimpleNamespace(source="digits", path="", name="", classes=(5, 6, 7, 8, 9), num_classes=None)
    test = sources.load(data, "test")
    tests = [Test("test", "id", test)] + [Test(f"test/{s}", "ood", test, s) for s in transforms.SHIFTS]
    return Task("digits", sources.load(data, "train"), tuple(tests))


def directory(config: Any) -> Task:
    """Any prepared directory, described by the keys of `config.downstream`; by default that of pre-training."""
    config, path = config.downstream, config.downstream.path or config.data.path
    if not path:
        raise UserError("the downstream task 'directory' has no path", "set --config.downstream.path=PREPARED_DIR")
    data = SimpleNamespace(source="directory", path=path, name="", classes=tuple(config.classes), num_classes=None)
    if unknown := [shift for shift in config.shifts if shift not in transforms.SHIFTS]:
        raise UserError(f"no shift {unknown[0]!r}", f"downstream.shifts takes {', '.join(transforms.SHIFTS)}")
    if not config.test:
        raise UserError("the downstream task has no test split", "set --config.downstream.test=\"('test',)\"")
    train = sources.load(data, config.train)
    tests = [Test(split, "id", sources.load(data, split)) for split in config.test]
    tests += [Test(split, "ood", sources.load(data, split)) for split in config.ood]
    tests += [Test(f"{t.split}/{s}", "ood", t.source, s) for t in tests if t.domain == "id" for s in config.shifts]
    return Task("directory", train, tuple(tests))


TASKS: dict[str, Callable[[Any], Task]] = {"digits": digits, "directory": directory}


def dataset_of(name: str, config: Any) -> str:
    """What files of class names and prompts call the task's dataset: of "directory" the folder's name, or of the folder
    above where it is that of a version, as TFDS makes them."""
    if name != "directory":
        return name
    folder = Path(config.downstream.path or config.data.path).expanduser().resolve()
    return (folder.parent if re.fullmatch(r"\d+\.\d+\.\d+", folder.name) else folder).name


def check(config: Any, *, data: bool = False) -> None:
    """Refuse tasks that do not exist or cannot be; with `data`, also a dataset that is not there.

    Raises:
        UserError: no such task, no dataset, or a test split that is named twice or that the heads are trained on.
    """
    for name in config.downstream.tasks:
        if name not in TASKS:
            raise UserError(f"no downstream task {name!r}", f"downstream.tasks takes {', '.join(TASKS)}")
    if "directory" in config.downstream.tasks:
        path = config.downstream.path or config.data.path
        if data and not (Path(path).expanduser() / "dataset_info.json").is_file():
            raise UserError(
                f"the downstream task 'directory' has no prepared dataset at {path!r}",
                "set --config.downstream.path=PREPARED_DIR, or leave the later stages out of --config.stages",
            )
        splits = (*config.downstream.test, *config.downstream.ood)
        for split in splits:
            if splits.count(split) > 1:
                raise UserError(f"downstream: the split {split!r} is tested twice", "name it under test or under ood")
            if split in (config.downstream.train, "train"):
                raise UserError(
                    f"downstream: the test split {split!r} is the one that heads are trained on, or named like it",
                    "test on another split",
                )


def load(name: str, config: Any) -> Task:
    """The task of that name.

    Args:
        name: a key of TASKS.
        config: the whole config; a task reads its section `downstream`.

    Raises:
        UserError: no such task, or what its source raises.
    """
    check(config)
    if name not in TASKS:
        raise UserError(f"no downstream task {name!r}", f"downstream.tasks takes {', '.join(TASKS)}")
    return TASKS[name](config)
