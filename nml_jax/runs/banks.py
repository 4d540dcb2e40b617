"""Locate a run's feature banks, `banks/<task>/<split>/`, and read and write their list, `banks/index.json`."""

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
        step, weights: checkpoint step and weights ("raw" or "ema") of the encoder, as in rows.
        domains: task -> split -> "id" or "ood", in the order of writing. One of the splits is "train".
    """

    step: int
    weights: str
    domains: dict[str, dict[str, str]]


def bank_folder(workdir: Path, task: str, split: str) -> Path:
    """Return the folder of one bank."""
    return workdir / "banks" / task / split


def write_index(workdir: Path, index: BankIndex) -> None:
    """Write `banks/index.json`."""
    write_json(_index_path(workdir), index._asdict())


def read_index(workdir: Path) -> BankIndex | None:
    """Read the index of a run's banks; None unless the stage `extract` has finished.

    Older runs have no index file. For them it is built from their rows.

    Raises:
        UserError: the index is damaged.
    """
    path = _index_path(workdir)
    if "output" not in read_record(workdir)["stages"].get("extract", {}):
        return None
    if not path.exists():
        return _index_from_rows(row for row in read_rows(workdir) if row.stage == "extract")
    try:
        return BankIndex(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as e:
        raise UserError(f"{path} is damaged: {e}", "run the extract stage again with --force=extract") from e


def _index_path(workdir: Path) -> Path:
    return workdir / "banks" / "index.json"


def _index_from_rows(rows: Iterable[Row]) -> BankIndex | None:
    rows, domains = list(rows), {}
    for row in rows:
        domains.setdefault(row.task, {})[row.split] = row.domain
    return BankIndex(rows[0].step, rows[0].weights, domains) if rows else None
