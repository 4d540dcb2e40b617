"""Keep the requests and tokens of every 60 seconds below what a service allows, also over restarts of the program."""

import math
import struct
import time
from collections.abc import Callable
from pathlib import Path

MINUTE = 60.0
EVENT = struct.Struct("<dd")  # when a request began, or minus when it ended; its tokens


class Request:
    """A request that counts: its tokens, and when it ended (None: it has not)."""

    def __init__(self, tokens: float, ended: float | None = None):
        self.tokens, self.ended = tokens, ended


class Window:
    """The requests that count against the limits: those in flight, and those that ended less than a minute ago.

    A service sees a request between its begin and its end, so no 60 seconds of the service's hold more of them.

    Args:
        requests, tokens: most of a minute; 0: no limit.
        log: a file in which begins and ends are noted, for the next start. Only one program may use it at a time.
        clock: seconds since any moment.
    """

    def __init__(
        self, requests: int, tokens: int, log: Path | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.requests, self.tokens, self._clock = requests, tokens, clock
        self._counted: list[Request] = []
        self._file = None
        if log and (requests or tokens):
            self._recall(log)

    def _recall(self, log: Path) -> None:
        """Count the requests of earlier starts. One that has no end, after a kill, may have been seen until now."""
        content = log.read_bytes() if log.exists() else b""
        events = list(EVENT.iter_unpack(content[: len(content) - len(content) % EVENT.size]))
        now, begun, ended = time.time(), [], []
        for at, tokens in events:
            (begun if at > 0 else ended).append((abs(at), tokens))
        left = begun[len(ended) :] if len(begun) > len(ended) else []  # which ones is not known, only how many
        known = [(min(at, now), tokens) for at, tokens in ended] + [(now, tokens) for _, tokens in left]
        known = [(at, tokens) for at, tokens in known if now - at < MINUTE]
        self._counted = [Request(tokens, self._clock() - (now - at)) for at, tokens in known]
        part = log.with_suffix(".requests-part")
        part.write_bytes(b"".join(EVENT.pack(at, tokens) + EVENT.pack(-at, tokens) for at, tokens in known))
        part.replace(log)
        self._file = log.open("ab", buffering=0)

    def find_delay(self, tokens: float) -> float:
        """Return the seconds until a request of so many tokens may begin; inf: one in flight must end first."""
        now = self._clock()
        self._counted = [one for one in self._counted if one.ended is None or now - one.ended < MINUTE]
        leaving = sorted(self._counted, key=lambda one: math.inf if one.ended is None else one.ended)
        sums, count = sum(one.tokens for one in leaving), len(leaving)
        for one in leaving:
            if self._allow(count, sums, tokens):
                break
            delay = math.inf if one.ended is None else one.ended + MINUTE - now
            count, sums = count - 1, sums - one.tokens
            if self._allow(count, sums, tokens):
                return delay
        return 0.0

    def _allow(self, count: int, sums: float, tokens: float) -> bool:
        """Return whether one more fits. A request above the limit of tokens goes alone."""
        fits = not self.tokens or sums + tokens <= self.tokens or not count
        return fits and (not self.requests or count < self.requests)

    def begin(self, tokens: float) -> Request:
        """Note that a request begins."""
        self._note(time.time(), tokens)
        self._counted.append(Request(tokens))
        return self._counted[-1]

    def end(self, request: Request, tokens: float | None = None) -> None:
        """Note that a request has ended, with as many tokens as the service has counted, if it says so."""
        request.tokens = request.tokens if tokens is None else tokens
        self._note(-time.time(), request.tokens)
        request.ended = self._clock()

    def _note(self, at: float, tokens: float) -> None:
        if self._file:
            self._file.write(EVENT.pack(at, tokens))

    def close(self) -> None:
        """Close the log."""
        if self._file:
            self._file.close()
            self._file = None
