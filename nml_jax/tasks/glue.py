"""The downstream tasks of GLUE, each tested on its dev split and on out-of-domain partners (tasks/glue_sets.py).

Settings are chosen on a part of train, and dev is scored once: the labels of GLUE's test splits are hidden.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nml_jax import console, ranges
from nml_jax.data.sources.sentences import ScoredSentences, Sentences
from nml_jax.data.sources.source import Source
from nml_jax.data.stratify import draw_stratified
from nml_jax.data.text.overlap import describe_overlap
from nml_jax.errors import MissingInput, UserError
from nml_jax.tasks import glue_files
from nml_jax.tasks.glue_files import Part
from nml_jax.tasks.glue_sets import GLUE_TASKS, SETS, Partner

ALL = "glue"  # as a task: every task whose files are there
NONE = "none"  # as the only partner: no out-of-domain test
SEED = 0  # of rows that are drawn, which are the same for every seed: a frozen encoder has one bank
NO_LABEL = "no gold label"  # the class of rows that count as wrong


class GlueTest(NamedTuple):
    """A test of a task: its name, domain ("id" or "ood"), rows, and arguments of `evals.mapped.Scorer`."""

    split: str
    domain: str
    source: Source
    scoring: dict[str, Any]


class Place(NamedTuple):
    """Where rows are: the key of their set, the folder of that, and the names of splits for `find.find_split`."""

    of: str
    home: Path
    splits: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        return [path for split in self.splits for path in glue_files.locate_split(self.home, split)]


def check_ranges(config: Any) -> None:
    """Raise UserError if a value of the section `glue` is out of range."""
    ranges.require_at_least(0, "glue", config, "train_rows", "test_rows")
    for key, known in (("unlabelled", ("drop", "wrong")), ("stsb", ("scores", "classes"))):
        if config[key] not in known:
            raise UserError(f"glue.{key}={config[key]!r}", f"choose one of {', '.join(known)}")
    names = dict.fromkeys(name for task in GLUE_TASKS.values() for name in task.partners)
    if wrong := [name for name in config.partners if name not in (*names, NONE)]:
        raise UserError(f"glue.partners: unknown {wrong[0]!r}", f"it takes {', '.join(names)}, or {NONE}")


def is_asked(config: Any) -> bool:
    """Return whether a config names a task of GLUE, and a folder that is there."""
    folder = Path(config.glue.folder).expanduser()
    return bool(config.glue.folder and folder.is_dir() and {*config.downstream.tasks} & {ALL, *GLUE_TASKS})


def list_found(config: Any) -> list[str]:
    """List the tasks whose training and dev files are in `glue.folder`.

    Raises:
        UserError: there is none.
    """
    folder = _get_folder(config)
    found = [name for name in GLUE_TASKS if _find_places(config, name)]
    if not found:
        raise MissingInput(
            f"{folder} holds none of GLUE's tasks", "give it a folder per task, such as RTE, with train.tsv and dev.tsv"
        )
    return found


def is_scored(config: Any, task: str) -> bool:
    """Return whether a task is a regression."""
    return not SETS[task].classes and config.glue.stsb == "scores"


def check(config: Any, name: str) -> None:
    """Check that the files of a task are there, and that none is trained and tested on.

    Raises:
        UserError: they are not.
    """
    train, tests = require_places(config, name)
    glue_files.require_apart(train.files, {f"{name}: {test.split}": test.place.files for test in tests})


def describe(config: Any) -> list[str]:
    """Describe what is in `glue.folder`, in lines of text: the tasks with their tests, and what is not there."""
    folder, lines = _get_folder(config), []
    for name, task in GLUE_TASKS.items():
        places = _find_places(config, name)
        if not places:
            continue
        train, tests = places
        there = [test.split for test in tests]
        words = ", ".join(f"{test.split} ({test.domain})" for test in tests)
        missing = [partner for partner in task.partners if partner not in there]
        lines.append(f"  {name}: {train.home}; tests {words}" + (f"; no {', '.join(missing)}" if missing else ""))
    absent = [name for name in GLUE_TASKS if not _find_places(config, name)]
    lines += [f"  not there: {', '.join(absent)}"] if absent else []
    return ["", f"tasks of GLUE in {folder}:", *lines]


def load(config: Any, name: str) -> tuple[Source, list[GlueTest]]:
    """Return the training rows of a task, and its tests.

    Raises:
        UserError: a file is missing or damaged, has a label that is none of the set's, or is trained and tested on.
    """
    check(config, name)
    scored, classes = is_scored(config, name), list_classes(config, name)
    place, tests = require_places(config, name)
    train = _read_part(config, name, place, Partner(name), "train")
    train = _draw(train, config.glue.train_rows, f"{name}: train")
    source = _make_source(name, train, classes, scored)
    if tests[0].split == "dev_in":
        console.notice_once(
            f"{name}: in_domain_dev is the in-domain test; GLUE's dev, which holds out_of_domain_dev "
            f"too, is that without cola_out, as with --config.glue.partners=\"('{NONE}',)\""
        )
    out = []
    for split, domain, own, partner in tests:
        part = _read_part(config, name, own, partner, split)
        part = _draw(part, config.glue.test_rows if domain == "ood" else 0, f"{name}: {split}")
        if overlap := describe_overlap(train.texts, part.texts, f"{name}: {split}"):
            console.notice_once(overlap)
        wrong = not scored and bool((part.labels == len(classes)).any())
        own_classes = (*classes, NO_LABEL) if wrong else classes
        scoring: dict[str, Any] = {"never": 1} if wrong else {}
        scoring |= {"ordered": True} if not SETS[name].classes and not scored else {}
        out.append(GlueTest(split, domain, _make_source(name, part, own_classes, scored), scoring))
    return source, out


def list_classes(config: Any, name: str) -> tuple[str, ...]:
    """Return the names of a task's classes; of scores as GLUE-X's five classes their numbers, of a regression ()."""
    return SETS[name].classes or (() if is_scored(config, name) else tuple("01234"))


def _make_source(name: str, part: Part, classes: tuple[str, ...], scored: bool) -> Source:
    return ScoredSentences(part.texts, part.labels, "score") if scored else Sentences(part.texts, part.labels, classes)


def _get_folder(config: Any) -> Path:
    if not config.glue.folder:
        raise UserError("GLUE's tasks have no folder", "set --config.glue.folder=FOLDER, which holds a folder per task")
    if not (folder := Path(config.glue.folder).expanduser()).is_dir():
        raise MissingInput(f"glue.folder: there is no folder {folder}", "give one that holds a folder per task")
    return folder


class Planned(NamedTuple):
    """A test that is not read yet: its name, domain, where it is, and what it is."""

    split: str
    domain: str
    place: Place
    partner: Partner


def require_places(config: Any, name: str) -> tuple[Place, list[Planned]]:
    """Return where a task's training rows and tests are.

    Raises:
        UserError: its training or dev split is missing.
    """
    folder = _get_folder(config)
    if found := _find_places(config, name):
        return found
    of = SETS[name]
    train, dev, _ = of.sizes
    raise MissingInput(
        f"{folder} has no {name} with the splits train and dev",
        f"put a folder {name} there with train.tsv ({train:,} rows) and dev.tsv ({dev:,} rows), from {of.url}",
    )


def _find_places(config: Any, name: str) -> tuple[Place, list[Planned]] | None:
    key = (str(_get_folder(config).resolve()), name, tuple(config.glue.partners))
    return _find_once(*key)


@functools.lru_cache(maxsize=64)
def _find_once(folder: str, name: str, chosen: tuple[str, ...]) -> tuple[Place, list[Planned]] | None:
    task, tests = GLUE_TASKS[name], []
    home = glue_files.locate_set(folder, SETS[name])
    if home is None or not glue_files.locate_split(home, "train"):
        return None
    for test, partner in task.partners.items():
        if chosen and test not in chosen:
            continue
        if splits := _find_partner(folder, partner):
            tests.append(Planned(test, "ood", splits, partner))
    dev = task.dev
    if any(test.split == "cola_out" for test in tests):  # GLUE's dev is both, and a test is not in- and out-of-domain
        dev = "dev in"
    if not glue_files.locate_split(home, dev):
        return None
    own = Planned(dev.replace(" ", "_"), "id", Place(name, home, (dev,)), Partner(name))
    return Place(name, home, ("train",)), [own, *tests]


def _find_partner(folder: str, partner: Partner) -> Place | None:
    """Return where the rows of a partner are; None if its files are not there."""
    home = glue_files.locate_set(folder, SETS[partner.of])
    if home is None:
        return None
    if partner.part == "dev out" and not glue_files.locate_split(home, "dev in"):
        return None  # the in-domain test would hold it
    names = (partner.part,) if partner.part else SETS[partner.of].joined
    splits = tuple(split for split in names if glue_files.locate_split(home, split))
    return Place(partner.of, home, splits) if splits else None


def _read_part(config: Any, name: str, place: Place, partner: Partner, test: str) -> Part:
    """Read rows as a task's: classes by its numbers, rows without a label left out, or as the class after the others.

    Raises:
        UserError: no row has a label.
    """
    of, scored = SETS[place.of], not SETS[name].classes
    parts = [glue_files.read_split(place.home, of, split, scored=scored) for split in place.splits]
    parts = [part for part in parts if len(part.labels)]  # GLUE-X joins the splits with labels
    if not parts:
        raise UserError(
            f"{place.home}: no row of {place.splits[0]} has a label: they are hidden",
            "give a split with labels; those of GLUE's test splits are on its own server",
        )
    texts = [text for part in parts for text in part.texts]
    labels = np.concatenate([part.labels for part in parts])
    hidden = sum(part.hidden for part in parts)
    wrong = config.glue.unlabelled == "wrong" and test != "train" and not scored
    if hidden:
        what = "count as wrong" if wrong else "are left out"
        console.notice_once(f"{name}: {test}: {hidden:,} rows without a label {what}, of {hidden + len(labels):,}")
    _compare_size(name, test, place, len(labels) + hidden * wrong)
    if scored:
        return Part(texts, labels if config.glue.stsb == "scores" else round_scores(labels, of.bounds))
    numbers = np.append(_map_classes(name, place.of, partner), len(SETS[name].classes))
    if wrong:
        texts, labels = (
            texts + [text for part in parts for text in part.without],
            np.pad(labels, (0, hidden), constant_values=-1),
        )
    return Part(texts, numbers[labels].astype(np.int32))


def _map_classes(name: str, of: str, partner: Partner) -> np.ndarray:
    """Return the task's number for each class of a partner, int [K'].

    Raises:
        UserError: a class stands for none of the task's.
    """
    own, found = SETS[name].classes, []
    for word in SETS[of].classes:
        if (mapped := partner.classes.get(word, word)) not in own:
            raise UserError(f"{name}: class {word!r} of {of} stands for none of its classes", "add it to the table")
        found.append(own.index(mapped))
    return np.array(found)


def round_scores(scores: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Return GLUE-X's five classes of scores, int32 [N]: round(score / 1.25) of 0 to 5, round(score − 1) of 1 to 5.

    Halves go to the even class, as Python rounds.
    """
    low, high = bounds
    return np.rint((np.float64(scores) - low) * 4 / (high - low)).astype(np.int32)


def _draw(part: Part, most: int, what: str) -> Part:
    """Return at most so many rows, the same for every seed, stratified by class; 0: all."""
    if not most or len(part.texts) <= most:
        return part
    strata = part.labels if part.labels.dtype.kind != "f" else np.zeros(len(part.labels), np.int32)
    rows = draw_stratified(strata, most / len(part.labels), SEED)
    console.notice_once(f"{what}: {len(rows):,} of {len(part.texts):,} rows are taken, the same for every seed")
    return Part([part.texts[i] for i in rows], part.labels[rows])


def _compare_size(name: str, split: str, place: Place, rows: int) -> None:
    """Print a notice where a set has another number of rows than is published."""
    of = SETS[place.of]
    one = {"train": of.sizes[0], "dev": of.sizes[1], "dev matched": of.sizes[1]}
    known = one.get(place.splits[0], 0) if place.of == name else of.labelled
    if known and rows != known:
        console.notice_once(f"{name}: {split} has {rows:,} rows with labels; the published number is {known:,}")
