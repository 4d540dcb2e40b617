"""The folders of an experiment and its runs. They belong to one config, so no other experiment overwrites them.

runs/digits/                      experiment.json: the config that all runs share; report.html, summary.csv
runs/digits/noise=0.05,seed=1/    config.json: the run's resolved config; and what its stages write
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nml_jax import console, settings
from nml_jax.assembly import encoder, noisy_data
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.runs import owner
from nml_jax.runs.files import OWNER, refuse_links, write_json
from nml_jax.runs.finished import list_runs
from nml_jax.runs.record import read_config, read_record
from nml_jax.runs.rows import read_rows
from nml_jax.stages import runner
from nml_jax.stored import FAULTS, make_damage, read_json, require_type

IN_PLACE = ("tune", "diagnose")  # stages whose own section may change: they are quick, and only reports read them
SHOWN = 3  # keys that differ which the message shows


def claim(workdir: Path, config: ConfigDict, *, force: Sequence[str] = (), write: bool = True) -> None:
    """Make `workdir` the folder of this config, or check that it already is. A folder without results is free.

    A key that did not exist when the folder was claimed counts with its default. Axes of the sweep may differ, and so
    may the lists of what stages do (`Stage.lists`), which only add: several studies of one dataset share a folder.

    Keys may differ if only forced stages, or stages after them, read them: the user then redoes these stages with new
    values. So may the sections `tune` and `diagnose` where no other stage read them: their stages run again.
    Any other difference means that the folder belongs to another experiment.

    Args:
        force: stages to do again.
        write: also write `experiment.json`.

    Raises:
        UserError: the folder belongs to another config, is damaged, or cannot be written.
    """
    path = workdir / "experiment.json"
    mine = {"config": settings.shared_identity(config, settings.list_axes(config))}
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file", "give the experiment a folder with --workdir=DIR")
    if path.exists() and _has_results(workdir):
        # Read in this order, because the first process of a job may be replacing these files, experiment.json first.
        theirs = _list_new_keys(workdir) | _read(path)
        # A key that only one side has is an axis of the other: its value is in the names of those runs.
        lists = {key for name in runner.STAGES for key in runner.find_stage(name).lists}
        shared = theirs.keys() & mine["config"].keys() - lists
        differ = sorted(k for k in shared if theirs[k] != mine["config"][k])
        mine["config"] = {**theirs, **mine["config"]}
        redone, kept = set(), set()
        ran = {name for run in list_runs(workdir) for name in read_record(run)["stages"]} | {*config.stages}
        for name in (name for name in runner.STAGES if name in ran):
            (redone if redone or name in force else kept).update(runner.find_stage(name).keys)
        redone -= kept
        read = {key for name in ran if name in runner.STAGES and name not in IN_PLACE for key in _read_by(name)}
        in_place = {name: [k for k in differ if k.split(".")[0] == name] for name in {*IN_PLACE} - read - redone}
        if strange := [key for key in differ if key.split(".")[0] not in redone | in_place.keys()]:
            shown = "; ".join(
                f"{k} is {theirs.get(k)!r} there, {mine['config'].get(k)!r} here" for k in strange[:SHOWN]
            )
            more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
            stage = next((n for n in runner.STAGES if strange[0].split(".")[0] in runner.find_stage(n).keys), None)
            redo = f", or redo what follows from them with --force={stage}" if stage else ""
            raise UserError(f"{workdir} belongs to another config: {shown}{more}", f"give another --workdir{redo}")
        for stage in (name for name in IN_PLACE if in_place.get(name)):
            keys, others = in_place[stage], sorted(name for name in ran if name not in (stage, "report"))
            console.notice_once(
                f"{workdir}: {console.shorten(keys)} changed: {stage} runs again, {console.list_words(others)} "
                f"{'stay' if len(others) > 1 else 'stays'}"
            )
    if write:
        with report_disk_errors(workdir):
            write_json(path, mine)


@contextlib.contextmanager
def own_run(workdir: Path, name: str, *, lost: Callable[[UserError], None] | None = None) -> Iterator[None]:
    """Own the folder of a run, which is created, so that no other job writes there at the same time.

    Args:
        lost: see `owner.hold`.

    Raises:
        UserError: another job owns it, a link in it leads out of it, or it cannot be written.
    """
    folder = workdir / name
    with report_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    cure = "wait until it ends, or stop it; another experiment needs another --workdir"
    with owner.hold(folder / OWNER, str(folder), cure, lost=lost):
        yield


def find_folder(workdir: Path, name: str, config: ConfigDict) -> Path:
    """Return the folder of a run, which need not exist.

    Older versions called a run with human labels noise=0, and not noise=labels. Such a run is continued where it is.
    """
    folder, kind = workdir / name, config.noise_kind
    if kind in settings.FIXED_RATE and not folder.exists():
        old = workdir / name.replace(f"noise={kind}", "noise=0", 1)
        if read_config(old).get("noise_kind") == kind:
            return old
    return folder


def list_undone(
    cells: Mapping[str, ConfigDict], workdir: Path, stage: str, *, force: Sequence[str] = ()
) -> dict[str, ConfigDict]:
    """Return the runs in which a stage is not done, by the name of their folder."""
    found = {find_folder(workdir, name, cell): cell for name, cell in cells.items()}
    return {
        folder.name: cell for folder, cell in found.items() if stage in force or not runner.is_done(stage, cell, folder)
    }


# What decides whether noise can be drawn. Seeds do not.
SUPERVISION = ("noise", "noise_kind", "noise_classes", "noise_rate_of", "noise_file", "data")


def check_encoders(
    workdir: Path, cells: Mapping[str, ConfigDict], stages: Sequence[str], *, force: Sequence[str] = ()
) -> None:
    """Check, before any work, that every run has an encoder for its stages.

    Args:
        stages: the stages to run, in order.
        force: stages to do again.

    Raises:
        UserError: a run has none, or `init_from` cannot be the encoder of all runs.
    """
    if "pretrain" in stages:
        return
    for name, cell in cells.items():
        folder = find_folder(workdir, name, cell)
        if any(s in force or not runner.is_done(s, cell, folder) for s in stages
               if runner.find_stage(s).encoded(cell)):  # fmt: skip
            encoder.check_source(cell, folder)


def check_supervision(
    workdir: Path, cells: Mapping[str, ConfigDict], stages: Sequence[str], *, force: Sequence[str] = ()
) -> None:
    """Check, before any work, that the data of every run to pre-train are there and take its noise.

    Args, raises: as `check_encoders`.
    """
    checked = set()
    for name, cell in cells.items() if "pretrain" in stages else ():
        key = settings.hash_json(settings.select_keys(settings.to_json(cell), SUPERVISION))
        done = "pretrain" not in force and runner.is_done("pretrain", cell, find_folder(workdir, name, cell))
        if key not in checked and not done:
            checked.add(key)
            noisy_data.count_records(cell)


def check_files(
    workdir: Path, config: ConfigDict, cells: Mapping[str, ConfigDict], *, force: Sequence[str] = ()
) -> None:
    """Check that no run is of another file than the run of its name: names have only the stems of files.

    Raises:
        UserError: a run that is there is of another file.
    """
    axes = settings.list_axes(config)
    for name, cell in cells.items() if "pretrain" not in force else ():
        folder, own = find_folder(workdir, name, cell), dict(settings.flatten(settings.to_json(cell)))
        known = dict(settings.flatten(read_config(folder))) if read_record(folder)["stages"] else {}
        for key in axes:
            if isinstance(own.get(key), str) and known.get(key, own[key]) != own[key]:
                cause = f"{folder} is of {key}={known[key]}, and not of {own[key]}"
                raise UserError(cause, "give the file another name, or --workdir another folder, or --force=pretrain")


def open_run(workdir: Path, name: str, config: ConfigDict, *, write: bool = True) -> Path:
    """Return the folder of a run. With `write`, create it and write its `config.json`."""
    folder = find_folder(workdir, name, config)
    if write:
        with report_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            runner.upgrade_record(folder)
            write_json(folder / "config.json", settings.to_json(config))
    return folder


def adopt_runs(workdir: Path, cells: Mapping[str, ConfigDict]) -> None:
    """Write the configs into the folders of runs of which only a report is wanted, as `open_run` does before stages.

    Another study may have worked there, with other lists of heads: the report is of those that these configs name. If
    the rows are of others, a line says so. A run keeps its stages, which tell whether it is finished, and its whole
    config if a stage of it was done with other values than those in lists, or another job works there.
    """
    others: dict[str, int] = {}
    for name, cell in cells.items():
        folder = find_folder(workdir, name, cell)
        record, stored, now = runner.load_record(folder), read_config(folder), settings.to_json(cell)
        done = {stage: of.get("inputs") for stage, of in record["stages"].items() if "output" in of}
        if not done or not {*done} <= {*runner.STAGES}:
            continue
        stages = [runner.find_stage(stage) for stage in done]
        if any(runner.inputs_differ(s, done[s.name], runner.collect_inputs(s, now, record)) for s in stages):
            continue
        if not (folder / OWNER).exists():
            with report_disk_errors(folder):
                runner.upgrade_record(folder)
                write_json(folder / "config.json", {**now, "stages": stored.get("stages", now["stages"])})
        for stage in (stage for stage in stages if stage.lists):
            rows = [row for row in read_rows(folder) if row.stage == stage.name]
            others[stage.name] = others.get(stage.name, 0) + stage.differs(cell, rows)
    for stage, n in ((stage, n) for stage, n in others.items() if n):
        console.notice(
            f"{workdir}: the rows of {stage} are of other lists than this config's in {n} of {len(cells)} runs, as "
            f"another study worked there; for its own run {stage} again, which keeps what is there"
        )


def _read_by(stage: str) -> tuple[str, ...]:
    return runner.find_stage(stage).keys


def _has_results(workdir: Path) -> bool:
    """Return whether a run in `workdir` has finished a stage or saved a checkpoint."""
    return any(
        any((run / "checkpoints").glob("[0-9]*"))
        or any("output" in record for record in read_record(run)["stages"].values())
        for run in list_runs(workdir)
    )


def _list_new_keys(workdir: Path) -> dict:
    """Return the keys that no run in `workdir` has yet, with their defaults. Axes of the sweep are not among them."""
    known = {key for run in list_runs(workdir) for key, _ in settings.flatten(read_config(run))}
    sections = {k: v for k, v in settings.default_config().items() if k not in settings.NOT_IDENTITY}
    return {key: value for key, value in settings.flatten(sections) if key not in known}


def _read(path: Path) -> dict:
    """Read the config in an `experiment.json`."""
    cure = "delete it if you know that the folder belongs to this config"
    stored = read_json(path, cure, dict[str, Any])
    try:
        return require_type(stored["config"], dict[str, Any])
    except FAULTS as e:
        raise make_damage(path, e, cure) from e
