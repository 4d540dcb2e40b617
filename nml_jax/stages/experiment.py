"""The folder of an experiment and those of its runs: whose they are, and that nobody else's are overwritten.

runs/digits/                      experiment.json: what all runs share; report.html, summary.csv
runs/digits/noise=0.05,seed=1/    config.json: the run's resolved config; see DESIGN §2 for the rest
"""

import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from nml_jax import settings
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.runs.files import write_json
from nml_jax.runs.finished import list_runs
from nml_jax.runs.record import read_config, read_record
from nml_jax.stages import runner

SHOWN = 3  # differing keys in the message


def claim(workdir: Path, config: ConfigDict, *, force: Sequence[str] = (), write: bool = True) -> None:
    """Make `workdir` the folder of this config, or prove that it is already. A folder without results belongs to none.

    A key that did not exist when the folder was claimed has its default there.

    A difference that lies wholly in the keys of forced stages, or of stages after them, is a wish to redo these with
    new values; any other means that the folder belongs to another experiment.

    Raises:
        UserError: the folder belongs to another config, is damaged, or cannot be written.
    """
    path = workdir / "experiment.json"
    mine = {"config": settings.shared_identity(config, settings.axes_of(config))}
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file", "give the experiment a folder with --workdir=DIR")
    if path.exists() and _has_results(workdir):
        # In this order: the first process of a job may be replacing these files, experiment.json before the others.
        theirs = _list_new_keys(workdir) | _read(path)
        keys = theirs.keys() | mine["config"].keys()
        missing = object()
        differ = sorted(k for k in keys if theirs.get(k, missing) != mine["config"].get(k, missing))
        redone, kept = set(), set()
        ran = {name for run in list_runs(workdir) for name in read_record(run)["stages"]} | {*config.stages}
        for name in (name for name in runner.STAGES if name in ran):
            (redone if redone or name in force else kept).update(runner.find_stage(name).keys)
        redone -= kept
        if strange := [key for key in differ if key.split(".")[0] not in redone]:
            shown = "; ".join(
                f"{k} is {theirs.get(k)!r} there, {mine['config'].get(k)!r} here" for k in strange[:SHOWN]
            )
            more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
            stage = next((n for n in runner.STAGES if strange[0].split(".")[0] in runner.find_stage(n).keys), None)
            redo = f", or redo what follows from them with --force={stage}" if stage else ""
            raise UserError(f"{workdir} belongs to another config: {shown}{more}", f"give another --workdir{redo}")
    if write:
        with report_disk_errors(workdir):
            write_json(path, mine)


def open_run(workdir: Path, name: str, config: ConfigDict, *, write: bool = True) -> Path:
    """The folder of a run, with its `config.json`."""
    folder = workdir / name
    if write:
        with report_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            runner.upgrade_record(folder)
            write_json(folder / "config.json", settings.to_json(config))
    return folder


def _has_results(workdir: Path) -> bool:
    """Whether a run below has finished a stage or saved a checkpoint."""
    return any(
        any((run / "checkpoints").glob("[0-9]*"))
        or any("output" in record for record in read_record(run)["stages"].values())
        for run in list_runs(workdir)
    )


def _list_new_keys(workdir: Path) -> dict:
    """The keys that no run in `workdir` knows yet, with their defaults. Axes of the sweep are not among them."""
    known = {key for run in list_runs(workdir) for key, _ in settings.flatten(read_config(run))}
    sections = {k: v for k, v in settings.default_config().items() if k not in settings.NOT_IDENTITY}
    return {key: value for key, value in settings.flatten(sections) if key not in known}


def _read(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text("utf-8"))["config"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged: {e}", "delete it, if you know that the folder is of this config") from e
