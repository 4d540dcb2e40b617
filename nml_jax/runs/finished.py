"""Read finished runs from their folders."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nml_jax.console import list_words
from nml_jax.errors import UserError
from nml_jax.noise import Ledger
from nml_jax.runs.classes import Counts, read_counts
from nml_jax.runs.metrics import read_metrics
from nml_jax.runs.record import check_files, read_record
from nml_jax.runs.rows import Row, hash_rows, read_rows
from nml_jax.settings import NOT_IDENTITY, check_stored, flatten, hash_json
from nml_jax.stored import make_damage, read_json, require_fields

Seed = tuple[int, int]
T = TypeVar("T")

TRIES, PAUSE = 20, 0.2  # readings of a run that changes, and the seconds between them


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """One finished run. `config` has dotted keys; the other fields are its files as read."""

    name: str
    folder: Path
    config: dict[str, Any]
    run: dict[str, Any]
    rows: list[Row]
    ledger: dict[str, Any]
    metrics: list[dict[str, float]]
    spectra: list[dict[str, Any]]
    diagnosis: list[dict[str, Any]]
    label_errors: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    features: dict[str, Any] = dataclasses.field(default_factory=dict)
    counts: Counts = dataclasses.field(default_factory=dict)

    def count_classes(self, task: str, split: str) -> dict[str, int]:
        """Return the number of records of each class of a split, of feature files or of a task; {} if not on record."""
        own = self.counts.get(f"{task}/{split}")
        if own is None and self.features:
            own = self.counts.get(split)
        return dict(own or {})

    @property
    def seed(self) -> Seed:
        """(seed, noise seed). Runs of two conditions are paired by it."""
        return self.config["seed"], self.config["noise_seed"]

    def value(self, key: str) -> Any:
        """Return the value of a config key; None if an older run does not have it."""
        return self.config[key] if key in self.config else None  # noqa: SIM401

    @property
    def noise_kind(self) -> str:
        """Kind of noise in the ledger."""
        return self.ledger.get("kind", "unknown")

    @property
    def noise(self) -> float:
        """Share of wrong supervision: the asked one, else the realised one; NaN if neither is known."""
        known = [self.ledger.get("asked"), self.ledger.get("realised")]
        return next((float(value) for value in known if value is not None), float("nan"))


def list_runs(folder: Path) -> list[Path]:
    """List the runs below an experiment's folder, by name. A run's own folder gives that run."""
    if (folder / "config.json").exists():
        return [folder]
    return sorted(p.parent for p in folder.glob("*/config.json"))


def read_finished(folders: Sequence[Path]) -> tuple[list[FinishedRun], dict[str, str]]:
    """Read the finished runs below `folders` (experiments or runs). Also return why each other run is left out.

    Runs may be at work. A run that changes while it is read is read again.

    Raises:
        UserError: a folder does not exist, or a file of a finished run is broken.
    """
    cells, left_out, seen = [], {}, {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder", "give the folder of an experiment, as in runs/digits")
        for path in dict.fromkeys(path.resolve() for path in list_runs(folder)):
            name = f"{path.parent.name}/{path.name}"
            found = read_steadily(path, functools.partial(_read_run, name, path))
            if isinstance(found, str):
                left_out[name] = found
                continue
            identity, cell = found
            if seen.get(identity) == path:  # named twice on the command line
                continue
            if identity in seen:
                left_out[name] = f"the same config as {seen[identity].parent.name}/{seen[identity].name}, counted once"
            else:
                seen[identity] = path
                cells.append(cell)
    return cells, left_out


def read_steadily(path: Path, read: Callable[[], T]) -> T:
    """Return what `read` reads of a run. If the run's record changed meanwhile, read again.

    The record changes before a stage replaces its files, and after it has written them. So what was read between two
    equal records belongs together.

    Raises:
        UserError: a file is broken although nobody writes, or the run never stands still.
    """
    for _ in range(TRIES):
        before = _read_raw(path)
        try:
            found = read()
        except (UserError, OSError) as e:
            if _read_raw(path) == before:
                raise _name_error(e, path) from e
        else:
            if _read_raw(path) == before:
                return found
        time.sleep(PAUSE)
    raise UserError(f"{path} changed {TRIES} times while it was read", "wait until the run is finished")


def _read_raw(path: Path) -> bytes | None:
    """Return the bytes of a run's record; None if it has none."""
    try:
        return (path / "run.json").read_bytes()
    except OSError:
        return None


def _name_error(error: UserError | OSError, path: Path) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"cannot read {error.filename or path}: {error.strerror}", "check the disk and the permissions")


def _read_run(name: str, path: Path) -> str | tuple[str, FinishedRun]:
    """Read a run. Return its identity and the run, or why it is left out."""
    tree, run = read_json(path / "config.json", _cure(path / "config.json"), dict[str, Any]), read_record(path)
    if "stages" not in tree:
        return "not a run of nml_jax: its config.json has no stages"
    tree = check_stored(tree, path / "config.json")
    done = run["stages"]
    wanted = dict.fromkeys([*(stage for stage in tree["stages"] if stage != "report"), *done])
    missing = [stage for stage in wanted if "output" not in done.get(stage, {})]
    if missing or not (path / "rows.jsonl").exists():
        return f"unfinished, {list_words(missing) or 'every stage'} to do"
    identity = hash_json({key: value for key, value in tree.items() if key not in NOT_IDENTITY})
    rows = _read_rows(path, done)
    check_files(path, run)
    _check_config(path / "config.json", tree, rows)
    metrics, ledger = read_metrics(path), _read_ledger(path / "noise.json")
    _check_ledger(path / "noise.json", ledger, rows)
    spectra, diagnosis, labels = (_read_entries(path / f"{file}.json", kinds) for file, kinds in ENTRIES.items())
    features = path / "features.json"
    read = read_json(features, _cure(features), dict[str, Any]) if features.exists() else {}
    config = dict(flatten(tree))
    entries = spectra, diagnosis, labels
    return identity, FinishedRun(name, path, config, run, rows, ledger, metrics, *entries, read, read_counts(path))


def _read_rows(path: Path, done: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Read a run's rows and check them against the digests in `run.json`."""
    rows = read_rows(path)
    for stage, actual in hash_rows(path, done).items():
        if done[stage].get("rows", actual) != actual:
            cure = f"run the command of the run {path.name} again: it repeats the stage"
            raise UserError(f"{path / 'rows.jsonl'}: rows of the stage {stage} were changed or lost", cure)
    return rows


def _read_ledger(path: Path) -> dict[str, Any]:
    return Ledger.read(path).to_dict() if path.exists() else {}


def _check_config(path: Path, tree: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Check the seeds and the noise of a run's config against its rows, by which runs are grouped and paired.

    Raises:
        UserError: they differ.
    """
    for row in rows:
        told: dict[str, float] = {"seed": row.seed, "noise_seed": row.noise_seed}
        if row.stage == "pretrain" and row.noise_asked is not None:
            told["noise"] = row.noise_asked
        for key in (key for key in told if tree[key] != told[key]):
            raise UserError(f"{path} has changed: {key} is {tree[key]}, and {told[key]} in the rows", _cure(path))


def _check_ledger(path: Path, ledger: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Check the ledger against the rows of the training. Both hold the rates, also in runs without hashes.

    Raises:
        UserError: they differ.
    """
    for row in (row for row in rows if row.stage == "pretrain" and ledger):
        told = {"kind": row.noise_kind, "asked": row.noise_asked, "realised": row.noise_realised}
        for key in (key for key in told if ledger[key] != told[key]):
            raise UserError(f"{path} has changed: {key} is {ledger[key]}, and {told[key]} in the rows", _cure(path))


# The files that hold a list of entries, and the types of the fields that reports read.
ENTRIES = {
    "spectra": {"task": str, "split": str, "domain": str, "layer": str, "mode": str, "s": list[float]},
    "diagnosis": {
        "task": str, "layer": str, "verdict": str, "measures": dict[str, float], "probe": list[float],
        "nmtune": list[float], "interval": list[float], "n": int, "dim": int, "num_classes": int, "rows": int,
        "classes": int, "untold": str,
    },
    "label_errors": {
        "task": str, "layer": str, "untold": str, "rows": int, "suspects": int, "share": float,
        "interval": list[float], "pairs": list[dict[str, Any]],
    },
}  # fmt: skip


def _read_entries(path: Path, kinds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read a list of entries; none if there is no file."""
    if not path.exists():
        return []
    entries = read_json(path, _cure(path), list[dict[str, Any]])
    try:
        for entry in entries:
            require_fields(entry, kinds)
    except TypeError as e:
        raise make_damage(path, e, _cure(path)) from e
    return entries


def _cure(path: Path) -> str:
    return f"delete it; the command of the run {path.parent.name} writes it again"
