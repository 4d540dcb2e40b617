"""What happens, in order. Each stage is `run(config, workdir, mesh)` over a run's folder and can be run alone.

A stage is a module with
    VERSION   raised when the same inputs give other numbers
    KEYS      the top-level keys of the config that it reads
    UPSTREAM  the stages whose output it reads
    check(config, mesh, data=True)  refuses what can only fail later, before anything is run; `data`: and what is not
        there to be read
    run(config, workdir, mesh) -> digest of what it produced
    intact(workdir)  whether what it produced is still there
    forget(workdir)  removes what it produced
A stage whose inputs have not changed since it finished is skipped. `run.json` in the run's folder keeps the record: the
inputs when a stage begins, its output when it has finished. So an interrupted stage continues only with its own inputs.
"""

import importlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import __version__, console, inputs, runtime, settings
from nml_jax.errors import UserError, storing
from nml_jax.processes import peers
from nml_jax.runs.record import read_record, write_record
from nml_jax.runs.rows import hash_rows, write_rows

# Stages of one run. "report" follows over all runs of an experiment; its `run` takes the experiment's folder.
STAGES = ("pretrain", "features", "extract", "zeroshot", "tune", "finetune", "diagnose")
ALL_STAGES = (*STAGES, "report")


def module(name: str) -> ModuleType:
    return importlib.import_module(f"nml_jax.stages.{name}")


def check(names: Sequence[str], what: str) -> None:
    """Raises UserError for a name that is no stage."""
    if unknown := [name for name in names if name not in ALL_STAGES]:
        raise UserError(f"{what}: no stage {unknown[0]!r}", f"the stages are {', '.join(ALL_STAGES)}")


def hash_inputs(name: str, config: ConfigDict, record: dict[str, Any]) -> str:
    """SHA-256 of all a stage's numbers depend on: its part of the config, files, its version, what is upstream."""
    stage = module(name)
    upstream = {up: record["stages"].get(up, {}).get("output", "") for up in stage.UPSTREAM}
    part = settings.select_keys(settings.to_json(config), stage.KEYS)
    files = {path: inputs.hash_content(Path(path)) for path in inputs.list_paths(part)}
    return settings.hash_json([part, files, stage.VERSION, upstream])


def is_done(name: str, config: ConfigDict, workdir: Path) -> bool:
    record = read_record(workdir)
    own = record["stages"].get(name, {})
    if "output" not in own or own["inputs"] != hash_inputs(name, config, record):
        return False
    if own.get("rows", (found := hash_rows(workdir, name))) != found:
        console.notice(f"{workdir.name}: of the rows of {name} some were changed or lost; it is done again")
        return False
    return module(name).intact(workdir)


def run(name: str, config: ConfigDict, workdir: Path, mesh: Mesh, *, revision: str = "", force: bool = False) -> bool:
    """Run one stage of one run, unless it is done already.

    Args:
        name: of STAGES.
        config: of the run, resolved.
        workdir: the run's folder.
        revision: of the code; recorded, and a change is said.
        force: do a finished stage again; one that was interrupted continues.

    Returns:
        Whether it ran.
    """
    stage, record, first = module(name), read_record(workdir), jax.process_index() == 0
    where = f"{workdir.name}: {name}"
    if peers.agree(not force and is_done(name, config, workdir)):
        before = record["stages"][name].get("revision", "")
        changed = f" (by revision {before or 'unknown'}; this is {revision})" if before != revision else ""
        if first:
            console.notice(f"{where} is done, skipped{changed}")
        return False
    own, now = record["stages"].get(name, {}), hash_inputs(name, config, record)
    recorded = name in record["stages"]
    changed, redo = recorded and own.get("inputs") != now, force and (not recorded or "output" in own)
    if first and (changed or redo):
        # What is there was made of other inputs, or is not wanted. The record goes first: a kill in between leaves a
        # stage that is not done, never one that is done and has no output.
        with storing(workdir):
            _invalidate(workdir, record, name)
            stage.forget(workdir)
    if first:
        record["stages"][name] = {"inputs": now}
        with storing(workdir):
            write_record(workdir, record)
    peers.agree(True)  # the others look when what is not to be there is gone
    begun = time.perf_counter()
    output = stage.run(config, workdir, mesh)
    seconds = time.perf_counter() - begun
    if first:
        environment = {**runtime.describe_environment(), "nml_jax": __version__, "revision": revision}
        if name == STAGES[0] or not record["environment"]:
            record["environment"] = environment
        record["stages"][name] |= {
            "output": output,
            "rows": hash_rows(workdir, name),
            "version": stage.VERSION,
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": revision,
            "environment": environment,
        }
        with storing(workdir):
            if output != own.get("output"):
                stale = {name}
                for later in STAGES[STAGES.index(name) + 1 :]:
                    if stale & set(module(later).UPSTREAM):
                        stale.add(later)
                        if later in record["stages"]:
                            _invalidate(workdir, record, later)
            write_record(workdir, record)
    if first:
        console.notice(f"{where} finished in {console.format_seconds(seconds)}")
    return True


def _invalidate(workdir: Path, record: dict[str, Any], name: str) -> None:
    """Put on record that what a stage has left is of no use, and take its rows away."""
    record["stages"][name] = {}
    write_record(workdir, record)
    write_rows(workdir, name, [])
