"""The record of a run, run.json: which stages began, of what, and which have finished."""

import json
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError
from nml_jax.runs.files import write_json


def read_record(workdir: Path) -> dict[str, Any]:
    """The content of `run.json`: {"stages": {name: ...}, "environment": {...}}."""
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
        raise UserError(f"{path} is damaged: {e}", "delete it; finished stages are then done again") from e


def write_record(workdir: Path, record: dict[str, Any]) -> None:
    """Replace `run.json`."""
    write_json(workdir / "run.json", record)
