"""Rows: the final numbers of a run, each with all that is needed to plot it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from nml_jax.errors import UserError
from nml_jax.hashes import hash_text
from nml_jax.runs.files import write_atomic

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
    noise_realised: float | None  # None where the encoder came from elsewhere
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
    layer: str | None = None  # a key of the model's outputs; "Z", or "Z of <layer>", for the output of a head
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


def write_rows(workdir: Path, stage: str, rows: Iterable[Row]) -> None:
    """Replace the rows of `stage` in `workdir/rows.jsonl`; those of other stages stay as they are."""
    kept = [row for row in read_rows(workdir) if row.stage != stage]
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False, allow_nan=False) for row in [*kept, *rows]]
    write_atomic(workdir / "rows.jsonl", "".join(f"{line}\n" for line in lines))


def has_rows(folder: Path) -> bool:
    """Whether rows were written into a folder; those of a head or setting are written last."""
    return (folder / "rows.jsonl").exists()


def read_rows(workdir: Path) -> list[Row]:
    """The rows of a run's folder; none if it has none yet.

    Raises:
        UserError: a line is no row of a schema this version knows.
    """
    path = workdir / "rows.jsonl"
    rows: list[Row] = []
    if not path.exists():
        return rows
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = Row(**json.loads(line))
        except (ValueError, TypeError) as e:
            cure = "delete the file; the same command does the stages anew whose rows are gone"
            raise UserError(f"{path}, line {number} is no row: {e}", cure) from e
        if row.schema != ROW_SCHEMA:
            raise UserError(
                f"{path}, line {number} has row schema {row.schema}; this version writes {ROW_SCHEMA}",
                "read it with the version that wrote it, or redo the run",
            )
        rows.append(row)
    return rows


def hash_rows(rows: Iterable[Row], stage: str) -> str:
    """SHA-256 of those rows that are of `stage`, by which it is found that some were changed or lost."""
    own = [dataclasses.asdict(row) for row in rows if row.stage == stage]
    told = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in own]
    return hash_text("\n".join(told))


DIVERGED = "diverged"  # as a metric: 1 for a head that is not there for that reason


UNVALIDATED = "unvalidated"  # 1 among the chosen settings of a head, where no row was left to choose them by
