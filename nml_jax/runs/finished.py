"""Finished runs, read from their folders."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError
from nml_jax.noise import Ledger
from nml_jax.runs.metrics import read_metrics
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

    @property
    def seed(self) -> Seed:
        """(seed, noise seed): what pairs runs of two conditions."""
        return self.config["seed"], self.config["noise_seed"]

    def value(self, key: str) -> Any:
        """Of a key of the config; None where an older run does not have it."""
        return self.config[key] if key in self.config else None  # noqa: SIM401

    @property
    def noise_kind(self) -> str:
        return self.ledger.get("kind", "unknown")

    @property
    def noise(self) -> float:
        """Asked share of wrong supervision; realised where the kind fixes its own; NaN for weights from elsewhere."""
        known = [self.ledger.get("asked"), self.ledger.get("realised")]
        return next((float(value) for value in known if value is not None), float("nan"))


def list_runs(folder: Path) -> list[Path]:
    """The runs below an experiment's folder (or the folder itself, if it is a run), by name."""
    if (folder / "config.json").exists():
        return [folder]
    return sorted(p.parent for p in folder.glob("*/config.json"))


def read_finished(folders: Sequence[Path]) -> tuple[list[FinishedRun], dict[str, str]]:
    """The finished runs below `folders` (experiment folders or runs), and why each other run is not counted.

    Raises:
        UserError: a folder does not exist, or a file of a finished run is broken.
    """
    cells, left_out, seen = [], {}, {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder", "name the folder of an experiment, as in runs/digits")
        for path in dict.fromkeys(path.resolve() for path in list_runs(folder)):
            name = f"{path.parent.name}/{path.name}"
            tree, run = _read(path / "config.json"), _read(path / "run.json", {})
            if "stages" not in tree:
                left_out[name] = "no run: config.json is not one of ours"
                continue
            tree = fill_defaults(tree)
            done = _stages(path / "run.json", run)
            wanted = dict.fromkeys([*(stage for stage in tree["stages"] if stage != "report"), *done])
            missing = [stage for stage in wanted if "output" not in done.get(stage, {})]
            identity = hash_json({key: value for key, value in tree.items() if key not in NOT_IDENTITY})
            if seen.get(identity) == path:  # named twice on the command line
                continue
            if missing or not (path / "rows.jsonl").exists():
                left_out[name] = f"unfinished, {' and '.join(missing) or 'every stage'} to do"
            elif identity in seen:
                left_out[name] = f"the same config as {seen[identity].parent.name}/{seen[identity].name}, counted once"
            else:
                seen[identity] = path
                metrics, ledger = read_metrics(path), _ledger(path / "noise.json")
                more = [_read(path / f"{file}.json", []) for file in ("spectra", "diagnosis")]
                cells.append(
                    FinishedRun(name, path, dict(flatten(tree)), run, _rows(path, done), ledger, metrics, *more)
                )
    return cells, left_out


def _stages(path: Path, run: Any) -> dict[str, dict[str, Any]]:
    """What `run.json` says of every stage."""
    try:
        return {name: dict(of) for name, of in run.get("stages", {}).items()}
    except (AttributeError, TypeError, ValueError) as e:
        raise UserError(f"{path} is damaged: {e}", _cure(path)) from e


def _rows(path: Path, done: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    rows = read_rows(path)
    for stage, record in done.items():
        if record.get("rows", (found := hash_rows(rows, stage))) != found:
            cure = f"run the command of the run {path.name} again: it does the stage anew"
            raise UserError(f"{path / 'rows.jsonl'}: rows of the stage {stage} were changed or lost", cure)
    return rows


def _ledger(path: Path) -> dict[str, Any]:
    return Ledger.read(path).to_dict() if path.exists() else {}


def _read(path: Path, missing: Any = None) -> Any:
    return missing if missing is not None and not path.exists() else _parsed(path, path.read_text("utf-8"))


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as e:
        raise UserError(f"{path} is no JSON: {e}", _cure(path)) from e


def _cure(path: Path) -> str:
    return f"delete it; the command of the run {path.parent.name} makes it anew"
