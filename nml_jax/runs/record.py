"""Read a run's config.json, and read and write its run.json, which records the stages begun and finished."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError
from nml_jax.hashes import hash_file
from nml_jax.noise import Ledger
from nml_jax.runs.files import write_json
from nml_jax.stored import FAULTS, make_damage, parse_json, read_json, require_fields

# Fields of a stage in run.json: of the results, and of the environment that made them.
KINDS = {"output": str, "rows": str, "files": dict[str, str], "version": int, "seconds": float, "finished": str,
         "revision": str, "environment": dict[str, Any], "threads": list[int]}  # fmt: skip


def read_record(workdir: Path) -> dict[str, Any]:
    """Read `run.json`: {"stages": {name: ...}, "environment": {...}}.

    Raises:
        UserError: the file is damaged.
    """
    path, cure = workdir / "run.json", "delete it; finished stages then run again"
    if not path.exists():
        return {"stages": {}, "environment": {}}
    record = read_json(path, cure, dict[str, Any])
    try:
        stages = {name: dict(of) for name, of in record["stages"].items()}
        for own in stages.values():
            require_fields(own, KINDS)
        return {"stages": stages, "environment": dict(record["environment"])}
    except FAULTS as e:
        raise make_damage(path, e, cure) from e


def read_config(workdir: Path) -> dict[str, Any]:
    """Read `config.json` with the keys it was written with; {} if it cannot be read."""
    try:
        tree = parse_json((workdir / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def name_run(workdir: Path) -> str:
    """Return the name of a run for lines: with the realised rate where the noise fixes its own, as human labels do."""
    try:
        ledger = Ledger.read(workdir / "noise.json")
    except UserError:
        return workdir.name
    return workdir.name if ledger.asked is not None else f"{workdir.name} ({100 * ledger.realised:.4g} % wrong labels)"


def write_record(workdir: Path, record: dict[str, Any]) -> None:
    """Replace `run.json`."""
    write_json(workdir / "run.json", record)


def hash_files(workdir: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each of these files of a run that exists."""
    return {name: hash_file(workdir / name) for name in names if (workdir / name).is_file()}


def find_changed(workdir: Path, record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """List the files among `names` whose content no stage has recorded. Missing files are left out.

    Two stages may write the same file. The one that wrote last is right.
    """
    recorded = [of.get("files", {}) for of in record["stages"].values()]
    proved = [name for name in names if any(name in files for files in recorded)]
    found = hash_files(workdir, proved)
    return [name for name, sha in found.items() if all(files.get(name) != sha for files in recorded)]


def check_files(workdir: Path, record: Mapping[str, Any]) -> None:
    """Check the files of a run against the hashes in its record. Runs of older versions have none.

    Raises:
        UserError: a file has changed since a stage wrote it.
    """
    names = {name: stage for stage, of in record["stages"].items() for name in of.get("files", {})}
    for name in find_changed(workdir, record, names):
        cure = f"run the command of the run {workdir.name} again, which writes it again"
        if name in GROWN:
            cure = f"put back the file of the stage, or train again with --force={names[name]}"
        raise UserError(f"{workdir / name} has changed since the stage {names[name]} wrote it (SHA-256 differs)", cure)


GROWN = ("metrics.jsonl", "quarantine.jsonl", "goodput.json")  # written step by step: only training makes them again
