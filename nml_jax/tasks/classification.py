"""The downstream classification tasks: one training set, and test sets in- and out-of-domain."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax import console, ranges
from nml_jax.data import sources
from nml_jax.data.class_names import compose, list_names
from nml_jax.data.images import transforms
from nml_jax.errors import MissingInput, UserError
from nml_jax.tasks import catalogue, catalogue_tasks, directories, glue, texts
from nml_jax.tasks.glue_sets import GLUE_TASKS
from nml_jax.tasks.task import Task, Test


def load_digits(name: str, splits: tuple[str, str], config: Any) -> Task:
    """Load the digits 5 to 9 of scikit-learn. Out-of-domain tests are the same test images, shifted.

    `splits` are those to train and to test on. More rows to test on, as in "digits_few", show smaller differences.
    Without `downstream.shifts` there are all shifts.
    """
    shifts = list_shifts(config.downstream) or tuple(transforms.SHIFTS)
    train, test = (sources.load("digits", "", split, classes=(5, 6, 7, 8, 9)) for split in splits)
    return Task(name, train, tuple(add_shifts([Test("test", "id", test)], shifts)))


def load_seen_digits(config: Any) -> Task:
    """Load the digits 0 to 2, which configs/digits.py pre-trains on, too. There are no out-of-domain tests.

    Heads learn them, with true labels, from the split that pre-training reads, and are tested on the other one.
    """
    train, test = (sources.load("digits", "", split, classes=(0, 1, 2)) for split in ("train", "test"))
    return Task("digits_seen", train, (Test("test", "id", test),))


def list_shifts(config: Any) -> tuple[str, ...]:
    """Return `downstream.shifts`, checked.

    Raises:
        UserError: there is no such shift.
    """
    if unknown := [name for name in config.shifts if name not in transforms.SHIFTS]:
        raise UserError(f"unknown shift {unknown[0]!r}", f"downstream.shifts takes {', '.join(transforms.SHIFTS)}")
    return config.shifts


def add_shifts(tests: list[Test], shifts: Sequence[str]) -> list[Test]:
    """Return the tests, and after them every in-domain one once more for each shift, out-of-domain."""
    return tests + [Test(f"{t.split}/{s}", "ood", t.source, s) for t in tests if t.domain == "id" for s in shifts]


def load_directory(config: Any) -> Task:
    """Load a prepared directory as the keys of `config.downstream` describe it; by default that of pre-training."""
    config, path = config.downstream, config.downstream.path or config.data.path
    if not path:
        raise UserError("the downstream task 'directory' has no path", "set --config.downstream.path=PREPARED_DIR")
    load = functools.partial(sources.load, "directory", path, classes=config.classes)
    shifts = list_shifts(config)
    if not config.test:
        raise UserError("the downstream task has no test split", "set --config.downstream.test=\"('test',)\"")
    train = load(config.train)
    tests = [Test(split, "id", load(split)) for split in config.test]
    tests += [Test(split, "ood", load(split)) for split in config.ood]
    return Task("directory", train, tuple(add_shifts(tests, shifts)))


def load_texts(config: Any) -> Task:
    """Load the tables that the section `texts` names."""
    train, tests = texts.load(config)
    return Task("texts", train, tuple(Test(split, domain, source) for split, domain, source in tests))


def load_glue(name: str, config: Any) -> Task:
    """Load a task of GLUE from the folder of the section `glue`."""
    train, tests = glue.load(config, name)
    return Task(
        name, train, tuple(Test(t.split, t.domain, t.source, scoring=t.scoring) for t in tests), GLUE_TASKS[name].metric
    )


TASKS: dict[str, Callable[[Any], Task]] = {
    "digits": functools.partial(load_digits, "digits", ("train", "test")),
    "digits_few": functools.partial(load_digits, "digits_few", ("test", "train")),
    "digits_seen": load_seen_digits,
    "directory": load_directory,
    "domainnet": catalogue_tasks.load_domainnet,
    "texts": load_texts,
    **{name: functools.partial(load_glue, name) for name in GLUE_TASKS},
    **{name: functools.partial(catalogue_tasks.load_trained, name) for name in catalogue.TRAINED},
}


def list_tasks(config: Any) -> tuple[str, ...]:
    """List the tasks of a config, where "glue" stands for all tasks whose files are there.

    Raises:
        UserError: none of these is there.
    """
    several = (glue.list_found(config) if name == glue.ALL else [name] for name in config.downstream.tasks)
    return tuple(dict.fromkeys(name for names in several for name in names))


def has_scores(config: Any, name: str) -> bool:
    """Return whether a task is a regression."""
    return config.texts.regression if name == "texts" else name in GLUE_TASKS and glue.is_scored(config, name)


def has_texts(name: str) -> bool:
    """Return whether the rows of a task are texts, not images."""
    return name in ("texts", glue.ALL, *GLUE_TASKS)


def choose_dataset_name(name: str, config: Any) -> str:
    """Choose the name under which files of class names and prompts list the task's dataset.

    For prepared datasets this is the folder's name (name_folder).
    """
    others = directories.read(config)
    if name != "directory" and name not in others:
        return name
    path = others[name].path if name in others else config.downstream.path or config.data.path
    return directories.name_folder(path)


def check_ranges(config: Any) -> None:
    """Raise UserError if a value of the section `downstream` is out of range."""
    ranges.require_names("downstream", config, "tasks")


def check_tasks(config: Any, *, data: bool = False) -> None:
    """Check the downstream tasks of a config; with `data`, also that their datasets exist.

    Raises:
        UserError: a task or dataset does not exist, a test split is named twice, or heads are trained on a test split.
    """
    _check(config, tuple(config.downstream.tasks), data=data)


def _check(config: Any, names: tuple[str, ...], *, data: bool) -> None:
    others = directories.read(config, (*TASKS, glue.ALL))
    for name in names:
        if name not in (*TASKS, glue.ALL, *others):
            takes = ", ".join((*others, *TASKS, glue.ALL))
            raise UserError(f"unknown downstream task {name!r}", f"downstream.tasks takes {takes}")
        if name in GLUE_TASKS and data:
            glue.check(config, name)
    if glue.ALL in names and data:
        for name in glue.list_found(config):
            glue.check(config, name)
    if "texts" in names:
        texts.check_files(config)
    if "directory" in names:
        _check_directory("directory", config, data=data)
    for name in names:
        if name in others:
            _check_directory(name, directories.select(config, others[name]), data=data)
    if {*names} & {"domainnet", *catalogue.TRAINED}:
        catalogue_tasks.check(config.downstream, names)
    for entry, corruption in catalogue_tasks.list_entries(config.downstream, names) if data else ():
        catalogue_tasks.find_folder(config, entry, corruption)


def _check_directory(name: str, config: Any, *, data: bool) -> None:
    path = config.downstream.path or config.data.path
    if data and not (Path(path).expanduser() / "dataset_info.json").is_file():
        key = "--config.downstream.path=PREPARED_DIR" if name == "directory" else "its path in downstream.directories"
        raise MissingInput(
            f"the downstream task {name!r} has no prepared dataset at {path!r}",
            f"set {key}, or leave the later stages out of --config.stages",
        )
    splits = (*config.downstream.test, *config.downstream.ood)
    _require_splits(Path(path).expanduser(), (config.downstream.train, *splits))
    for split in splits:
        if splits.count(split) > 1:
            raise UserError(f"{name}: the split {split!r} is tested twice", "name it under test or under ood")
        if split in (config.downstream.train, "train"):
            raise UserError(
                f"{name}: the test split {split!r} is the training split of the heads, or has its name",
                "test on another split",
            )


def _require_splits(folder: Path, splits: Sequence[str]) -> None:
    """Raise UserError if a prepared dataset is there and lacks one of these splits."""
    if (folder / "dataset_info.json").is_file():
        from nml_jax.data.sources import prepared  # imports TFDS, which takes a second that digits do not need

        info = prepared.open_directory(folder).info
        for split in splits:
            prepared.find_spans(info, compose(split), folder)


def load_task(name: str, config: Any) -> Task:
    """Load a task.

    Args:
        name: a key of TASKS, or a name in `downstream.directories`.
        config: the whole config; a task reads its section `downstream`.

    Raises:
        UserError: the task does not exist, or its datasets are missing or not as expected.
    """
    _check(config, (name, *config.downstream.tasks), data=False)
    if other := directories.read(config).get(name):
        task = dataclasses.replace(load_directory(directories.select(config, other)), name=name)
    else:
        task = TASKS[name](config)
    for test in task.tests:
        if task.num_classes and test.class_map is None and not test.shift:
            _tell_untrained(task, test)
    return task


def _tell_untrained(task: Task, test: Test) -> None:
    """Say if test records are of classes that no training record is of."""
    untrained = np.setdiff1d(np.arange(task.num_classes), task.train.labels)
    untrained = np.intersect1d(untrained, test.source.labels)
    if len(untrained):
        n, names = np.isin(test.source.labels, untrained).sum(), [task.train.class_names[c] for c in untrained]
        console.notice_once(
            f"{task.name}: {n:,} of {len(test.source):,} records of {test.split} are of {list_names(names)}, of which"
            " there is no training record: no head can be right on them"
        )
