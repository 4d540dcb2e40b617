"""Read a run's config.json, and read and write its run.json, which records the stages begun and finished."""

import json
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError
from nml_jax.runs.files import write_json


def read_record(workdir: Path) -> dict[str, Any]:
    """Read `run.json`: {"stages": {name: ...}, "environment": {...}}.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / "run.json"
    if not path.exists():
        return {"stages": {}, "environment": {}}
    try:
        record = json.loads(path.read_text("utf-8"))
        return {
            "stages": {name: dict(of) for name, of in record["stages"].items()},
            "environment": record["environment"],
        }
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged: {e}", "delete it; finished stages then run again") from e


def read_config(workdir: Path) -> dict[str, Any]:
    """Read `config.json` with the keys it was written with; {} if it cannot be read."""
    try:
        tree = json.loads((workdir / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def write_record(workdir: Path, record: dict[str, Any]) -> None:
    """Replace `run.json`."""
    write_json(workdir / "run.json", record)
