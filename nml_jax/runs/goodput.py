"""Goodput: the share of the wall time of training that went into steps that count, and where the rest went.

A run that is interrupted has several sessions. Each writes what its time went to; what a later session had to do again
is lost work. Time in which no session was running is not counted, nor what a killed session did after it last wrote.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax import console
from nml_jax.runs.files import write_json

FILE = "goodput.json"

# Of a session, in the order in which they are shown.
PARTS = ("step", "start", "compile", "data", "save", "evaluate")

# At most so often is the file written between saves, in seconds.
INTERVAL = 10.0


class Clock:
    """Where the time of a session goes: every moment belongs to one of PARTS; it begins with "start"."""

    def __init__(self):
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.part, self.since = "start", time.perf_counter()

    def to(self, part: str, *, was: str | None = None) -> float:
        """From now on it is `part`. Returns the seconds since the last call, which were `was`, if given, not what was
        said then."""
        now = time.perf_counter()
        spent, self.since = now - self.since, now
        self.seconds[was or self.part] += spent
        self.part = part
        return spent

    def share(self) -> float:
        """Of steps, up to now."""
        self.to(self.part)
        return self.seconds["step"] / max(sum(self.seconds.values()), 1e-9)


class Record:
    """The file of one run, to which a session adds itself.

    Args:
        folder: of the run.
        first: the step that the session starts from.
        active: False on all processes but the first, which then write nothing.
    """

    def __init__(self, folder: Path, clock: Clock, first: int, *, active: bool = True):
        self.path, self.clock, self.first, self.active = folder / FILE, clock, first, active
        self.before = _read_sessions(self.path) if active else []
        self.written = -INTERVAL

    def write(self, step: int, *, skipped: int = 0, now: bool = True) -> None:
        """The session has reached `step`; without `now` only if the file is older than INTERVAL.

        Args:
            skipped: steps of the run that changed nothing, for a loss or gradient that was not finite.
        """
        if not self.active or (not now and time.perf_counter() - self.written < INTERVAL):
            return
        self.written = time.perf_counter()  # also if it fails: a full disk is not asked again at every step
        self.clock.to(self.clock.part)
        own = {"first": self.first, "step": step, "skipped": skipped,
               "seconds": {part: round(spent, 3) for part, spent in self.clock.seconds.items()}}  # fmt: skip
        write_json(self.path, {"sessions": [*self.before, own]})


class Summary(NamedTuple):
    """Over all sessions of a run: seconds by part, "lost" among them, and what counts."""

    seconds: dict[str, float]
    sessions: int
    skipped: int

    @property
    def wall(self) -> float:
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Goodput, in [0, 1]."""
        return self.seconds["step"] / max(self.wall, 1e-9)

    def __str__(self) -> str:
        rest = {part: spent for part, spent in self.seconds.items() if part != "step" and spent >= 0.005 * self.wall}
        of_rest = ", ".join(f"{part} {spent / self.wall:.0%}" for part, spent in rest.items())
        return f"goodput {self.share:.0%} of {console.format_seconds(self.wall)}" + (f" ({of_rest})" if of_rest else "")


def read(folder: Path) -> Summary | None:
    """Of the run in `folder`, or None if it has written none."""
    sessions = _read_sessions(folder / FILE)
    if not sessions:
        return None
    seconds: dict[str, float] = dict.fromkeys((*PARTS, "lost"), 0.0)
    for i, session in enumerate(sessions):
        for part, spent in session["seconds"].items():
            seconds[part] += spent
        # Done again by a later session: the steps of this one beyond the point from which any later one started.
        again = min([s["first"] for s in sessions[i + 1 :]], default=session["step"])
        done = session["step"] - session["first"]
        if done and again < session["step"]:
            lost = session["seconds"]["step"] * (session["step"] - max(again, session["first"])) / done
            seconds["step"] -= lost
            seconds["lost"] += lost
    return Summary(seconds, len(sessions), sessions[-1]["skipped"])


def _read_sessions(path: Path) -> list[Mapping[str, Any]]:
    return json.loads(path.read_text("utf-8"))["sessions"] if path.exists() else []
