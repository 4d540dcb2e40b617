"""Measure goodput: the share of training's wall time that went into steps that count, and where the rest went.

An interrupted run has several sessions. Each writes how it spent its time. Steps that a later session repeats are lost
work. Time between sessions is not counted, nor the time of a killed session after its last write.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax import console
from nml_jax.runs.files import write_json
from nml_jax.stored import FAULTS, fits, parse_json

FILE = "goodput.json"

# The parts of a session's time, in the order in which they are shown.
PARTS = ("step", "start", "compile", "data", "save", "evaluate")

INTERVAL = 10.0  # between saves, write the file at most every so many seconds


class Clock:
    """A clock for the time of a session. Every moment belongs to one of PARTS; the first part is "start"."""

    def __init__(self):
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.part, self.since = "start", time.perf_counter()

    def to(self, part: str, *, was: str | None = None) -> float:
        """Switch to `part` and return the seconds since the last call, which count as `was` if it is given."""
        now = time.perf_counter()
        spent, self.since = now - self.since, now
        self.seconds[was or self.part] += spent
        self.part = part
        return spent

    def share(self) -> float:
        """Return the share of steps in the time up to now, in [0, 1]."""
        self.to(self.part)
        return self.seconds["step"] / max(sum(self.seconds.values()), 1e-9)


class Record:
    """The goodput file of one run. A session adds itself to it.

    Args:
        folder: folder of the run.
        first: the step that the session starts from.
        active: False on all processes but the first, which then write nothing.
    """

    def __init__(self, folder: Path, clock: Clock, first: int, *, active: bool = True):
        self.path, self.clock, self.first, self.active = folder / FILE, clock, first, active
        self.before = _read_sessions(self.path) if active else []
        self.written = -INTERVAL

    def write(self, step: int, *, skipped: int = 0, now: bool = True) -> None:
        """Write that the session has reached `step`. Without `now`, write only if the file is older than INTERVAL.

        Args:
            skipped: steps of the run that changed nothing because their loss or gradient was not finite.
        """
        if not self.active or (not now and time.perf_counter() - self.written < INTERVAL):
            return
        self.written = time.perf_counter()  # before writing: a full disk must not be tried at every step
        self.clock.to(self.clock.part)
        own = {"first": self.first, "step": step, "skipped": skipped,
               "seconds": {part: round(spent, 3) for part, spent in self.clock.seconds.items()}}  # fmt: skip
        write_json(self.path, {"sessions": [*self.before, own]})


class Summary(NamedTuple):
    """The times of all sessions of a run: seconds by part (one is "lost"), number of sessions, skipped steps."""

    seconds: dict[str, float]
    sessions: int
    skipped: int

    @property
    def wall(self) -> float:
        """Wall time in seconds."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Goodput, in [0, 1]."""
        return self.seconds["step"] / max(self.wall, 1e-9)

    def __str__(self) -> str:
        rest = {part: spent for part, spent in self.seconds.items() if part != "step" and spent >= 0.005 * self.wall}
        shares = ", ".join(f"{part} {spent / self.wall:.0%}" for part, spent in rest.items())
        return f"goodput {self.share:.0%} of {console.format_seconds(self.wall)}" + (f" ({shares})" if shares else "")


def read(folder: Path) -> Summary | None:
    """Read the summary of the run in `folder`; None if it has no goodput file."""
    sessions = _read_sessions(folder / FILE)
    if not sessions:
        return None
    seconds: dict[str, float] = dict.fromkeys((*PARTS, "lost"), 0.0)
    for i, session in enumerate(sessions):
        for part, spent in session["seconds"].items():
            seconds[part] += spent
        # A later session repeats the steps of this one that lie beyond its own start.
        again = min([s["first"] for s in sessions[i + 1 :]], default=session["step"])
        done = session["step"] - session["first"]
        if done and again < session["step"]:
            lost = session["seconds"]["step"] * (session["step"] - max(again, session["first"])) / done
            seconds["step"] -= lost
            seconds["lost"] += lost
    return Summary(seconds, len(sessions), sessions[-1]["skipped"])


def _read_sessions(path: Path) -> list[Mapping[str, Any]]:
    """Read the sessions; none if the file is damaged, because only this summary depends on it."""
    kinds = {"first": int, "step": int, "skipped": int, "seconds": dict[str, float]}
    try:
        sessions = parse_json(path.read_bytes())["sessions"]
        sound = all(fits(s[key], kind) for s in sessions for key, kind in kinds.items())
        return sessions if sound and all(s["seconds"].keys() == set(PARTS) for s in sessions) else []
    except (OSError, *FAULTS):
        return []
