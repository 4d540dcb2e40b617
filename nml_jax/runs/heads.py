"""The files of tuned heads: the head itself, and which rows of each test it gets right.

heads/<task>/[<layer>/]<head>.safetensors              the head, of the stage tune
correct/<stage>/<task>/[<layer>/]<head>.safetensors    a bit for every row of every test, under the test's name
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from nml_jax.errors import UserError, report_disk_errors
from nml_jax.runs.rows import Row


def head_name(of: Mapping[str, Any]) -> str:
    """What a run calls the files of a head: all that tells its heads apart, from the fields of its rows."""
    words = [of["method"], of["preset"] or ""]
    words += [f"share={of['train_share']:g}"] if of["train_share"] < 1 else []
    words += [f"noise={of['downstream_noise']:g}"] if of["downstream_noise"] else []
    words += [f"seed={of['head_seed']}"]
    return re.sub(r"[^\w=.,-]", "_", ",".join(filter(None, words)))


def correct_path(run: Path, of: Mapping[str, Any]) -> Path:
    """The file of what a head gets right, from the fields of its rows; they need not have a layer."""
    return run / "correct" / of["stage"] / of["task"] / _layer(of) / f"{head_name(of)}.safetensors"


def head_path(run: Path, of: Mapping[str, Any]) -> Path:
    """The file of a head of the stage tune itself."""
    return run / "heads" / of["task"] / _layer(of) / f"{head_name(of)}.safetensors"


def _layer(of: Mapping[str, Any]) -> str:
    layer = of.get("layer") or "features"
    return "" if layer == "features" else layer


def write_correct(path: Path, correct: Mapping[str, np.ndarray]) -> None:
    """Write test -> bool [N], atomically.

    Raises:
        UserError: it cannot be written.
    """
    data = safetensors.numpy.save({test: np.packbits(right) for test, right in correct.items()})
    part = path.with_name(f".{path.name}.part")
    with report_disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)


def read_correct(run: Path, row: Row) -> np.ndarray | None:
    """bool [N]: what the head of a row got right of its test; None where that is not on record.

    Raises:
        UserError: the file is damaged.
    """
    if row.metric != "accuracy" or not (row.method and row.train_share and row.n_test):
        return None
    path = correct_path(run, vars(row))
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            packed = file.get_tensor(row.split)
        if len(packed) != -(-row.n_test // 8):
            raise ValueError(f"{len(packed)} bytes for {row.n_test} rows")
    except (SafetensorError, ValueError) as e:
        raise UserError(f"{path} is damaged: {e}", f"redo the run with --force={row.stage}") from e
    return np.unpackbits(packed, count=row.n_test).astype(bool)
