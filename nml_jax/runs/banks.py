"""Locate a run's feature banks, `banks/<task>/<split>/`, and read and write their list, `banks/index.json`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from nml_jax.runs.files import write_json
from nml_jax.runs.record import read_record
from nml_jax.runs.rows import Row, read_rows
from nml_jax.stored import FAULTS, make_damage, read_json, require_fields

INDEX = "banks/index.json"  # in a run's folder


class BankIndex(NamedTuple):
    """The banks of a run.

    Attributes:
        step, weights: checkpoint step and weights ("raw" or "ema") of the encoder, as in rows.
        domains: task -> split -> "id" or "ood", in the order of writing. One of the splits is "train".
        encoder: what the features come from, see assembly/fingerprint.py; {} in banks of earlier versions.
        texts: task -> number of texts of a row, 1 or 2 for pairs; only of tasks of texts.
    """

    step: int
    weights: str
    domains: dict[str, dict[str, str]]
    encoder: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, never changed
    texts: dict[str, int] = {}  # noqa: RUF012  likewise


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
    cure = "run the extract stage again with --force=extract"
    fields = read_json(path, cure, dict[str, Any])
    try:
        index = BankIndex(**fields)
        require_fields(fields, get_type_hints(BankIndex))
        if untrained := [task for task, splits in index.domains.items() if "train" not in splits]:
            raise ValueError(f"{untrained[0]} has no split train")
    except FAULTS as e:
        raise make_damage(path, e, cure) from e
    return index


def _index_path(workdir: Path) -> Path:
    return workdir / INDEX


def _index_from_rows(rows: Iterable[Row]) -> BankIndex | None:
    rows, domains = list(rows), {}
    for row in rows:
        domains.setdefault(row.task, {})[row.split] = row.domain
    return BankIndex(rows[0].step, rows[0].weights, domains) if rows else None
