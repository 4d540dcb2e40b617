"""What happens, in order. Each stage is `run(config, workdir, mesh)` over a run's folder and can be run alone.

A stage is a module with
    VERSION   raised when the same inputs give other numbers
    KEYS      the top-level keys of the config that it reads
    UPSTREAM  the stages whose output it reads
    run(config, workdir, mesh) -> digest of what it produced
    forget(workdir)  removes what it produced
A stage whose inputs have not changed since it finished is skipped. `run.json` in the run's folder keeps the record.
"""

import importlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import __version__, log, runtime, settings
from nml_jax.errors import UserError, storage

# Stages of one run. "report" follows over all runs of an experiment; its `run` takes the experiment's folder.
STAGES = ("pretrain", "extract", "tune")
ALL_STAGES = (*STAGES, "report")


def module(name: str) -> ModuleType:
    return importlib.import_module(f"nml_jax.stages.{name}")


def check(names: Sequence[str], what: str) -> None:
    """Raises UserError for a name that is no stage."""
    if unknown := [name for name in names if name not in ALL_STAGES]:
        raise UserError(f"{what}: no stage {unknown[0]!r}", f"the stages are {', '.join(ALL_STAGES)}")


def read_record(workdir: Path) -> dict[str, Any]:
    """The content of `run.json`: {"stages": {name: ...}, "environment": {...}}."""
    path = workdir / "run.json"
    if not path.exists():
        return {"stages": {}, "environment": {}}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is damaged: {e}", "delete it; finished stages are then done again") from e


def inputs(name: str, config: ConfigDict, record: dict[str, Any]) -> str:
    """SHA-256 of all that a stage's numbers depend on: its part of the config, its version, what is upstream."""
    stage = module(name)
    upstream = {up: record["stages"].get(up, {}).get("output", "") for up in stage.UPSTREAM}
    return settings.sha([settings.part(settings.to_json(config), stage.KEYS), stage.VERSION, upstream])


def is_done(name: str, config: ConfigDict, workdir: Path) -> bool:
    record = read_record(workdir)
    return record["stages"].get(name, {}).get("inputs") == inputs(name, config, record)


def run(name: str, config: ConfigDict, workdir: Path, mesh: Mesh, *, revision: str = "", force: bool = False) -> bool:
    """Run one stage of one run, unless it is done already.

    Args:
        name: of STAGES.
        config: of the run, resolved.
        workdir: the run's folder.
        revision: of the code; recorded, and a change is said.
        force: forget what the stage produced and do it again.

    Returns:
        Whether it ran.
    """
    stage, record = module(name), read_record(workdir)
    where = f"{workdir.name}: {name}"
    if runtime.agree(not force and is_done(name, config, workdir)):
        before = record["stages"][name].get("revision", "")
        changed = f" (by revision {before or 'unknown'}; this is {revision})" if before != revision else ""
        log.say(f"{where} is done, skipped{changed}")
        return False
    if (force or name in record["stages"]) and jax.process_index() == 0:
        # Not merely interrupted: what is there was made of other inputs, or is not wanted. The record goes first, so
        # that a kill in between leaves a stage that is not done, never one that is done and has no output.
        record["stages"].pop(name, None)
        with storage(workdir):
            log.write_json(workdir / "run.json", record)
            stage.forget(workdir)
    begun = time.perf_counter()
    output = stage.run(config, workdir, mesh)
    seconds = time.perf_counter() - begun
    if jax.process_index() == 0:
        record["stages"][name] = {
            "inputs": inputs(name, config, record),
            "output": output,
            "version": stage.VERSION,
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": revision,
        }
        record["environment"] = {**runtime.environment(), "nml_jax": __version__, "revision": revision}
        with storage(workdir):
            log.write_json(workdir / "run.json", record)
    log.say(f"{where} finished in {log.clock(seconds)}")
    return True
