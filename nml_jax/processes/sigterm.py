"""Handle SIGTERM: the training loop saves first; anywhere else the process ends at once.

Ending at once loses nothing, as a run's files are whole at any moment. An exception would not do, because it may be
raised anywhere: a destructor drops it, an import turns it into another, C++ code crashes.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from nml_jax.console import notice

_CALLED = 0  # written to the pipe by our handler; the interpreter itself writes the numbers of signals


@contextlib.contextmanager
def on_sigterm(end: Callable[[], None]) -> Iterator[None]:
    """Call `end`, which ends the process, in its own thread at SIGTERM, unless another handler is set meanwhile.

    This also works while the main thread runs compiled code for minutes. Enter it in the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def handle(*_: object) -> None:  # runs late, but is sure to run while another handler is just being set
        os.write(writer, bytes([_CALLED]))

    def watch() -> None:
        while number := os.read(reader, 1):
            handler = signal.getsignal(signal.SIGTERM)
            if number[0] == _CALLED or (number[0] == signal.SIGTERM and handler is handle):
                end()
            elif number[0] == signal.SIGTERM and isinstance(loop := getattr(handler, "__self__", None), Preemption):
                loop.asked = True  # compiled code may keep the main thread, which would set it, for ever
                threading.Thread(target=loop.end_if_stuck, args=[end], daemon=True, name="stuck").start()

    previous = signal.signal(signal.SIGTERM, handle), signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True, name="sigterm")
    watcher.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous[0])
        signal.set_wakeup_fd(previous[1])
        os.close(writer)
        watcher.join()
        os.close(reader)


class Preemption:
    """A context in which SIGTERM sets `asked` instead of ending the process.

    A process that waits in a collective for others never looks at `asked` if one of them does not come. So within
    `on_sigterm`, a process that does not go on after SIGTERM is ended.

    Args:
        position: returns where this process is, in words. None: it waits for no other process, and always goes on.
    """

    PATIENCE = 5.0  # seconds in one place; longer if steps are long
    UNKNOWN = 30.0  # seconds where nobody knows how long it takes, as when the first step is compiled

    def __init__(self, position: Callable[[], str] | None = None):
        self.position, self.asked = position, False
        self.left = threading.Event()
        self.seconds: deque[float] = deque(maxlen=10)  # between the last steps
        self.stepped = time.monotonic()

    def __enter__(self) -> "Preemption":
        try:
            self.previous = signal.signal(signal.SIGTERM, self._ask)
        except ValueError:  # not in the main thread: the caller handles signals
            self.previous = None
        return self

    def step(self) -> None:
        """Note that a step has ended."""
        now = time.monotonic()
        self.seconds.append(now - self.stepped)
        self.stepped = now

    def end_if_stuck(self, end: Callable[[], None]) -> None:
        """Call `end` if this process stays in one place for too long before it leaves the context."""
        if self.position is None:
            return
        place, since = self.position(), time.monotonic()
        while not self.left.wait(0.1):
            if (now := self.position()) != place:
                place, since = now, time.monotonic()
            elif time.monotonic() - since > (limit := self._choose_patience(place)):
                notice(f"asked to stop, but still in {place} after {limit:.0f} s: another process does not come")
                return end()

    def _choose_patience(self, place: str) -> float:
        if "(save)" in place:  # not a collective; the disk has a limit of its own
            return math.inf
        if "(step)" not in place or len(self.seconds) < 2:
            return self.UNKNOWN
        return min(max(self.PATIENCE, 4 * max(list(self.seconds)[1:])), self.UNKNOWN)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __exit__(self, error: object, *_: object) -> None:
        self.left.set()
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
            if self.asked and error is None:  # it came after the last look at `asked`
                signal.raise_signal(signal.SIGTERM)
