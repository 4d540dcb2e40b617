"""Read and write rows: the final numbers of a run, each with all that is needed to plot it.

A line of an older schema stays in its file unchanged, so that its digest in run.json still holds. `_upgrade` makes it a
row of this schema when it is read.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from nml_jax.errors import UserError
from nml_jax.hashes import hash_text
from nml_jax.runs.files import write_atomic
from nml_jax.stored import FAULTS, parse_json, read_lines, require_fields

ROW_SCHEMA = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number with everything needed to plot it. Fields that do not apply are None."""

    # what produced it
    run: str  # name of the cell, e.g. "noise=0.05,seed=1"
    stage: str  # pretrain | extract | tune
    step: int  # of the checkpoint
    weights: str  # raw | ema
    # the supervision it was pre-trained with
    noise_kind: str
    noise_asked: float | None  # None where the kind fixes its own rate
    noise_realised: float | None  # None for an encoder from elsewhere
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
    layer: str | None = None  # of the encoder: a key of the model's outputs
    output: str | None = None  # whose spectrum it is: "features" of the encoder, or "Z" of a head
    # how the head was trained
    train_share: float | None = None
    downstream_noise: float | None = None
    method: str | None = None  # linear | mlp | nmtune
    preset: str | None = None  # paper | code, and what the config changes, as in "paper,svd=0.1"
    head_seed: int | None = None
    views: int | None = None  # stored views of each example
    wise_alpha: float | None = None  # share of the fine-tuned weights in a mix with the initial ones
    spectrum_mode: str | None = None  # paper | code
    hyper: Mapping[str, float] | None = None  # chosen on the validation part
    suspects: str | None = None  # what was done with likely wrong labels: keep | drop | relabel; None: not looked for
    schema: int = ROW_SCHEMA


def write_rows(workdir: Path, stage: str, rows: Iterable[Row]) -> None:
    """Replace the rows of `stage` in `workdir/rows.jsonl`; the lines of other stages stay as they are."""
    lines = [line for line, row in _read_lines(workdir) if row.stage != stage]
    lines += [json.dumps(_list_fields(row), ensure_ascii=False, allow_nan=False) for row in rows]
    write_atomic(workdir / "rows.jsonl", "".join(f"{line}\n" for line in lines))


def _list_fields(row: Row) -> dict[str, Any]:
    """Return the fields of a row as they are written. `suspects` is left out where it is None, as in older files."""
    fields = dataclasses.asdict(row)
    return {name: value for name, value in fields.items() if name != "suspects" or value is not None}


def has_rows(folder: Path) -> bool:
    """Return whether a folder has rows. The rows of a head or setting are written last."""
    return (folder / "rows.jsonl").exists()


def holds_rows(folder: Path) -> bool:
    """Return whether a folder, or one below it, has rows."""
    return any(folder.rglob("rows.jsonl"))


def read_rows(workdir: Path) -> list[Row]:
    """Read the rows of a run's folder; none if it has none yet.

    Raises:
        UserError: a line is not a row of a schema that this version knows.
    """
    return [row for _, row in _read_lines(workdir)]


def _read_lines(workdir: Path) -> list[tuple[str, Row]]:
    """Read every line of a run's rows together with its row."""
    path = workdir / "rows.jsonl"
    out: list[tuple[str, Row]] = []
    if not path.exists():
        return out
    cure = "delete the file; the same command then repeats the stages whose rows are missing"
    for number, line in enumerate(read_lines(path, cure), 1):
        try:
            fields = parse_json(line)
            row = Row(**(_upgrade(fields) if fields.get("schema") == 1 else fields))
            require_fields(vars(row), _list_types())
        except FAULTS as e:
            raise UserError(f"{path}, line {number} is not a row: {e}", cure) from e
        if row.schema != ROW_SCHEMA:
            raise UserError(
                f"{path}, line {number} has row schema {row.schema}; this version writes {ROW_SCHEMA}",
                "read it with the version that wrote it, or repeat the run",
            )
        out.append((line, row))
    return out


@functools.cache
def _list_types() -> dict[str, Any]:
    """Return the type of every field of a row."""
    return get_type_hints(Row)


def _upgrade(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row of schema 1 as those of schema 2, which has no values inside strings.

    metric "accuracy@wise=0.5"        -> metric "accuracy", wise_alpha 0.5 (which was among the hyper-parameters)
    layer "Z", "Z of block3"          -> layer "features", "block3"; output "Z"
    layer of a spectrum of features   -> output "features"
    preset "code/1view,svd=0.1"       -> preset "code,svd=0.1", views 1
    """
    new = {**old, "schema": ROW_SCHEMA}
    new["metric"], wise, _ = old["metric"].partition("@wise=")
    if wise:
        new["hyper"] = {key: value for key, value in old["hyper"].items() if key != "wise_alpha"}
        new["wise_alpha"] = old["hyper"]["wise_alpha"]
    if (layer := old.get("layer")) and (layer == "Z" or layer.startswith("Z of ")):
        new |= {"layer": layer.removeprefix("Z of ") if layer != "Z" else "features", "output": "Z"}
    elif layer and not old.get("method"):
        new["output"] = "features"
    if old.get("preset") and "/1view" in old["preset"]:
        new |= {"preset": old["preset"].replace("/1view", ""), "views": 1}
    return new


def hash_rows(workdir: Path, stages: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each stage's lines in a run's rows. It reveals changed or lost lines."""
    canonical: dict[str, list[str]] = {stage: [] for stage in stages}
    for line, row in _read_lines(workdir):
        if row.stage in canonical:
            canonical[row.stage].append(json.dumps(json.loads(line), ensure_ascii=False, sort_keys=True))
    return {stage: hash_text("\n".join(lines)) for stage, lines in canonical.items()}


DIVERGED = "diverged"  # a metric: 1 for a head that is missing because its training diverged
UNVALIDATED = "unvalidated"  # a key of `hyper`: 1 if no rows were left to choose the head's settings by
