"""The downstream classification tasks: one training set, and test sets in- and out-of-domain."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax import console, ranges
from nml_jax.data import sources
from nml_jax.data.class_names import clean_name, compose, list_names
from nml_jax.data.images import transforms
from nml_jax.data.sources.source import Source, select_classes
from nml_jax.errors import MissingInput, UserError
from nml_jax.tasks import catalogue, class_maps, directories, glue, texts
from nml_jax.tasks.catalogue import Entry
from nml_jax.tasks.frames import Frames, read_frames
from nml_jax.tasks.glue_sets import GLUE_TASKS

VERSION = re.compile(r"\d+\.\d+\.\d+")  # name of the folder that TFDS makes for a version


@dataclasses.dataclass(frozen=True)
class Test:
    """One test split of a task.

    Its classes are the task's. With a class map, its labels are test classes of their own, and class_map[i] lists the
    task's classes that test class i stands for (evals/mapped.py).
    """

    __test__ = False  # tells pytest that this is not a test case

    split: str
    domain: str  # "id" or "ood"
    source: Source
    shift: str | None = None  # a key of transforms.SHIFTS, applied to every image
    class_map: class_maps.ClassMap | None = None
    frames: Frames | None = None  # for frames of videos
    scoring: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # further arguments of evals.mapped.Scorer, as JSON values


@dataclasses.dataclass(frozen=True)
class Task:
    """A downstream classification task. All splits have the same classes, except tests with a class map."""

    name: str
    train: Source
    tests: tuple[Test, ...]
    metric: str = "accuracy"  # the customary metric of the dataset

    @property
    def num_classes(self) -> int:
        return self.train.num_classes


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


def load_trained(name: str, config: Any) -> Task:
    """Load a training set of the catalogue, its own test split, and the test sets in `downstream.partners`."""
    entry, chosen = catalogue.TRAINED[name], config.downstream
    split, size = entry.train, entry.n_train
    if chosen.with_validation and entry.full:
        split, size = entry.full, entry.n_full
    train = _open_split(config, entry, split, size)
    tests = [Test("test", "id", _open_split(config, entry, entry.test, entry.n_test))]
    for partner in (partner for partner in entry.partners if partner in chosen.partners):
        tests += _load_partner(config, partner, train)
    return Task(name, train, tuple(tests), entry.metric)


def load_domainnet(config: Any) -> Task:
    """Load one domain of DomainNet to train and test on, and others as out-of-domain tests, named by their domains."""
    chosen = config.downstream
    entries = {name: catalogue.make_domain_entry(name) for name in (chosen.domain_train, *chosen.domain_test)}
    entry = entries[chosen.domain_train]
    train = _open_split(config, entry, "train", entry.n_train)
    tests = []
    for name, entry in entries.items():
        source = _open_split(config, entry, "test", entry.n_test)
        _check_classes(source, train, f"domainnet/{name}")
        tests.append(Test(name, "id" if name == chosen.domain_train else "ood", source))
    return Task("domainnet", train, tuple(tests))


def _load_partner(config: Any, name: str, train: Source) -> list[Test]:
    """Load the tests of an out-of-domain dataset for a head that is trained on `train`."""
    entry = catalogue.PARTNERS[name]
    class_map = class_maps.load_ids(entry.class_map) if entry.class_map else None
    tests = []
    for corruption in _list_corruptions(config.downstream, entry):
        split = f"{name}/{corruption}" if corruption else name
        source = _open_split(config, entry, entry.test.format(corruption), entry.n_test, corruption)
        if class_map is None or entry.subset:
            _check_classes(source, train, split)
        if class_map is not None and entry.subset:
            source = select_classes(source, [c for (c,) in class_map])
        frames = read_frames(_find_folder(config, entry), entry.test) if entry.frames else None
        tests.append(Test(split, "ood", source, class_map=class_map, frames=frames))
    return tests


def _check_classes(source: Source, train: Source, split: str) -> None:
    """Raise UserError unless two sources have the same classes. Names are compared only if both have names."""
    numbers = tuple(map(str, range(train.num_classes)))
    own, others = (tuple(map(clean_name, names)) for names in (source.class_names, train.class_names))
    if source.num_classes != train.num_classes or (own != numbers != others and own != others):
        raise UserError(f"{split} has other classes than the training split", "leave it out, or prepare both again")


def _list_corruptions(chosen: Any, entry: Entry) -> list[str]:
    """List the values for {} in the entry's folder or split; a single empty string if there is no {}."""
    if "{}" not in entry.folder + entry.test:
        return [""]
    return [f"{c}_{s}" for c in chosen.corruptions or catalogue.BENCHMARK for s in chosen.severities]


def _open_split(config: Any, entry: Entry, split: str, size: int, corruption: str = "") -> Source:
    """Open a split of a prepared dataset. Print a notice if its size is not the published one."""
    folder = _find_folder(config, entry, corruption)
    source = sources.load("directory", str(folder), split)
    if source.num_classes != entry.num_classes:
        raise UserError(
            f"{folder} has {source.num_classes} classes, not {entry.num_classes}", f"prepare it again {entry.obtain}"
        )
    if len(source) != size:
        console.notice(f"{folder}: split {split!r} has {len(source):,} records; the published number is {size:,}")
    return source


def _find_folder(config: Any, entry: Entry, corruption: str = "") -> Path:
    """Find the prepared dataset of an entry: the entry's version, else the newest one.

    Raises:
        UserError: it is not prepared.
    """
    folder = Path(config.downstream.catalogue or "~/tensorflow_datasets").expanduser()
    folder /= entry.folder.format(corruption)
    found = [path.parent for path in (*folder.glob("dataset_info.json"), *folder.glob("*.*.*/dataset_info.json"))]
    by_version = {tuple(map(int, p.name.split("."))): p for p in found if VERSION.fullmatch(p.name) and p != folder}
    if folder in found:
        return folder
    if not by_version:
        raise MissingInput(
            f"no prepared dataset in {folder}", f"set --config.downstream.catalogue, or get it {entry.obtain}"
        )
    wanted = tuple(map(int, entry.version.split("."))) if entry.version else ()
    if wanted and wanted not in by_version:
        console.notice(f"{folder}: using version {by_version[max(by_version)].name} instead of {entry.version}")
    return by_version[wanted if wanted in by_version else max(by_version)]


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
    "domainnet": load_domainnet,
    "texts": load_texts,
    **{name: functools.partial(load_glue, name) for name in GLUE_TASKS},
    **{name: functools.partial(load_trained, name) for name in catalogue.TRAINED},
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
    return name_folder(path)


def name_folder(path: str) -> str:
    """Return the name of a prepared dataset's folder, or of the one above that of a version, as TFDS makes it."""
    folder = Path(path).expanduser().resolve()
    return (folder.parent if VERSION.fullmatch(folder.name) else folder).name


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
        _check_catalogue(config.downstream, names)
    for entry, corruption in _list_entries(config.downstream, names) if data else ():
        _find_folder(config, entry, corruption)


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


def _check_catalogue(chosen: Any, names: tuple[str, ...]) -> None:
    """Raise UserError if a key of the catalogue's tasks has a value that none of them takes."""
    fitting = [p for name in names if name in catalogue.TRAINED for p in catalogue.TRAINED[name].partners]
    domains = [chosen.domain_train, *chosen.domain_test]
    for key, values, known in (
        ("partners", chosen.partners, fitting),
        ("corruptions", chosen.corruptions, catalogue.CORRUPTIONS),
        ("severities", chosen.severities, catalogue.SEVERITIES),
        ("domain_train and domain_test", domains, catalogue.DOMAINS),
    ):
        for value in values:
            if value not in known:
                takes = ", ".join(dict.fromkeys(map(str, known))) or "nothing with these tasks"
                raise UserError(f"downstream.{key}: unknown {value!r}", f"it takes {takes}")
            if list(values).count(value) > 1:
                raise UserError(f"downstream.{key}: {value!r} is given twice", "give each value once")
    if not chosen.severities:
        raise UserError("downstream.severities is empty", "give some of 1 to 5")


def _list_entries(chosen: Any, names: tuple[str, ...]) -> list[tuple[Entry, str]]:
    """List every dataset of the catalogue that the chosen tasks need, with its corruption."""
    needed = [(catalogue.TRAINED[name], "") for name in names if name in catalogue.TRAINED]
    if "domainnet" in names:
        needed += [(catalogue.make_domain_entry(name), "") for name in (chosen.domain_train, *chosen.domain_test)]
    partners = [catalogue.PARTNERS[name] for name in chosen.partners] if needed else []
    return needed + [(entry, corruption) for entry in partners for corruption in _list_corruptions(chosen, entry)]


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
