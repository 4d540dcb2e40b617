"""What a run writes down: rows (final numbers), metrics (numbers on the way), and one progress line for the person."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError

ROW_SCHEMA = 1

QUARANTINE = "quarantine.jsonl"  # of a run: its undecodable records


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


def atomic_write(path: Path, text: str) -> None:
    """Write a file so that a reader, or a restart after a kill, sees the old content or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several hosts may write one file, and in containers every process has the same number.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # what went wrong with it is about to be told
            part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(workdir: Path, stage: str, rows: Iterable[Row]) -> None:
    """Replace the rows of `stage` in `workdir/rows.jsonl`; those of other stages stay as they are."""
    kept = [row for row in read_rows(workdir) if row.stage != stage]
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False, allow_nan=False) for row in [*kept, *rows]]
    atomic_write(workdir / "rows.jsonl", "".join(f"{line}\n" for line in lines))


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


def digest(rows: Iterable[Row], stage: str) -> str:
    """SHA-256 of those rows that are of `stage`, by which it is found that some were changed or lost."""
    own = [dataclasses.asdict(row) for row in rows if row.stage == stage]
    told = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in own]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`, if it has one, but for the half line of a killed writer."""
    path, lines = workdir / "metrics.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def drop_after(path: Path, step: int) -> None:
    """Drop the lines of a metrics file written after `step`: a restart from a checkpoint writes them again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except ValueError:  # the half line of a killed writer
            continue
    atomic_write(path, "".join(f"{line}\n" for line in lines))


class Metrics:
    """Numbers on the way: JSON lines and TensorBoard events in a run's folder, and one progress line on stderr.

    On a terminal the line is rewritten; in the file of a launcher it is a new one, the first at once.

    Args:
        workdir: folder of the run; `metrics.jsonl`, `samples.jsonl` and `tensorboard/` are written there.
        step: the step training (re)starts from; what an interrupted run wrote after it is dropped.
        steps: of the whole run, for the ETA.
        batch: examples per step.
        label: names the run on the progress line.
        active: False on all processes but the first, which then write nothing.
    """

    INTERVAL = 60.0  # seconds between two progress lines where there is no terminal

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

    def waiting(self, seconds: float) -> None:
        """Count time in which the device had nothing to do because the next batch was not there."""
        self.waited += seconds

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write `values` at `step`. Values must be finite."""
        if not self.active:
            return
        line = {"step": step, "time": round(time.time(), 3), **{k: float(f"{v:.7g}") for k, v in values.items()}}
        self._append("metrics", [line])
        self.events.add(step, values)

    def samples(self, ids: Mapping[int, Any]) -> None:
        """Write what each step was shown, step -> ids or a digest of them: a line {"step", "ids"} each."""
        if self.active:
            self._append("samples", [{"step": step, "ids": shown} for step, shown in ids.items()])

    def _append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        self.files[name].write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        self.files[name].flush()

    def progress(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Show where training is. Returns the speed since the last call: examples/s and the share of waiting."""
        now = time.perf_counter()
        span = max(now - self.since, 1e-9)
        speed = {"examples_per_s": (step - self.last) * self.batch / span, "data_wait": min(self.waited / span, 1.0)}
        self.last, self.since, self.waited = step, now, 0.0
        if self.active:
            eta = (now - self.started) / max(step - self.first, 1) * (self.steps - step)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.show(
                f"{self.label}  step {step}/{self.steps}  {shown}  {speed['examples_per_s']:,.0f} examples/s  "
                f"waiting for data {speed['data_wait']:.0%}  ETA {clock(eta)}"
            )
        return speed

    def show(self, line: str) -> None:
        """Rewrite the progress line on a terminal; elsewhere print it now and then. `close` prints the last."""
        self.shown = line
        if sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\033[K{line[: width - 1]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.printed >= self.INTERVAL:
            say(line)
            self.shown, self.printed = "", time.monotonic()

    def close(self) -> None:
        if not self.active:
            return
        if self.shown:
            print(("\r\033[K" if sys.stderr.isatty() else "") + self.shown, file=sys.stderr, flush=True)
        with contextlib.ExitStack() as stack:  # one that cannot be closed does not keep the others open
            for file in (*self.files.values(), self.events):
                stack.callback(file.close)


class _Events:
    """Scalars as TensorBoard events; written in the thread of the caller, who so hears of a full disk.

    Args:
        purge: events of this step and later ones, of an interrupted run, do not count; 0: none.
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


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say(message: str) -> None:
    """One line for the person at the terminal. Results go to stdout, this goes to stderr."""
    print(message, file=sys.stderr, flush=True)
