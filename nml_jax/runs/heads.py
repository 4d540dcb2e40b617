"""Name, write and read the files of tuned heads: the head itself, and which rows of each test it gets right.

heads/<task>/[<layer>/]<head>.safetensors              the head, of the stage tune
correct/<stage>/<task>/[<layer>/]<head>.safetensors    a bit for every row of every test, under the test's name
confusion/<stage>/<task>/[<layer>/]<head>.safetensors  the confusion matrix of every test, under the test's name
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from nml_jax.errors import report_disk_errors
from nml_jax.objectives import nmtune
from nml_jax.runs.files import write_bytes
from nml_jax.runs.rows import Row
from nml_jax.runs.tensors import is_sealed, read_tensors, seal_tensors
from nml_jax.stored import FAULTS, make_damage

CONFUSIONS = "nml_jax confusion 1"  # raise the number when the tensors change their meaning


def head_name(of: Mapping[str, Any]) -> str:
    """Return the file name of a head, without suffix, from the fields of its rows. It is unique in a run."""
    words = [of["method"], preset_label(of) or ""]
    words += [f"share={of['train_share']:g}"] if of["train_share"] < 1 else []
    words += [f"noise={of['downstream_noise']:g}"] if of["downstream_noise"] else []
    words += [f"suspects={of['suspects']}"] if of.get("suspects") not in (None, "keep") else []
    words += [f"seed={of['head_seed']}"]
    return re.sub(r"[^\w=.,-]", "_", ",".join(filter(None, words)))


def preset_label(of: Mapping[str, Any]) -> str | None:
    """Return a head's preset as tables and files show it, as in "code/1view", from the fields of its rows."""
    return of["preset"] and nmtune.add_views(of["preset"], of.get("views"))


def correct_path(run: Path, of: Mapping[str, Any]) -> Path:
    """Return the path of a head's right answers, from the fields of its rows. The layer may be missing."""
    return locate(run / "correct" / of["stage"], of)


def confusion_path(run: Path, of: Mapping[str, Any]) -> Path:
    """Return the path of a head's confusion matrices, from the fields of its rows. The layer may be missing."""
    return locate(run / "confusion" / of["stage"], of)


def head_path(run: Path, of: Mapping[str, Any]) -> Path:
    """Return the path of a head of the stage tune, from the fields of its rows."""
    return locate(run / "heads", of)


def locate(folder: Path, of: Mapping[str, Any]) -> Path:
    """Return the path of a head's file in a folder of such files."""
    return folder / of["task"] / _layer(of) / f"{head_name(of)}.safetensors"


def _layer(of: Mapping[str, Any]) -> str:
    """Return the folder of a row's layer; "" for the features, whose files have no folder of their own."""
    layer = of.get("layer") or "features"
    return "" if layer == "features" else layer


def write_correct(path: Path, correct: Mapping[str, np.ndarray]) -> None:
    """Write test -> bool [N], whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    data = seal_tensors({test: np.packbits(right) for test, right in correct.items()}, {})
    with report_disk_errors(path.parent):
        write_bytes(path, data)


def read_correct(run: Path, row: Row) -> np.ndarray | None:
    """Read which rows of its test the head of `row` got right, bool [N]; None if there is no record.

    Raises:
        UserError: the file is damaged.
    """
    if row.metric != "accuracy" or row.wise_alpha is not None or not (row.method and row.train_share and row.n_test):
        return None
    path = correct_path(run, vars(row))
    if not path.exists():
        return None
    try:
        tensors, meta = read_tensors(path)
        is_sealed(tensors, meta)
        packed = tensors[row.split]
        if len(packed) != -(-row.n_test // 8):
            raise ValueError(f"{len(packed)} bytes for {row.n_test} rows")
    except (SafetensorError, OSError, *FAULTS) as e:
        raise make_damage(path, e, f"run it again with --force={row.stage}") from e
    return np.unpackbits(packed, count=row.n_test).astype(bool)


def write_confusions(path: Path, confusions: Mapping[str, np.ndarray]) -> None:
    """Write test -> confusion matrix int [K, K], whole or not at all.

    The file holds the cells that are not zero: int64 [n, 3] of true class, predicted class and rows, and a last line
    of K, K and 0.

    Raises:
        UserError: the disk is full.
    """
    cells = {}
    for test, matrix in confusions.items():
        true, predicted = np.nonzero(matrix)
        lines = np.stack([true, predicted, matrix[true, predicted]], 1)
        cells[test] = np.concatenate([lines, [[*matrix.shape, 0]]]).astype(np.int64)
    with report_disk_errors(path.parent):
        write_bytes(path, seal_tensors(cells, {"format": CONFUSIONS}))


def read_confusion(run: Path, row: Row) -> np.ndarray | None:
    """Read the confusion matrix of a head on the test of `row`, int64 [K, K]; None if there is no record.

    Raises:
        UserError: the file is damaged, or of a newer version.
    """
    if row.wise_alpha is not None or not (row.method and row.train_share):
        return None
    path = confusion_path(run, vars(row))
    if not path.exists():
        return None
    try:
        cells, meta = read_tensors(path)
        is_sealed(cells, meta)
        if meta.get("format") != CONFUSIONS:
            raise ValueError(f"its format is {meta.get('format')!r}")
        *lines, (k, _, _) = cells[row.split].tolist()
        matrix = np.zeros((k, k), np.int64)
        for true, predicted, n in lines:
            matrix[true, predicted] = n
    except (SafetensorError, OSError, MemoryError, *FAULTS) as e:
        raise make_damage(path, e, f"run it again with --force={row.stage}") from e
    return matrix
