"""What a run writes down: rows (final numbers), metrics (numbers on the way), and one progress line for the person."""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError

ROW_SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number with everything needed to plot it, for years. Fields that do not apply are None."""

    # what produced it
    run: str  # name of the cell, e.g. "noise=0.05,seed=1"
    stage: str  # pretrain | extract | tune
    step: int  # of the checkpoint
    weights: str  # raw | ema
    # the supervision it was pre-trained with
    noise_kind: str
    noise_asked: float | None  # None where the kind fixes its own rate
    noise_realised: float
    noise_seed: int
    seed: int
    objective: str
    model: str
    # what was measured, on what
    metric: str  # accuracy | macro_f1 | mean_per_class | sve | lsvr | top_share | ...
    value: float
    task: str
    split: str
    domain: str  # "id" or "ood"
    n_train: int | None = None
    n_test: int | None = None
    layer: str | None = None  # a key of the model's outputs, or "Z" for the output of a head
    # how the head was trained
    train_share: float | None = None
    downstream_noise: float | None = None
    method: str | None = None  # linear | mlp | nmtune
    preset: str | None = None  # paper | code | code/1view
    head_seed: int | None = None
    views: int | None = None
    spectrum_mode: str | None = None  # paper | code
    hyper: Mapping[str, float] | None = None  # chosen on the validation part
    schema: int = ROW_SCHEMA


def atomic_write(path: Path, text: str) -> None:
    """Write a file so that a reader, or a restart after a kill, sees the old content or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(workdir: Path, stage: str, rows: Iterable[Row]) -> None:
    """Replace the rows of `stage` in `workdir/rows.jsonl`; those of other stages stay as they are."""
    kept = [row for row in read_rows(workdir) if row.stage != stage] if (workdir / "rows.jsonl").exists() else []
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in [*kept, *rows]]
    atomic_write(workdir / "rows.jsonl", "".join(f"{line}\n" for line in lines))


def read_rows(workdir: Path) -> list[Row]:
    """The rows of a run's folder.

    Raises:
        UserError: a line is no row of a schema this version knows.
    """
    path = workdir / "rows.jsonl"
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = Row(**json.loads(line))
        except (ValueError, TypeError) as e:
            raise UserError(f"{path}, line {number} is no row: {e}", "redo the stages with --force=extract") from e
        if row.schema != ROW_SCHEMA:
            raise UserError(
                f"{path}, line {number} has row schema {row.schema}; this version writes {ROW_SCHEMA}",
                "read it with the version that wrote it, or redo the run",
            )
        rows.append(row)
    return rows
