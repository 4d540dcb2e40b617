"""Hold back what C++ writes to stderr, so that our line about a lost process comes before a library's stack trace."""

import contextlib
import faulthandler
import os
import re
import sys
import tempfile
import threading

NOISE = b"recoverable task"  # the coordination service warns of every process that it may lose


class HeldStderr:
    """Everything that is written to file descriptor 2, kept in a file until `release`. Python's own stderr is not held.

    A file, not a pipe: a library that writes much while it holds Python's lock would wait for ever for a reader.
    """

    def __init__(self) -> None:
        sys.stderr.flush()
        self.log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self.seen, self.lock = 0, threading.Lock()  # bytes that were released; release is called by several threads
        self.real, self.python = os.dup(2), sys.stderr
        if _is_descriptor_2(sys.stderr):
            about = {"encoding": sys.stderr.encoding, "errors": sys.stderr.errors}
            sys.stderr = open(os.dup(2), "w", buffering=1, **about)  # noqa: SIM115
        if faulthandler.is_enabled():
            faulthandler.enable(self.real)
        os.dup2(self.log.fileno(), 2)

    def read(self) -> str:
        """Return what is held."""
        return self._read().decode("utf-8", "replace")

    def release(self, before: re.Pattern[bytes] | None = None) -> None:
        """Write what is held to the real stderr.

        Args:
            before: go on to hold the first line in which this is found, and all that follow; None: hold nothing.
        """
        with self.lock:
            held = self._read()
            found = before.search(held) if before else None
            ready = held[: held.rfind(b"\n", 0, found.start()) + 1] if found else held
            self.seen += len(ready)
            lines = [line for line in ready.splitlines(keepends=True) if NOISE not in line]
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(self.real, b"".join(lines))

    def close(self) -> None:
        """Release what is held, and hold no more."""
        sys.stderr.flush()
        os.dup2(self.real, 2)
        self.release()
        if faulthandler.is_enabled():
            faulthandler.enable(2)
        if sys.stderr is not self.python:
            sys.stderr.close()
            sys.stderr = self.python
        self.log.close()
        os.close(self.real)

    def _read(self) -> bytes:
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size - self.seen, self.seen)


def _is_descriptor_2(stream: object) -> bool:
    try:
        return stream.fileno() == 2  # type: ignore[attr-defined]
    except (OSError, AttributeError, ValueError):  # a notebook's stderr has no descriptor
        return False
