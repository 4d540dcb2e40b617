"""Hold the metrics of steps on the device until they are needed.

Every process reads the same values of the same steps. So all make the same decision at the same step, without
communication.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nml_jax import runtime
from nml_jax.errors import NonFinite
from nml_jax.hashes import hash_bytes

LAG = 2  # steps sent to the device before waiting for the result of one
OURS = ("asked", "streak")  # values of a step that are read here and not logged


class Signals(NamedTuple):
    """Messages between processes, sent with a batch and summed by the step. int32 [devices] each.

    Attributes:
        asked: 1 on all devices of a process that was asked to stop.
        quarantined: number of replaced rows of the batch, on the first device of their process.
    """

    asked: Any
    quarantined: Any


class Seen(NamedTuple):
    """Results of the steps of a window.

    Attributes:
        means: "train/<name>" -> mean of a metric: the sum of its sums over the sum of its counts.
        ids: step -> ids of its global batch, int32 [B].
        skipped: steps that changed nothing.
        undecodable: ids of records that were replaced by others.
    """

    means: dict[str, float]
    ids: dict[int, np.ndarray]
    skipped: list[int]
    undecodable: list[int]


def put_signals(mesh: Mesh, asked: bool = False, quarantined: int = 0) -> Signals:
    """Put this process's signals on its devices."""
    own = np.zeros((2, len(mesh.local_devices)), np.int32)
    own[0], own[1, 0] = asked, quarantined
    return Signals(**runtime.put_batch(mesh)(dict(zip(Signals._fields, own, strict=True))))


class Window:
    """A window of the steps since the last call of `close`.

    Args:
        max_skipped: steps in a row that may be skipped.
    """

    def __init__(self, mesh: Mesh, max_skipped: int):
        self.mesh, self.max_skipped = mesh, max_skipped
        self.put = runtime.put_batch(mesh)
        self.quiet = put_signals(mesh)  # made once: in a small step a put takes longer than all the rest
        self.steps: list[tuple[int, Any, np.ndarray, np.ndarray]] = []
        self.unread: deque[tuple[int, Any, np.ndarray]] = deque()

    def signal(self, *, asked: bool, quarantined: np.ndarray) -> Signals:
        """Return this process's signals for its next step.

        Args:
            asked: True if this process was asked to stop.
            quarantined: as a `Portion` has it.
        """
        replaced = int((quarantined >= 0).sum())
        return put_signals(self.mesh, asked, replaced) if asked or replaced else self.quiet

    def add(self, step: int, values: Mapping[str, Any], ids: np.ndarray, quarantined: np.ndarray) -> None:
        """Add the results of a step.

        Args:
            values: metrics of the step, name -> (sum, count) on the device.
            ids: ids of this process's rows of the batch.
            quarantined: as a `Portion` has it.
        """
        self.steps.append((step, {k: v for k, v in values.items() if k not in OURS}, ids, quarantined))
        self.unread.append((step, tuple(values[name][0] for name in OURS), ids))

    def is_idle(self) -> bool:
        """Return whether there are steps and the device has finished them all."""
        return bool(self.unread) and self.unread[-1][1][0].is_ready()

    def check_stop(self, lag: int) -> bool:
        """Return whether a process was asked to stop before a step that is at least `lag` steps old.

        Raises:
            NonFinite: too many steps in a row were skipped.
        """
        stop = False
        while len(self.unread) > lag:
            step, signals, own = self.unread.popleft()
            asked, streak = map(int, jax.device_get(signals))
            stop |= asked > 0
            if streak >= self.max_skipped:
                ids = list_ids(self._gather(own))
                raise NonFinite(
                    f"the loss or its gradient was not finite in {streak} steps in a row (runtime.max_skipped), the "
                    f"last is step {step}; ids of its batch: {ids}"
                )
        return stop

    def close(self) -> Seen:
        """Wait for all steps, return their results and begin a new window.

        Raises:
            NonFinite: a metric is not finite though loss and gradient are. The message names step and ids.
        """
        values = jax.device_get([values for _, values, *_ in self.steps])
        whole = self._gather(np.stack([own for _, _, own, _ in self.steps], axis=1))
        ids = {step: whole[:, k] for k, (step, *_) in enumerate(self.steps)}
        undecodable: list[int] = []
        for (step, _, _, quarantined), metrics in zip(self.steps, values, strict=True):
            for name, (total, _) in metrics.items():
                if not math.isfinite(total):
                    raise NonFinite(f"{name} is {float(total)} at step {step}; ids of its batch: {list_ids(ids[step])}")
            if metrics.get("quarantined", (0, 0))[0] > 0:
                replaced = self._gather(quarantined)
                undecodable += replaced[replaced >= 0].tolist()
        skipped = [step for (step, *_), m in zip(self.steps, values, strict=True) if m["skipped"][0] > 0]
        self.steps.clear()
        sums = {name: [math.fsum(part) for part in zip(*(m[name] for m in values), strict=True)] for name in values[0]}
        means = {f"train/{name}": total / count for name, (total, count) in sums.items() if count}
        return Seen(means, ids, skipped, undecodable)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        """Gather all rows of a global batch from all processes, along the first axis. Every process must call this."""
        if jax.process_count() == 1:
            return rows
        return runtime.fetch(self.put({"rows": rows}), self.mesh)["rows"]


def list_ids(ids: np.ndarray) -> str:
    """Return ids as a message shows them."""
    return ", ".join(map(str, ids))


def hash_ids(ids: np.ndarray) -> str:
    """Return the first 16 hex digits of the SHA-256 of a batch's ids, as int32 bytes in their order."""
    return hash_bytes(ids.astype("<i4").tobytes())[:16]
