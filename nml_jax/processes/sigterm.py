"""Handle SIGTERM: the training loop saves first; anywhere else the process ends at once.

Ending at once loses nothing, as a run's files are whole at any moment. An exception would not do, because it may be
raised anywhere: a destructor drops it, an import turns it into another, C++ code crashes.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

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
            if number[0] == _CALLED or (number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is handle):
                end()

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
    """A context in which SIGTERM sets `asked` instead of ending the process."""

    def __enter__(self) -> "Preemption":
        self.asked = False
        try:
            self.previous = signal.signal(signal.SIGTERM, self._ask)
        except ValueError:  # not in the main thread: the caller handles signals
            self.previous = None
        return self

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __exit__(self, error: object, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
            if self.asked and error is None:  # it came after the last look at `asked`
                signal.raise_signal(signal.SIGTERM)
