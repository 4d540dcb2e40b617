"""Rows of many runs -> tables, figures, one offline HTML file."""

from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax.errors import UserError, report_disk_errors
from nml_jax.reporting.statistics.studies import MEAN, Study, as_csv, find_studies
from nml_jax.runs.files import write_atomic
from nml_jax.runs.finished import read_finished


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> Path:
    """Write the report of all finished runs of the experiment in `workdir`; the others are listed in it as such.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: see `build`.
    """
    return build([workdir], workdir)


def build(folders: Sequence[Path], out: Path) -> Path:
    """Write `report.html` and `summary.csv` of the finished runs in `folders` into the folder `out`.

    Args:
        folders: experiment folders (with a folder for each run), or runs.
        out: made if it does not exist.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: there is no finished run, a file of one is broken, or `out` cannot be written.
    """
    from nml_jax.reporting.page import page  # brings matplotlib, which nothing else needs

    studies, left_out = _studies(folders)
    with report_disk_errors(out):
        write_atomic(out / "summary.csv", as_csv(studies))
        write_atomic(out / "report.html", page(studies, left_out))
    return out / "report.html"


def summarise(folder: Path) -> str:
    """The summary of the finished runs in a folder as plain text: measures by noise, mean ± sample sd over n runs.

    Raises:
        UserError: there is no finished run, or a file of one is broken.
    """
    from nml_jax.reporting import method_tables, tables
    from nml_jax.reporting.statistics import choose_method

    blocks = []
    for study in _studies([folder])[0]:
        contests = choose_method.contests(study)
        blocks += [method_tables.text(contest) for contest in contests]
        if contests or choose_method.from_files(study):
            continue
        for task in [MEAN, *study.tasks] if len(study.tasks) > 1 else study.tasks or [""]:
            lines = [[study.axis, *(condition.label for condition in study.conditions)]]
            for group, of_group in tables.summary(study, task).items():
                lines += [[group], *([f"  {label}", *rest] for label, *rest in of_group)] if group else of_group
            first = max(len(line[0]) for line in lines if len(line) > 1)
            lines = [[text.replace(" ± ", "±") for text in line] for line in lines]
            width = max(len(text) for line in lines for text in line[1:]) + 2
            title = f"{': '.join(filter(None, (study.title, task)))}, mean ± sd over n runs"
            blocks.append(
                [title, *(line[0].ljust(first) + "".join(x.rjust(width) for x in line[1:]) for line in lines)]
            )
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def _studies(folders: Sequence[Path]) -> tuple[list[Study], dict[str, str]]:
    found, left_out = read_finished(folders)
    if not found:
        why = "".join(f"; {name} is {reason}" for name, reason in list(left_out.items())[:1])
        where = ", ".join(map(str, folders))
        raise UserError(f"no finished run in {where}{why}", "finish one: python -m nml_jax.main --config=FILE")
    return find_studies(found), left_out
