"""What happens to a run, in order. Each stage works on a run's folder and can be run alone.

A stage whose inputs have not changed since it finished is skipped. `run.json` in the run's folder keeps the record: the
inputs when a stage begins, its output when it has finished. So an interrupted stage continues only with its own inputs.
"""

import importlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import __version__, console, inputs, runtime, settings
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.processes import peers
from nml_jax.runs.record import read_config, read_record, write_record
from nml_jax.runs.rows import hash_rows, read_rows, write_rows
from nml_jax.stages.stage import Stage

# The stages of a run, in order, and the modules whose STAGE they are; imported when they are needed.
MODULES = {
    "pretrain": "nml_jax.stages.pretrain",
    "features": "nml_jax.stages.features",
    "extract": "nml_jax.stages.extract",
    "zeroshot": "nml_jax.stages.zeroshot",
    "tune": "nml_jax.stages.tune",
    "finetune": "nml_jax.stages.finetune",
    "diagnose": "nml_jax.stages.diagnose",
}
STAGES = tuple(MODULES)
ALL_STAGES = (*STAGES, "report")  # which has no record and no run: it follows over all runs of an experiment


def find_stage(name: str) -> Stage:
    return importlib.import_module(MODULES[name]).STAGE


def check(names: Sequence[str], what: str) -> None:
    """Raises UserError for a name that is no stage."""
    if unknown := [name for name in names if name not in ALL_STAGES]:
        raise UserError(f"{what}: no stage {unknown[0]!r}", f"the stages are {', '.join(ALL_STAGES)}")


def collect_inputs(stage: Stage, config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """All that a stage's numbers depend on: its part of the config (as JSON), files, its version, what is upstream."""
    part = settings.select_keys(config, stage.keys)
    return {
        "config": part,
        "files": {path: inputs.hash_content(Path(path)) for path in inputs.list_paths(part)},
        "version": stage.version,
        "upstream": {up: record["stages"].get(up, {}).get("output", "") for up in stage.upstream},
    }


def inputs_differ(recorded: Any, now: Mapping[str, Any]) -> bool:
    """Whether a stage began with other inputs than those of now. A key that the record lacks has its default."""
    if not isinstance(recorded, Mapping):
        return True
    filled = settings.fill_defaults(recorded.get("config", {}))
    return {**recorded, "config": settings.select_keys(filled, now["config"])} != now


def load_record(workdir: Path) -> dict[str, Any]:
    """The record of a run, with the inputs of its stages.

    Older versions recorded one hash of them, over the keys that there were. These are in config.json, which is as old.
    """
    record = read_record(workdir)
    hashed = [name for name in STAGES if isinstance(record["stages"].get(name, {}).get("inputs"), str)]
    config = read_config(workdir) if hashed else {}
    for name in hashed:
        own, found = record["stages"][name], collect_inputs(find_stage(name), config, record)
        if own["inputs"] == settings.hash_json([found[key] for key in ("config", "files", "version", "upstream")]):
            own["inputs"] = found
    return record


def upgrade_record(workdir: Path) -> None:
    """Record inputs in place of their hashes, before config.json is replaced."""
    if (record := load_record(workdir)) != read_record(workdir):
        write_record(workdir, record)


def is_done(name: str, config: ConfigDict, workdir: Path) -> bool:
    stage, record = find_stage(name), load_record(workdir)
    own = record["stages"].get(name, {})
    if "output" not in own or inputs_differ(own["inputs"], collect_inputs(stage, settings.to_json(config), record)):
        return False
    if own.get("rows", (found := hash_rows(read_rows(workdir), name))) != found:
        console.notice(f"{workdir.name}: of the rows of {name} some were changed or lost; it is done again")
        return False
    return stage.intact(workdir)


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
    stage, record, first = find_stage(name), load_record(workdir), jax.process_index() == 0
    where = f"{workdir.name}: {name}"
    if peers.agree(not force and is_done(name, config, workdir)):
        before = record["stages"][name].get("revision", "")
        changed = f" (by revision {before or 'unknown'}; this is {revision})" if before != revision else ""
        if first:
            console.notice(f"{where} is done, skipped{changed}")
        return False
    own, now = record["stages"].get(name, {}), collect_inputs(stage, settings.to_json(config), record)
    recorded = name in record["stages"]
    changed = recorded and inputs_differ(own.get("inputs"), now)
    redo = force and (not recorded or "output" in own)
    if first and (changed or redo):
        # What is there was made of other inputs, or is not wanted. The record goes first: a kill in between leaves a
        # stage that is not done, never one that is done and has no output.
        with report_disk_errors(workdir):
            _invalidate(workdir, record, name)
            stage.forget(workdir)
    if first:
        record["stages"][name] = {"inputs": now}
        with report_disk_errors(workdir):
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
            "rows": hash_rows(read_rows(workdir), name),
            "version": stage.version,
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": revision,
            "environment": environment,
        }
        with report_disk_errors(workdir):
            if output != own.get("output"):
                stale = {name}
                for later in STAGES[STAGES.index(name) + 1 :]:
                    if stale & set(find_stage(later).upstream):
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
