"""Report how far a job of several runs is and how long the rest takes, in a live line or in a line a minute."""

import contextlib
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from nml_jax.console import format_seconds, notice, show_live

EVERY = 60.0  # seconds between two lines in a file
LIVE = 1.0  # seconds between two updates of the line of a terminal
FEWEST = 3  # steps by which their length is known: the first has compiled
TRUST = 0.2  # weight of what was expected beside what was measured, as a share of the whole


class Forecast:
    """A forecast from expected seconds, which are corrected by what was measured.

    Parts whose names end alike, after ": ", are of one kind, such as a method in several runs.

    Args:
        parts: expected seconds by the name of the part.
        steps: expected steps of equal length, by the name of the part; those without are not followed.

    Attributes:
        parts: expected seconds of the parts that are not done, by name.
        spent: measured seconds of those that are.
        where: when the parts in progress began, by name.
        known: seconds of a part of a kind, as one of them took them.
        what: what goes on, in words.
    """

    def __init__(self, parts: Mapping[str, float], steps: Mapping[str, float] = MappingProxyType({})):
        self.parts, self.spent, self.where, self.what = dict(parts), dict[str, float](), dict[str, float](), ""
        self.steps, self.known, self._marks = dict(steps), dict[str, float](), dict[str, float]()
        self._times: list[float] = []  # when the steps of the part in progress were done
        self.whole, self.done, self.told = sum(parts.values()), 0.0, time.monotonic()

    def estimate(self) -> float:
        """Return the seconds that are left: those of parts like one that is done, the others by the pace of all."""
        parts, where, spent = dict(self.parts), dict(self.where), dict(self.spent)  # those of another thread change
        now, times, trust = time.monotonic(), list(self._times), TRUST * self.whole
        current = next((name for name in reversed(where) if name in parts), "")
        each, more = self._follow_steps(current, times)
        share = 0.0 if each is None else len(times) / (len(times) + more)  # of the part in progress
        running = (len(times) * (each or 0.0), share * parts.get(current, 0.0))
        pace = (sum(spent.values()) + running[0] + trust) / max(self.done + running[1] + trust, 1e-9)
        left = 0.0
        for name, seconds in parts.items():
            own = self.known.get(_kind(name), pace * seconds)
            if name in where:  # what takes longer than expected is taken to be near its end
                ahead = own - (now - where[name]) if each is None else each * more
                own = max(ahead, own / 10 if each is None else each)
            left += own
        return left

    def _follow_steps(self, name: str, times: Sequence[float]) -> tuple[float | None, float]:
        """Return the seconds of a step of the part in progress, None if they are not known, and the steps ahead."""
        if len(times) < FEWEST or name not in self.steps:
            return None, 0.0
        return statistics.median(np.diff(times)), max(self.steps[name] - len(times), 0.0)

    def start(self, name: str) -> None:
        self.where[name], self.what = time.monotonic(), ""
        self._times = []

    def step(self) -> None:
        self._times.append(time.monotonic())

    def mark(self) -> None:
        """Note that from now on the part in progress does what each later part of its kind does."""
        for name in self.where:
            if name in self.parts:
                self._marks[name] = time.monotonic()

    def finish(self, name: str) -> None:
        now = time.monotonic()
        seconds, self._times = now - self.where.pop(name), []
        if name in self.parts:
            expected = self.parts.pop(name)
            self.spent[name] = seconds
            self.done += expected
            like = [other for key, other in self.parts.items() if _kind(key) == _kind(name)]
            if name in self._marks:
                self.known[_kind(name)] = now - self._marks.pop(name)
            elif like == [expected] * len(like):
                self.known[_kind(name)] = seconds
        self.what = ""

    def tell(self) -> None:
        """Print where the job is, if it is time to."""
        live = sys.stderr is not None and sys.stderr.isatty()
        if time.monotonic() - self.told < (LIVE if live else EVERY):
            return
        self.told = time.monotonic()
        left = f"; about {format_seconds(self.estimate())} left" if self.parts else ""
        line = ", ".join(filter(None, [*list(self.where)[-1:], self.what])) + left
        show_live(line) if live else notice(line)


def _kind(name: str) -> str:
    return name.rpartition(": ")[2]


_current: Forecast | None = None


@contextlib.contextmanager
def begin(parts: Mapping[str, float], steps: Mapping[str, float] = MappingProxyType({})) -> Iterator[Forecast]:
    """Make a forecast of named parts, in expected seconds and steps, that of this process for a while.

    A thread tells it, so that a long solution does not keep it silent. Without parts nothing is told.
    """
    global _current
    before, _current = _current, Forecast(parts, steps)
    over = threading.Event()

    def tell(forecast: Forecast = _current) -> None:
        while not over.wait(LIVE):
            forecast.tell()

    thread = threading.Thread(target=tell, daemon=True)
    if parts:
        thread.start()
    try:
        yield _current
    finally:
        over.set()
        if parts:
            thread.join()
        show_live("")
        _current = before


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Do a part of the job. A part that the forecast does not know only shows where the job is."""
    if _current is None:
        yield
        return
    forecast = _current
    forecast.start(name)
    try:
        yield
    finally:
        forecast.finish(name)


def note(what: str) -> None:
    """Tell the forecast, if there is one, what is going on."""
    if _current is not None:
        _current.what = what


def step(what: str) -> None:
    """Tell the forecast, if there is one, that one of equal steps is done, and what goes on."""
    if _current is not None:
        _current.step()
        _current.what = what


def mark() -> None:
    """Call `Forecast.mark`, if there is a forecast."""
    if _current is not None:
        _current.mark()
