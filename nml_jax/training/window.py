"""Hold the metrics of steps on the device until they are needed.

Every process reads the same values of the same steps. So all decide alike, at the same step, without communication.
"""

import hashlib
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nml_jax import runtime
from nml_jax.errors import NonFinite

# So many steps are on their way to the device, and no more, before the answer of one is waited for.
LAG = 2

# Of the step's values, those that are for us alone.
SIGNALS = ("asked", "streak")


class Seen(NamedTuple):
    """The steps of a window.

    Attributes:
        means: sum over sum of counts of every metric, as "train/<name>".
        ids: step -> ids of its global batch, int32 [B].
        skipped: the steps that changed nothing.
        undecodable: ids of records that others stand in for, as `pipeline.train` says.
    """

    means: dict[str, float]
    ids: dict[int, np.ndarray]
    skipped: list[int]
    undecodable: list[int]


class Window:
    """The steps since the last look.

    Args:
        max_skipped: steps in a row that may be skipped.
    """

    def __init__(self, mesh: Mesh, max_skipped: int):
        self.mesh, self.max_skipped = mesh, max_skipped
        self.put = runtime.put_batch(mesh)
        self.steps: list[tuple[int, Any, Mapping[str, np.ndarray]]] = []
        self.unread: deque[tuple[int, Any, Any]] = deque()

    def add(self, step: int, values: Mapping[str, Any], local: Mapping[str, np.ndarray]) -> None:
        """Hold a step's metrics, name -> (sum, count) on the device, and the `id` and `quarantined` of its batch."""
        rows = {k: local[k] for k in ("id", "quarantined") if k in local}
        self.steps.append((step, {k: v for k, v in values.items() if k not in SIGNALS}, rows))
        self.unread.append((step, tuple(values[name][0] for name in SIGNALS), rows))

    def idle(self) -> bool:
        """Return whether the device has finished all steps, and there was one."""
        return bool(self.unread) and self.unread[-1][1][0].is_ready()

    def asked(self, lag: int) -> bool:
        """Return whether any process was asked to stop before it began one of the steps up to `lag` before the last.

        Raises:
            NonFinite: too many steps in a row were skipped up to one of these.
        """
        found = False
        while len(self.unread) > lag:
            step, signals, rows = self.unread.popleft()
            asked, streak = map(int, jax.device_get(signals))
            found |= asked > 0
            if streak >= self.max_skipped:
                ids = list_ids(self._whole(rows["id"]))
                raise NonFinite(
                    f"the loss or its gradient was not finite in {streak} steps in a row (runtime.max_skipped), the "
                    f"last is step {step}; ids of its batch: {ids}"
                )
        return found

    def close(self) -> Seen:
        """Wait for all steps, return their results, and begin a new window.

        Raises:
            NonFinite: a metric is not finite in a step whose loss and gradient are; names step and ids.
        """
        values = jax.device_get([values for _, values, _ in self.steps])
        whole = self._whole(np.stack([rows["id"] for _, _, rows in self.steps], axis=1))
        ids = {step: whole[:, k] for k, (step, _, _) in enumerate(self.steps)}
        undecodable: list[int] = []
        for (step, _, rows), metrics in zip(self.steps, values, strict=True):
            for name, (total, _) in metrics.items():
                if not math.isfinite(total):
                    raise NonFinite(f"{name} is {float(total)} at step {step}; ids of its batch: {list_ids(ids[step])}")
            if metrics.get("quarantined", (0, 0))[0] > 0:
                found = self._whole(rows["quarantined"])
                undecodable += found[found >= 0].tolist()
        skipped = [step for (step, _, _), m in zip(self.steps, values, strict=True) if m["skipped"][0] > 0]
        self.steps.clear()
        sums = {name: [math.fsum(part) for part in zip(*(m[name] for m in values), strict=True)] for name in values[0]}
        means = {f"train/{name}": total / count for name, (total, count) in sums.items() if count}
        return Seen(means, ids, skipped, undecodable)

    def _whole(self, rows: np.ndarray) -> np.ndarray:
        """Gather all rows of a global batch from each process's, along the first axis. Every process must call this."""
        if jax.process_count() == 1:
            return rows
        return runtime.fetch(self.put({"rows": rows}), self.mesh)["rows"]


def list_ids(ids: np.ndarray) -> str:
    """List ids for a message."""
    return ", ".join(map(str, ids))


def hash_ids(ids: np.ndarray) -> str:
    """Return the first 16 hex digits of the SHA-256 of a batch's ids, as int32 bytes in their order."""
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()[:16]
