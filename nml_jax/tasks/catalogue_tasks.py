"""Load the tasks of the catalogue: the training sets with their out-of-domain partners, and DomainNet."""

from pathlib import Path
from typing import Any

from nml_jax import console
from nml_jax.data import sources
from nml_jax.data.class_names import clean_name
from nml_jax.data.sources.source import Source, select_classes
from nml_jax.errors import MissingInput, UserError
from nml_jax.tasks import catalogue, class_maps
from nml_jax.tasks.catalogue import Entry
from nml_jax.tasks.directories import VERSION
from nml_jax.tasks.frames import read_frames
from nml_jax.tasks.task import Task, Test


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
        frames = read_frames(find_folder(config, entry), entry.test) if entry.frames else None
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
    folder = find_folder(config, entry, corruption)
    source = sources.load("directory", str(folder), split)
    if source.num_classes != entry.num_classes:
        raise UserError(
            f"{folder} has {source.num_classes} classes, not {entry.num_classes}", f"prepare it again {entry.obtain}"
        )
    if len(source) != size:
        console.notice(f"{folder}: split {split!r} has {len(source):,} records; the published number is {size:,}")
    return source


def find_folder(config: Any, entry: Entry, corruption: str = "") -> Path:
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


def check(chosen: Any, names: tuple[str, ...]) -> None:
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


def list_entries(chosen: Any, names: tuple[str, ...]) -> list[tuple[Entry, str]]:
    """List every dataset of the catalogue that the chosen tasks need, with its corruption."""
    needed = [(catalogue.TRAINED[name], "") for name in names if name in catalogue.TRAINED]
    if "domainnet" in names:
        needed += [(catalogue.make_domain_entry(name), "") for name in (chosen.domain_train, *chosen.domain_test)]
    partners = [catalogue.PARTNERS[name] for name in chosen.partners] if needed else []
    return needed + [(entry, corruption) for entry in partners for corruption in _list_corruptions(chosen, entry)]
