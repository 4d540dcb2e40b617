"""Ask a service for the vectors of texts: in batches, several at a time, within limits, and again after failures."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from nml_jax.data.embeddings.client import Threads
from nml_jax.data.embeddings.limits import Request, Window
from nml_jax.data.embeddings.replies import Again, Answer, Halve
from nml_jax.errors import UserError

FIRST = 3  # tries of a request as long as the service has never been reached
SHOWN = 60  # characters of a text that are shown
KEPT = "what was answered is kept, and the same command continues"


@dataclasses.dataclass(frozen=True)
class Limits:
    """How to ask. The fields are keys of `config.runtime.api`, in configs/common.py."""

    batch: int
    batch_tokens: int
    in_flight: int
    retries: int
    pause: float
    longest_pause: float


@dataclasses.dataclass(eq=False)
class Batch:
    """Texts that go in one request.

    rows: their positions. tokens: of all of them. ready: when it may be sent. tries: how often it was sent in vain.
    whole: the batch that was refused and of which this is a half, or None. left: halves of it that have no answer.
    """

    rows: list[int]
    tokens: float
    ready: float = 0.0
    tries: int = 0
    whole: "Batch | None" = None
    left: int = 2
    request: Request | None = None


class Fetch:
    """The vectors of some texts on their way.

    Args:
        texts: different texts.
        tokens: of each, at least about.
        ask: returns the answer to a request for some texts, or raises as `replies.read_reply`; threads call it.
        store: gets the positions of texts, and their vectors float32 [n, D].
        window: the requests of the last minute.
        names: where each text stands, in words.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokens: Sequence[float],
        *,
        ask: Callable[[list[str]], Answer],
        store: Callable[[list[int], np.ndarray], None],
        window: Window,
        limits: Limits,
        names: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._texts, self._tokens, self._store, self._names = texts, tokens, store, names
        self._window, self._limits, self._clock = window, limits, clock
        self._next = 0  # texts before it are in a batch
        self._most = limits.batch  # texts of a batch; less once the service has refused so many
        self._waiting: collections.deque[Batch] = collections.deque()
        self._flying: set[Batch] = set()
        self._silent_until, self._reached = 0.0, False
        self._error: Exception | None = None
        self._draw = np.random.default_rng()  # each program its own: many must not come back at one moment
        self._ask, self.done = ask, 0

    def run(self, progress: Callable[[], None] = lambda: None) -> None:
        """Ask for all texts; call `progress` after each answer.

        After an error nothing more is asked, but what is on its way is stored, as it may have been paid for.

        Raises:
            UserError: the service refuses a text, or cannot be asked.
        """
        threads = Threads(self._limits.in_flight, self._call)
        try:
            while True:
                delay = math.inf if self._error else self._send(threads)
                if not self._flying and (self._error or not self._has_more()):
                    break
                if found := threads.take(None if delay == math.inf else max(delay, 0.001)):
                    self._receive(*found)
                    progress()
        finally:
            threads.close()
        if self._error:
            raise self._error

    def _call(self, batch: Batch) -> Answer:
        """Ask for a batch, in a thread."""
        return self._ask([self._texts[row] for row in batch.rows])

    def _has_more(self) -> bool:
        return bool(self._waiting) or self._next < len(self._texts)

    def _send(self, threads: Threads) -> float:
        """Send what may be sent. Return the seconds until more may be; inf: after an answer."""
        while self._has_more():
            halving = any(batch.whole for batch in (*self._waiting, *self._flying))
            if len(self._flying) >= (1 if halving else self._limits.in_flight):
                return math.inf
            batch = self._take()
            now = self._clock()
            delay = max(batch.ready - now, self._silent_until - now, self._window.find_delay(batch.tokens))
            if delay > 0:
                self._waiting.appendleft(batch)
                return delay
            batch.request = self._window.begin(batch.tokens)
            self._flying.add(batch)
            threads.put(batch)
        return math.inf

    def _take(self) -> Batch:
        """Return the batch to send next: a half, one that is to be sent again and is ready, or new texts.

        As many batches as may be sent at a time are begun, and no more, lest each of a failing service's failures bring
        a further request.
        """
        if self._waiting:
            halves = [batch for batch in self._waiting if batch.whole]
            first = halves[0] if halves else min(self._waiting, key=lambda batch: batch.ready)
            begun = len(self._waiting) + len(self._flying) >= self._limits.in_flight
            if halves or begun or first.ready <= self._clock() or self._next == len(self._texts):
                self._waiting.remove(first)
                return first
        rows, tokens = [], 0.0
        while self._next < len(self._texts) and len(rows) < self._most:
            tokens += self._tokens[self._next]
            if rows and tokens > self._limits.batch_tokens:
                tokens -= self._tokens[self._next]
                break
            rows.append(self._next)
            self._next += 1
        return Batch(rows, tokens)

    def _receive(self, batch: Batch, result: Answer | Exception) -> None:
        """Store an answer, or decide what becomes of a request that has none."""
        self._flying.remove(batch)
        assert batch.request is not None
        self._window.end(batch.request, result.tokens if isinstance(result, Answer) else None)
        self._reached |= not isinstance(result, Again) or result.reached
        try:
            if isinstance(result, Answer):
                self._accept(batch, result)
            elif isinstance(result, Again):
                self._repeat(batch, result)
            elif isinstance(result, Halve):
                self._halve(batch, result)
            else:
                raise result
        except Exception as e:
            self._error = self._error or e

    def _accept(self, batch: Batch, answer: Answer) -> None:
        self._store(batch.rows, answer.vectors)
        self.done += len(batch.rows)
        if batch.whole:
            batch.whole.left -= 1
            if not batch.whole.left:  # no text was at fault: there were too many
                self._most = min(self._most, max(len(batch.rows), 1))

    def _repeat(self, batch: Batch, failure: Again) -> None:
        """Plan to send a batch again.

        Raises:
            UserError: it has failed too often, or the service asks to wait for too long.
        """
        batch.tries += 1
        most = self._limits.retries if self._reached else min(FIRST, self._limits.retries)
        if batch.tries > most:
            raise UserError(f"{failure}; asked {batch.tries} times", f"check the service and its address; {KEPT}")
        longest = self._limits.longest_pause
        if failure.wait is not None and failure.wait > longest:
            raise UserError(
                f"{failure}; it asks to wait {failure.wait:,.0f} seconds, and runtime.api.longest_pause is {longest:g}",
                f"wait, or raise --config.runtime.api.longest_pause; {KEPT}",
            )
        pause = min(self._limits.pause * 2.0 ** (batch.tries - 1), longest)
        pause = pause * self._draw.uniform(0.5, 1.0)
        if failure.wait is not None:
            pause = failure.wait + self._draw.uniform(0, 0.1) * self._limits.pause
            self._silent_until = max(self._silent_until, self._clock() + failure.wait)  # it asks all requests
        batch.ready = self._clock() + pause
        self._waiting.append(batch)

    def _halve(self, batch: Batch, refusal: Halve) -> None:
        """Plan to send the halves of a batch, the first one first.

        Raises:
            UserError: it is a single text, which is named.
        """
        if len(batch.rows) == 1:
            text = self._texts[batch.rows[0]]
            shown = repr(text[:SHOWN]) + " and so on" * (len(text) > SHOWN)
            raise UserError(
                f"{self._names[batch.rows[0]]}, {shown}, is refused: {refusal}",
                f"correct, shorten or leave out this text; {KEPT}",
            )
        middle = (len(batch.rows) + 1) // 2
        for rows in (batch.rows[middle:], batch.rows[:middle]):
            self._waiting.appendleft(Batch(rows, sum(self._tokens[row] for row in rows), whole=batch))
