"""Say how far a job of several runs is and how long the rest takes: a live line in a terminal, else one a minute."""

import contextlib
import sys
import time
from collections.abc import Iterator

from nml_jax.console import format_seconds, make_printable, notice

EVERY = 60.0  # seconds between two lines in a file
LIVE = 1.0  # seconds between two updates of the line of a terminal


class Forecast:
    """A forecast from expected seconds, which are corrected by what was measured.

    Attributes:
        left: expected seconds of the parts that are not done.
    """

    def __init__(self, parts: dict[str, float]):
        self.parts, self.done = dict(parts), 0.0
        self.begun = self.told = time.monotonic()
        self.where: list[str] = []

    @property
    def left(self) -> float:
        return sum(self.parts.values())

    def estimate(self) -> float:
        """Return the seconds that are left, by the pace of what is done."""
        spent = time.monotonic() - self.begun
        now = sum(self.parts[name] for name in self.where if name in self.parts)  # in progress
        if not self.done:
            return max(self.left - spent, self.left / 10)
        pace = min(max(spent / (self.done + now / 2), 0.2), 5.0)
        return max(pace * (self.left - now / 2), 0.0)

    def finish(self, name: str) -> None:
        self.done += self.parts.pop(name, 0.0)

    def tell(self, what: str, *, at_once: bool = False) -> None:
        """Print where the job is, if it is time to."""
        live = sys.stderr is not None and sys.stderr.isatty()
        now = time.monotonic()
        if not at_once and now - self.told < (LIVE if live else EVERY):
            return
        self.told = now
        line = f"{', '.join([*self.where, what])}; about {format_seconds(self.estimate())} left"
        if live and not at_once:
            with contextlib.suppress(OSError, ValueError):
                print(f"\r\x1b[K{make_printable(line)}", end="", file=sys.stderr, flush=True)
        else:
            notice(line)


_current: Forecast | None = None


@contextlib.contextmanager
def begin(parts: dict[str, float]) -> Iterator[Forecast]:
    """Make a forecast of named parts, in expected seconds, that of this process for a while."""
    global _current
    before, _current = _current, Forecast(parts)
    try:
        yield _current
    finally:
        _current = before


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Do a part of the job. A part that the forecast does not know only shows where the job is."""
    if _current is None:
        yield
        return
    forecast = _current
    forecast.where.append(name)
    try:
        yield
    finally:
        forecast.finish(name)
        forecast.where.remove(name)


def note(what: str) -> None:
    """Tell the forecast, if there is one, what is going on."""
    if _current is not None:
        _current.tell(what)
