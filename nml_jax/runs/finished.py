"""Read finished runs from their folders."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nml_jax.console import list_words
from nml_jax.errors import UserError
from nml_jax.noise import Ledger
from nml_jax.runs.metrics import read_metrics
from nml_jax.runs.record import read_record
from nml_jax.runs.rows import Row, hash_rows, read_rows
from nml_jax.settings import NOT_IDENTITY, fill_defaults, flatten, hash_json

Seed = tuple[int, int]


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
    features: dict[str, Any] = dataclasses.field(default_factory=dict)

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

    Raises:
        UserError: a folder does not exist, or a file of a finished run is broken.
    """
    cells, left_out, seen = [], {}, {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder", "give the folder of an experiment, as in runs/digits")
        for path in dict.fromkeys(path.resolve() for path in list_runs(folder)):
            name = f"{path.parent.name}/{path.name}"
            tree, run = _read(path / "config.json"), read_record(path)
            if "stages" not in tree:
                left_out[name] = "not a run of nml_jax: its config.json has no stages"
                continue
            tree = fill_defaults(tree)
            done = run["stages"]
            wanted = dict.fromkeys([*(stage for stage in tree["stages"] if stage != "report"), *done])
            missing = [stage for stage in wanted if "output" not in done.get(stage, {})]
            identity = hash_json({key: value for key, value in tree.items() if key not in NOT_IDENTITY})
            if seen.get(identity) == path:  # named twice on the command line
                continue
            if missing or not (path / "rows.jsonl").exists():
                left_out[name] = f"unfinished, {list_words(missing) or 'every stage'} to do"
            elif identity in seen:
                left_out[name] = f"the same config as {seen[identity].parent.name}/{seen[identity].name}, counted once"
            else:
                seen[identity] = path
                metrics, ledger = read_metrics(path), _read_ledger(path / "noise.json")
                more = [_read(path / f"{file}.json", []) for file in ("spectra", "diagnosis")]
                more.append(_read(path / "features.json", {}))
                cells.append(
                    FinishedRun(name, path, dict(flatten(tree)), run, _read_rows(path, done), ledger, metrics, *more)
                )
    return cells, left_out


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


def _read(path: Path, missing: Any = None) -> Any:
    """Read a JSON file; `missing`, if given, stands for a file that does not exist."""
    if missing is not None and not path.exists():
        return missing
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON: {e}", _cure(path)) from e


def _cure(path: Path) -> str:
    return f"delete it; the command of the run {path.parent.name} writes it again"
