"""Write the numbers of training: metrics.jsonl, samples.jsonl, TensorBoard events and one progress line."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nml_jax.console import format_seconds, make_printable, notice
from nml_jax.errors import UserError
from nml_jax.runs.files import write_atomic
from nml_jax.stored import FAULTS, parse_json, read_lines, require_type

CURE = "delete it, and the curves are left out; or train again with --force=pretrain"


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """Read the lines of a run's `metrics.jsonl`, if it has one. Skip the half line of a killed writer.

    Raises:
        UserError: another line is not what `Metrics` writes.
    """
    path, out = workdir / "metrics.jsonl", []
    lines = read_lines(path, CURE) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            values = require_type(parse_json(line), dict[str, float])
            out.append(values | {"step": require_type(values["step"], int)})
        except FAULTS as e:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is damaged: {e}", CURE) from e
    return out


def drop_after(path: Path, step: int) -> None:
    """Drop the lines of a metrics file after `step`. A restart from a checkpoint writes them again.

    Also drop what is not such a line: the half line of a killed writer, or damage, which is told.
    """
    if not path.exists():
        return
    lines, kept, damaged = path.read_bytes().split(b"\n"), [], []
    for number, line in enumerate(lines, 1):
        try:
            if require_type(parse_json(line)["step"], int) <= step:
                kept.append(line.decode())
        except FAULTS:
            damaged += [number] if line.strip() and number < len(lines) else []
    if damaged:
        notice(f"{path}: {len(damaged)} damaged line(s) are left out, the first is line {damaged[0]}")
    write_atomic(path, "".join(f"{line}\n" for line in kept))


class Metrics:
    """A writer of JSON lines and TensorBoard events in a run's folder, and of one progress line on stderr.

    On a terminal the progress line is rewritten in place. Elsewhere a new line is printed once a minute.

    Args:
        workdir: folder of the run. `metrics.jsonl`, `samples.jsonl` and `tensorboard/` are written there.
        step: the step that training starts from. Lines that an interrupted run wrote after it are dropped.
        steps: number of steps of the whole run, for the ETA.
        batch: examples per step.
        label: name of the run on the progress line.
        active: False on all processes but the first, which then write nothing.
    """

    INTERVAL = 60.0  # seconds between two progress lines without a terminal

    def __init__(self, workdir: Path, *, step: int, steps: int, batch: int, label: str, active: bool = True):
        self.active, self.steps, self.batch, self.label = active, steps, batch, label
        self.first = self.last = step
        self.started = self.since = time.perf_counter()
        self.waited = 0.0
        self.shown, self.printed = "", -math.inf
        if active:
            self.files = {}
            for name in ("metrics", "samples"):
                path = workdir / f"{name}.jsonl"
                drop_after(path, step)
                self.files[name] = path.open("a", encoding="utf-8")
            self.events = _Events(workdir / "tensorboard", purge=step + 1 if step else 0)

    def add_wait(self, seconds: float) -> None:
        """Add seconds in which the device was idle because the next batch was not ready."""
        self.waited += seconds

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write `values` at `step`. Values must be finite."""
        if not self.active:
            return
        line = {"step": step, "time": round(time.time(), 3), **{k: float(f"{v:.7g}") for k, v in values.items()}}
        self._append("metrics", [line])
        self.events.add(step, values)

    def write_samples(self, ids: Mapping[int, Any]) -> None:
        """Write the samples of each step, step -> ids or a digest of them, as lines {"step", "ids"}."""
        if self.active:
            self._append("samples", [{"step": step, "ids": shown} for step, shown in ids.items()])

    def _append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        self.files[name].write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        self.files[name].flush()

    def progress(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Show progress. Return the speed since the last call: examples/s and the share of time spent waiting."""
        now = time.perf_counter()
        span = max(now - self.since, 1e-9)
        speed = {"examples_per_s": (step - self.last) * self.batch / span, "data_wait": min(self.waited / span, 1.0)}
        self.last, self.since, self.waited = step, now, 0.0
        if self.active:
            eta = (now - self.started) / max(step - self.first, 1) * (self.steps - step)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.show(
                f"{self.label}  step {step}/{self.steps}  {shown}  {speed['examples_per_s']:,.0f} examples/s  "
                f"waiting for data {speed['data_wait']:.0%}  ETA {format_seconds(eta)}"
            )
        return speed

    def show(self, line: str) -> None:
        """Rewrite the progress line on a terminal; elsewhere print it every INTERVAL. `close` prints the last."""
        self.shown = line = make_printable(line)
        if sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\033[K{line[: width - 1]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.printed >= self.INTERVAL:
            notice(line)
            self.shown, self.printed = "", time.monotonic()

    def close(self) -> None:
        """Print the last progress line and close the files."""
        if not self.active:
            return
        if self.shown:
            print(("\r\033[K" if sys.stderr.isatty() else "") + self.shown, file=sys.stderr, flush=True)
        with contextlib.ExitStack() as stack:  # closes all, even if closing one fails
            for file in (*self.files.values(), self.events):
                stack.callback(file.close)


class _Events:
    """A writer of scalars as TensorBoard events. It writes in the caller's thread, so a full disk raises there.

    Args:
        purge: TensorBoard ignores older events from this step on, left by an interrupted run; 0: none.
    """

    INTERVAL = 60.0  # seconds between two flushes

    def __init__(self, folder: Path, *, purge: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        folder.mkdir(parents=True, exist_ok=True)
        self.writer, self.flushed = EventsWriter(str(folder / "events")), time.monotonic()
        if purge:
            start = SessionLog(status=SessionLog.START)
            self.writer.write_event(Event(wall_time=time.time(), step=purge, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self.writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self.flushed > self.INTERVAL:
            self.writer.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        self.writer.close()
