"""Turn the rows of many runs into tables, figures and one offline HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, settings
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.runs.files import write_atomic
from nml_jax.runs.finished import FinishedRun, read_finished
from nml_jax.stages import experiment
from nml_jax.tasks import glue
from nml_jax.tasks.glue_sets import GLUE_TASKS


def check(config: ConfigDict) -> None:
    """Raise UserError if there is no study of the name `study`, or `noise_related` names no downstream task."""
    if config.study:  # imported here, because it loads pandas
        from nml_jax.reporting.studies.recipes import check_name

        check_name(config.study)
    _check_related(config)


def _check_related(config: ConfigDict) -> None:
    """Raise UserError if a name in `noise_related` is none of the downstream tasks."""
    tasks = config.downstream.tasks
    for name in config.noise_related:
        if name not in tasks and not (glue.ALL in tasks and name in GLUE_TASKS):
            raise UserError(f"noise_related={name!r} is no downstream task", f"name some of {', '.join(tasks)}")


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> Path:
    """Write the report of all finished runs in `workdir`. It also lists the unfinished runs.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: see `build`.
    """
    return build([workdir], workdir, study=config.study, runs=_list_own_runs(config, workdir) if config.study else ())


def _list_own_runs(config: ConfigDict, workdir: Path) -> list[str]:
    """List the folders of the runs that a config asks for. Its workdir may hold those of other studies, too."""
    return [experiment.find_folder(workdir, name, cell).name for name, cell in settings.expand_sweep(config).items()]


def list_power(config: ConfigDict, workdir: Path) -> list[str]:
    """Say which difference the config's study can show, from its finished runs, or that a pilot would tell."""
    from nml_jax.reporting.studies.planned import plan_study
    from nml_jax.reporting.studies.power import describe_power

    cells = {
        experiment.find_folder(workdir, name, cell).name: cell for name, cell in settings.expand_sweep(config).items()
    }
    planned = plan_study(config, cells, read_finished([workdir])[0] if workdir.is_dir() else [])
    said = [line for study in planned.studies for line in describe_power(config.study, study, exact=planned.exact)]
    pilot = (
        "known after a pilot: run the first and the last condition with two seeds, as with --config.sweep.seed='(0,1)'"
    )
    return said or [pilot]


def build(folders: Sequence[Path], out: Path, *, study: str = "", runs: Sequence[str] = ()) -> Path:
    """Write `report.html` and `summary.csv` of the finished runs in `folders` into the folder `out`.

    Args:
        folders: experiment folders (with a folder for each run), or runs.
        out: created if it does not exist.
        study: a key of RECIPES: its figure and findings are written, too, and head the page.
        runs: folders of the study's runs.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: there is no finished run, one of its files is damaged, or `out` cannot be written.
    """
    # Imported here, because they load pandas, Jinja2 and Matplotlib, which nothing else needs.
    from nml_jax.reporting.page import build_page
    from nml_jax.reporting.statistics.grouping import find_studies
    from nml_jax.reporting.statistics.studies import write_csv

    found, left_out = _read(folders)
    studies = find_studies(found)
    with report_disk_errors(out):
        first = _publish(study, [run for run in found if run.folder.name in runs], out) if study else []
        write_atomic(out / "summary.csv", write_csv(studies))
        write_atomic(out / "report.html", build_page(studies, left_out, first))
    return out / "report.html"


def _publish(name: str, found: list[FinishedRun], out: Path) -> list[Any]:
    """Write the files of a study, print what was found, and return its part of the page."""
    from nml_jax.reporting.statistics.grouping import find_studies
    from nml_jax.reporting.studies.publish import publish, remove_stale

    studies = find_studies(found)
    several = len(studies) > 1
    shown = [one for i, study in enumerate(studies, 1) if (one := publish(name, study, out, part=i * several))]
    for one in shown:
        console.show("\n".join([one.question, *one.sentences, ""]))
        for missing in one.missing:
            console.notice(f"study {name}: {missing}")
        console.notice(f"study {name}: {one.folder.resolve()}")
    for folder in remove_stale(name, out, [one.folder for one in shown]) if shown else ():
        console.notice(f"study {name}: removed {folder.name}, of an earlier report")
    if not shown:
        console.notice(f"study {name}: none of the finished runs has its numbers")
    return shown


def summarise(folder: Path) -> str:
    """Return a plain-text summary of the finished runs in a folder: mean ± sample sd over n runs, by noise.

    Raises:
        UserError: there is no finished run, or one of its files is damaged.
    """
    from nml_jax.reporting.statistics import choose_method, compare, grouping
    from nml_jax.reporting.tables import conditions, methods

    blocks = []
    for study in grouping.find_studies(_read([folder])[0]):
        contests = choose_method.find_contests(study)
        blocks += [methods.write_text(contest) for contest in contests]
        if not contests and not compare.uses_files(study):
            blocks += conditions.write_text(study)
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def _read(folders: Sequence[Path]) -> tuple[list[FinishedRun], dict[str, str]]:
    """Read the finished runs, and why the others are left out. Raise UserError if there is no finished run."""
    found, left_out = read_finished(folders)
    if not found:
        why = "".join(f"; {name} is {reason}" for name, reason in list(left_out.items())[:1])
        where = ", ".join(map(str, folders))
        raise UserError(f"no finished run in {where}{why}", "finish one: python -m nml_jax.main --config=FILE")
    return found, left_out
