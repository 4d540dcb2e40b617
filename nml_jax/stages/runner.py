"""Run the stages of a run in order. Each stage works on the run's folder and can be run alone.

A stage is skipped if its inputs have not changed since it finished. `run.json` in the run's folder records the inputs
when a stage begins and the output when it ends. An interrupted stage therefore continues only with its own inputs.
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
from nml_jax.runs.record import find_changed, hash_files, name_run, read_config, read_record, write_record
from nml_jax.runs.rows import hash_rows, read_rows, write_rows
from nml_jax.stages.stage import Stage

# The stages in order, with the modules that define their STAGE. A module is imported when it is needed.
MODULES = {
    "pretrain": "nml_jax.stages.pretrain",
    "features": "nml_jax.stages.features",
    "extract": "nml_jax.stages.extract",
    "zeroshot": "nml_jax.stages.zeroshot",
    "tune": "nml_jax.stages.tune",
    "finetune": "nml_jax.stages.finetune",
    "detect": "nml_jax.stages.detect",
    "diagnose": "nml_jax.stages.diagnose",
}
STAGES = tuple(MODULES)
ALL_STAGES = (*STAGES, "report")  # the report covers all runs of an experiment, so it has no record in a run


def find_stage(name: str) -> Stage:
    """Import and return a stage."""
    return importlib.import_module(MODULES[name]).STAGE


def check(names: Sequence[str], what: str) -> None:
    """Raise UserError if a name is not a stage. `what` names the setting or flag."""
    if unknown := [name for name in names if name not in ALL_STAGES]:
        raise UserError(f"{what}: no stage {unknown[0]!r}", f"choose from {', '.join(ALL_STAGES)}")


def collect_inputs(stage: Stage, config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Collect all that a stage's numbers depend on: its keys of the config, its files, its version, stages upstream."""
    part = settings.select_keys(config, stage.keys)
    return {
        "config": part,
        "files": {path: inputs.hash_content(Path(path)) for path in inputs.list_paths(part)} | inputs.find_rules(part),
        "version": stage.version,
        "upstream": {up: record["stages"].get(up, {}).get("output", "") for up in stage.upstream},
    }


# The parts of a stage's inputs, in words.
PARTS = {
    "config": "its config",
    "files": "the content of a file",
    "version": "the program",
    "upstream": "a stage before",
}


def inputs_differ(stage: Stage, recorded: Any, now: Mapping[str, Any]) -> bool:
    """Return whether the recorded inputs of a stage differ from those of now. A missing key has its default.

    The stage's lists may differ.
    """
    return bool(_list_differences(stage, recorded, now))


def _list_differences(stage: Stage, recorded: Any, now: Mapping[str, Any]) -> list[str]:
    """List, in words, which parts of a stage's inputs differ."""
    if not isinstance(recorded, Mapping):
        return ["its inputs"]
    filled = settings.select_keys(settings.fill_defaults(recorded.get("config", {})), stage.keys)
    old, new = (
        {key: value for key, value in settings.flatten(part) if key not in stage.lists}
        for part in (filled, now["config"])
    )
    old, new = {**recorded, "config": old}, {**now, "config": new}
    return [words for part, words in PARTS.items() if old.get(part) != new[part]]


def load_record(workdir: Path) -> dict[str, Any]:
    """Read the record of a run, with the inputs of its stages.

    Older versions recorded a hash of the inputs. Recompute them from config.json, which has the keys of that time.
    """
    record = read_record(workdir)
    hashed = [name for name in STAGES if isinstance(record["stages"].get(name, {}).get("inputs"), str)]
    config = read_config(workdir) if hashed else {}
    for name in hashed:
        own, recomputed = record["stages"][name], collect_inputs(find_stage(name), config, record)
        if own["inputs"] == settings.hash_json([recomputed[key] for key in ("config", "files", "version", "upstream")]):
            own["inputs"] = recomputed
    return record


def upgrade_record(workdir: Path) -> None:
    """Replace hashes of inputs by the inputs. This must happen before config.json is replaced."""
    if (record := load_record(workdir)) != read_record(workdir):
        write_record(workdir, record)


def is_done(name: str, config: ConfigDict, workdir: Path) -> bool:
    """Return whether a stage has finished with these inputs, and its rows and outputs are intact."""
    stage, record = find_stage(name), load_record(workdir)
    return _is_intact(stage, record, collect_inputs(stage, settings.to_json(config), record), workdir)


def _is_intact(stage: Stage, record: Mapping[str, Any], now: Mapping[str, Any], workdir: Path) -> bool:
    """Do as `is_done`, with the run's record and the stage's inputs of now."""
    own = record["stages"].get(stage.name, {})
    if "output" not in own or inputs_differ(stage, own["inputs"], now):
        return False
    rows = hash_rows(workdir, [stage.name])[stage.name]
    if own.get("rows", rows) != rows:
        console.notice(f"{name_run(workdir)}: some rows of {stage.name} were changed or lost; running it again")
        return False
    if changed := find_changed(workdir, record, stage.outputs.proved):
        console.notice(f"{name_run(workdir)}: {changed[0]} was changed; running {stage.name} again")
        return False
    rows_of = [row for row in read_rows(workdir) if row.stage == stage.name]
    return stage.intact(workdir) and not (stage.lists and stage.differs(settings.from_json(now["config"]), rows_of))


def run(name: str, config: ConfigDict, workdir: Path, mesh: Mesh, *, revision: str = "", force: bool = False) -> bool:
    """Run one stage of one run, unless it is already done.

    Args:
        name: one of STAGES.
        config: the resolved config of the run.
        workdir: the run's folder.
        revision: of the code. It is recorded, and a change is logged.
        force: run a finished stage again. An interrupted stage continues.

    Returns:
        Whether it ran.
    """
    stage, record, first = find_stage(name), load_record(workdir), jax.process_index() == 0
    own, now = record["stages"].get(name, {}), collect_inputs(stage, settings.to_json(config), record)
    if peers.agree(not force and _is_intact(stage, record, now, workdir)):
        before = own.get("revision", "")
        changed = f" (by revision {before or 'unknown'}; this is {revision})" if before != revision else ""
        if first:
            console.notice(f"{name_run(workdir)}: {name} is done, skipped{changed}")
        return False
    recorded = name in record["stages"]
    changed = _list_differences(stage, own.get("inputs"), now) if recorded else []
    redo = force and (not recorded or "output" in own)
    if first and (changed or redo):
        if changed and own.get("inputs"):
            console.notice(f"{name_run(workdir)}: {name} begins again: {console.list_words(changed)} changed")
        # Existing outputs are outdated or not wanted. Change the record first: if the process is killed in between,
        # the stage counts as unfinished, not as finished without outputs.
        with report_disk_errors(workdir):
            _invalidate(workdir, record, name)
            stage.forget(workdir)
    elif first:
        for file in find_changed(workdir, record, stage.outputs.proved):
            (workdir / file).unlink()  # a stage continues from what it finds
        if own.get("rows", (found := hash_rows(workdir, [name])[name])) != found:
            write_rows(workdir, name, [])  # edited ones are not what it did
    if first:
        known = hash_files(workdir, stage.outputs.grown)
        # A file that another hand has changed keeps its old hash, so that it stays unproved, whenever this start ends.
        edited = {file: sha for file, sha in own.get("files", {}).items() if known.get(file, sha) != sha}
        threads = _list_threads(workdir, record, {} if changed or redo else own)
        record["stages"][name] = {"inputs": now, **threads, **({"files": edited} if edited else {})}
        with report_disk_errors(workdir):
            write_record(workdir, record)
    peers.agree(True)  # other processes wait until old outputs are removed
    begun = time.perf_counter()
    output = stage.run(config, workdir, mesh)
    seconds = time.perf_counter() - begun
    if first:
        environment = {**runtime.describe_environment(), "nml_jax": __version__, "revision": revision}
        if name == STAGES[0] or not record["environment"]:
            record["environment"] = environment
        record["stages"][name] |= {
            "output": output,
            "rows": hash_rows(workdir, [name])[name],
            "files": hash_files(workdir, (*stage.outputs.proved, *stage.outputs.grown)) | edited,
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
        console.notice(f"{name_run(workdir)}: {name} finished in {console.format_seconds(seconds)}")
    return True


def _list_threads(workdir: Path, record: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the field `threads` of a stage that begins: the numbers of threads that it was begun and continued with.

    Say if the run goes on under another number than before: its numbers are then not those of an uninterrupted run.

    Args:
        own: the stage's record, if it continues.
    """
    now = runtime.describe_environment().get("threads")
    if now is None:  # only the CPU rounds by their number
        return {}
    stages = record["stages"].values()
    known = {str(of["environment"]["threads"]) for of in stages if "threads" in of.get("environment", {})}
    known |= {str(count) for of in stages for count in of.get("threads", ())}
    if others := sorted(known - {now}):
        console.notice(
            f"{name_run(workdir)}: begun with {console.list_words(others)} CPU thread(s) for an operation, it goes on "
            f"with {now}: sums round differently, so numbers are not the same bits; NPROC={others[0]} keeps them"
        )
    return {"threads": list(dict.fromkeys([*own.get("threads", ()), int(now)]))}


def _invalidate(workdir: Path, record: dict[str, Any], name: str) -> None:
    """Mark a stage as not done in the record, and remove its rows."""
    record["stages"][name] = {}
    write_record(workdir, record)
    write_rows(workdir, name, [])
