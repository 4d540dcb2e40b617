"""SIGTERM where nothing can be saved: outside of the training loop a process ends on the spot.

That loses nothing, as whatever a run has written is whole at any moment. An exception would come out in the middle of
anything: a destructor, which drops it; an import, which makes another of it; a library's C++, which dies of it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

_HEARD = 0  # in the pipe, where the interpreter itself writes the numbers of signals


@contextlib.contextmanager
def on_sigterm(end: Callable[[], None]) -> Iterator[None]:
    """While this lasts, and no other handler is set, SIGTERM calls `end` in a thread of its own.

    It is heard while the main thread is in compiled code for minutes, too. To be entered in the main thread.

    Args:
        end: ends the process.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def heard(*_: object) -> None:  # late, but where another handler is just being set the only one that is called
        os.write(writer, bytes([_HEARD]))

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] == _HEARD or (number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is heard):
                end()

    previous = signal.signal(signal.SIGTERM, heard), signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
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
    """While active, SIGTERM sets `asked` in place of ending the process."""

    def __enter__(self) -> "Preemption":
        self.asked = False
        try:
            self.previous = signal.signal(signal.SIGTERM, self._ask)
        except ValueError:  # not in the main thread: whoever called handles signals
            self.previous = None
        return self

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __exit__(self, error: object, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
            if self.asked and error is None:  # too late for whoever was to look at `asked`
                signal.raise_signal(signal.SIGTERM)
