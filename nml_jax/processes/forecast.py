"""Say how far a job of several runs is and how long the rest takes: a live line in a terminal, else one a minute."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from nml_jax.console import format_seconds, notice, show_live

EVERY = 60.0  # seconds between two lines in a file
LIVE = 1.0  # seconds between two updates of the line of a terminal
TRUST = 0.2  # weight of what was expected beside what was measured, as a share of the whole


class Forecast:
    """A forecast from expected seconds, which are corrected by what was measured.

    Attributes:
        parts: expected seconds of the parts that are not done, by name.
        spent: measured seconds of those that are.
        where: when the parts in progress began, by name.
        what: what goes on, in words.
    """

    def __init__(self, parts: Mapping[str, float]):
        self.parts, self.spent, self.where, self.what = dict(parts), dict[str, float](), dict[str, float](), ""
        self.whole, self.done, self.told = sum(parts.values()), 0.0, time.monotonic()

    def estimate(self) -> float:
        """Return the seconds that are left, by the pace of what is done."""
        parts, where, spent = dict(self.parts), dict(self.where), dict(self.spent)  # those of another thread change
        trust = TRUST * self.whole
        pace = (sum(spent.values()) + trust) / max(self.done + trust, 1e-9)
        own = pace * sum(parts.get(name, 0.0) for name in where)
        busy = sum(time.monotonic() - begun for name, begun in where.items() if name in parts)
        # What takes longer than expected is taken to be near its end.
        return pace * sum(parts.values()) - own + max(own - busy, own / 10)

    def start(self, name: str) -> None:
        self.where[name], self.what = time.monotonic(), ""

    def finish(self, name: str) -> None:
        seconds = time.monotonic() - self.where.pop(name)
        if name in self.parts:
            self.spent[name] = seconds
            self.done += self.parts.pop(name)
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


_current: Forecast | None = None


@contextlib.contextmanager
def begin(parts: Mapping[str, float]) -> Iterator[Forecast]:
    """Make a forecast of named parts, in expected seconds, that of this process for a while.

    A thread tells it, so that a long solution does not keep it silent. Without parts nothing is told.
    """
    global _current
    before, _current = _current, Forecast(parts)
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
