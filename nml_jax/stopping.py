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
