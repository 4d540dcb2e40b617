"""Which feature banks a run has: `banks/<task>/<split>/`, and `banks/index.json`, which lists them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from nml_jax.errors import UserError
from nml_jax.runs.files import write_json
from nml_jax.runs.record import read_record
from nml_jax.runs.rows import Row, read_rows


class BankIndex(NamedTuple):
    """The banks of a run.

    Attributes:
        step, weights: of the encoder, as rows have them.
        domains: task -> split -> "id" or "ood", in the order in which they were written; "train" is one of the splits.
    """

    step: int
    weights: str
    domains: dict[str, dict[str, str]]


def bank_folder(workdir: Path, task: str, split: str) -> Path:
    return workdir / "banks" / task / split


def write_index(workdir: Path, index: BankIndex) -> None:
    write_json(_index_path(workdir), index._asdict())


def read_index(workdir: Path) -> BankIndex | None:
    """Read what the stage `extract` has left; None unless it has finished.

    Runs extracted before there was an index have the same in their rows.

    Raises:
        UserError: the index is damaged.
    """
    path = _index_path(workdir)
    if "output" not in read_record(workdir)["stages"].get("extract", {}):
        return None
    if not path.exists():
        return _index_rows(row for row in read_rows(workdir) if row.stage == "extract")
    try:
        return BankIndex(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as e:
        raise UserError(f"{path} is damaged: {e}", "run the extract stage again, as in --force=extract") from e


def _index_path(workdir: Path) -> Path:
    return workdir / "banks" / "index.json"


def _index_rows(rows: Iterable[Row]) -> BankIndex | None:
    rows, domains = list(rows), {}
    for row in rows:
        domains.setdefault(row.task, {})[row.split] = row.domain
    return BankIndex(rows[0].step, rows[0].weights, domains) if rows else None
