"""Write and read what heads answer to every row of their tests.

predictions/<stage>/<task>/[<layer>/]<head>.safetensors holds, under TEST/label, TEST/answer and so on, an array [N] for
every field of `Predictions`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError

from nml_jax.errors import report_disk_errors
from nml_jax.runs.files import write_bytes
from nml_jax.runs.heads import locate
from nml_jax.runs.rows import Row
from nml_jax.runs.tensors import is_sealed, read_tensors, seal_tensors
from nml_jax.stored import FAULTS, make_damage

FORMAT = "nml_jax predictions 1"  # raise the number when the tensors change their meaning


class Predictions(NamedTuple):
    """The answers of a head to a test.

    label, answer: classes of the test, unsigned int [N]; of a regression targets and predictions, float32 [N].
    loss, confidence: cross-entropy in nats, and probability of the answer, float32 [N]; with the head's temperature.
        None where the scores are not logits.
    loss_before, confidence_before: without the temperature; None if there is none.
    """

    label: np.ndarray
    answer: np.ndarray
    loss: np.ndarray | None = None
    confidence: np.ndarray | None = None
    loss_before: np.ndarray | None = None
    confidence_before: np.ndarray | None = None


def predictions_path(run: Path, of: Mapping[str, Any]) -> Path:
    """Return the path of a head's answers, from the fields of its rows. The layer may be missing."""
    return locate(run / "predictions" / of["stage"], of)


def write_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Write test -> answers, whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    arrays = {}
    for test, found in predictions.items():
        arrays |= {f"{test}/{name}": _shrink(x) for name, x in found._asdict().items() if x is not None}
    with report_disk_errors(path.parent):
        write_bytes(path, seal_tensors(arrays, {"format": FORMAT}))


def _shrink(x: np.ndarray) -> np.ndarray:
    """Return classes in the smallest type that holds them, and numbers as float32."""
    return x.astype(np.float32) if x.dtype.kind == "f" else x.astype(np.min_scalar_type(int(x.max(initial=0))))


def read_predictions(run: Path, row: Row) -> Predictions | None:
    """Read the answers of a head to the test of `row`; None if there is no record.

    Raises:
        UserError: the file is damaged, or of a newer version.
    """
    if row.wise_alpha is not None or not (row.method and row.train_share and row.n_test):
        return None
    path = predictions_path(run, vars(row))
    if not path.exists():
        return None
    try:
        tensors = _read_once(path, path.stat().st_mtime_ns, path.stat().st_size)
        fields = {name: tensors.get(f"{row.split}/{name}") for name in Predictions._fields}
        if fields["label"] is None or fields["answer"] is None:
            raise ValueError(f"it has no answers to {row.split}")
        if wrong := [name for name, x in fields.items() if x is not None and x.shape != (row.n_test,)]:
            raise ValueError(f"{wrong[0]} is not of {row.n_test} rows")
    except (SafetensorError, OSError, *FAULTS) as e:
        raise make_damage(path, e, f"run it again with --force={row.stage}") from e
    return Predictions(**fields)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=16)
def _read_once(path: Path, modified: int, size: int) -> dict[str, np.ndarray]:
    """Read and prove a file; a report reads each of them for every test and metric."""
    tensors, meta = read_tensors(path)
    is_sealed(tensors, meta)
    if meta.get("format") != FORMAT:
        raise ValueError(f"its format is {meta.get('format')!r}")
    return tensors
