"""One process among the others of its job: what it hears of them, and what they hear of it."""

import contextlib
import ctypes
import functools
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the client of the service, which JAX's own libraries take from there, too

from nml_jax.console import list_words
from nml_jax.errors import NonFinite, PeerLost, Preempted
from nml_jax.processes import cluster
from nml_jax.processes.progress import TICK, Progress

T = TypeVar("T")

GRACE = 5.0  # seconds that a process has for an error of its own when it hears of another's
SETTINGS = 4  # the type of a frame of HTTP/2
FOREVER = 7 * 24 * 3600.0  # seconds; such waits end when a peer is lost

# Keys of the service: who has ended, and why; who is on which host; what process 0 has decided; what all have said; and
# where they are.
STOPPED, HOSTS, AGREED, GATHERED, PLACES = (
    f"nml_jax/{name}/" for name in ("stopped", "host", "agreed", "gathered", "place")
)


class Membership:
    """From before the processes are joined until this one ends.

    Args:
        timeout: see `peers.start`.
    """

    def __init__(self, timeout: float):
        self.timeout, self.state = timeout, distributed.global_state
        self.hosts: dict[int, str] = {}  # of every process, once all are there
        self.agreed = self.gathered = self.rounds = 0  # answers of process 0, of all; looks at the others: all lived
        self.progress = Progress(self.process_names)
        self.cause: str | None = None  # why this process must end, ...
        self.code: int | None = None  # and with which code it is about to
        self.over = threading.Event()  # nobody is missed any more
        self.is_joining = False
        self.speaking = threading.Lock()
        self.heard = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # When the coordinator is gone, or others do not come, the library ends the process with abort().
        self.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        self.previous = _catch_abort(ctypes.cast(self.handler, ctypes.c_void_p))

    @property
    def index(self) -> int:
        return self.state.process_id

    @property
    def count(self) -> int:
        return self.state.num_processes

    @property
    def client(self) -> Any:
        return self.state.client

    @property
    def address(self) -> str:
        """Of the coordinator, "host:port"."""
        return self.state.coordinator_address or ""

    # ---- its beginning

    @contextlib.contextmanager
    def joining(self) -> Iterator[None]:
        """Keep what C++ writes to stderr: when others do not come, their numbers stand in its last words alone."""
        sys.stderr.flush()
        self.stderr = os.dup(2)
        os.dup2(self.heard.fileno(), 2)
        self.is_joining = True
        try:
            yield
        finally:
            self.is_joining = False
            os.dup2(self.stderr, 2)
            os.close(self.stderr)
            sys.stderr.writelines(line for line in self._heard() if "recoverable task" not in line)
            self.heard.close()

    def register(self) -> None:
        """Take this process's place.

        Raises:
            PeerLost: it is taken. The others, who may be well, are not told.
        """
        try:
            self.client.key_value_set(f"{HOSTS}{self.index}", socket.gethostname())
        except jax.errors.JaxRuntimeError as e:
            if "ALREADY_EXISTS" not in str(e):
                raise
            why = "was it started twice, or is another job on this port?"
            raise PeerLost(f"there is a process {self.index} of {self.count} at {self.address} already: {why}") from e

    def open(self) -> None:
        """Get to know the others, and watch over them from now on."""
        self.barrier("the start", self.timeout)
        self.hosts = {int(key.rpartition("/")[2]): host for key, host in self.client.key_value_dir_get(HOSTS)}
        self.watch = threading.Thread(target=self._watch, daemon=True, name="peers")
        self.watch.start()
        cluster.require_reachable(self.address, len(set(self.hosts.values())))

    # ---- together with the others

    def barrier(self, name: str, timeout: float) -> None:
        wait = functools.partial(self.client.wait_at_barrier, f"nml_jax/{name}", int(min(timeout, FOREVER) * 1000))
        try:
            in_thread(wait)
        except jax.errors.JaxRuntimeError as e:
            if late := self._late(str(e)):
                raise PeerLost(f"{late} did not reach {name!r} within {timeout:g} s") from e
            raise PeerLost(self.lost() or f"waiting for the others at {name!r}: {first_line(e)}") from e

    def agree(self, value: T) -> T:
        self.agreed += 1
        key = f"{AGREED}{self.agreed}"
        if self.index == 0:
            self.client.key_value_set(key, json.dumps(value))
            return value
        return json.loads(in_thread(lambda: self.client.blocking_key_value_get(key, int(FOREVER * 1000))))

    def gather(self, value: T, name: str, timeout: float) -> list[T]:
        self.gathered += 1
        key = f"{GATHERED}{self.gathered}/"
        self.client.key_value_set(f"{key}{self.index}", json.dumps(value))
        self.barrier(name, timeout)
        if self.index == 0 and self.gathered > 1:  # whoever is here has read what was said before
            self.client.key_value_delete(f"{GATHERED}{self.gathered - 1}/")
        said = {int(key.rpartition("/")[2]): json.loads(what) for key, what in self.client.key_value_dir_get(key)}
        return [said[i] for i in range(self.count)]

    def lost(self) -> str | None:
        end, rounds = time.monotonic() + self.timeout, self.rounds
        while self.cause is None and self.rounds < rounds + 2 and time.monotonic() < end:
            time.sleep(0.1)
        return self.cause

    # ---- its end

    def leave(self, code: int, message: str, words: str) -> None:
        self.speaking.acquire()  # and never released: one end is enough
        self.code = code
        self.over.set()
        print(message, file=sys.stderr, flush=True)
        with contextlib.suppress(jax.errors.JaxRuntimeError, TimeoutError):
            told = json.dumps({"code": code, "words": first_line(words)})
            in_thread(lambda: self.client.key_value_set(f"{STOPPED}{self.index}", told), GRACE)
            end = time.monotonic() + patience(code, self.timeout) + 2 * TICK
            # The service goes with process 0, and with the service the client of whoever is still there.
            while self.index == 0 and len(self._farewells()) < self.count and time.monotonic() < end:
                time.sleep(0.1)
        sys.stdout.flush()
        os._exit(code)

    def close(self) -> None:
        """At the end of the program, in peace: the last to go is process 0, with the service."""
        self.over.set()
        if self.hosts:
            self.watch.join(self.timeout)
            end = time.monotonic() + self.timeout
            with contextlib.suppress(jax.errors.JaxRuntimeError, TimeoutError):
                while self.index == 0 and len(in_thread(self._live, max(end - time.monotonic(), 0))) > 1:
                    time.sleep(0.05)
        _catch_abort(self.previous)

    # ---- noticing

    def _watch(self) -> None:
        pause = GRACE
        while self.cause is None and not self.over.wait(TICK):
            try:
                farewells = self._farewells()
                missing = set() if farewells else set(range(self.count)) - {self.index} - self._live()
                farewells = farewells or (self._farewells() if missing else {})  # who is missing may have said why
                self.look()
            except jax.errors.JaxRuntimeError as e:
                self.cause = f"{self.process_names([0])}, the coordinator, does not answer: {first_line(e)}"
                break
            if farewells:
                # Of several the first cause: others may have ended for its sake.
                who, said = min(farewells.items(), key=lambda item: item[1]["code"] == PeerLost.exit_code)
                self.cause = f"{self.process_names([who])} ended with exit code {said['code']}: {said['words']}"
                pause = patience(said["code"], self.timeout)
            elif missing:
                self.cause = f"{self.process_names(missing)} {'is' if len(missing) == 1 else 'are'} gone without a word"
            self.rounds += 1
        if self.cause is not None and not self.over.wait(pause):
            self.leave(PeerLost.exit_code, f"stopped: {self.cause}", self.cause)

    def look(self) -> None:
        """Tell the others how far this process has come; the first says where all stand if nobody moves."""
        place = self.progress.position()
        if place:
            self.client.key_value_set(f"{PLACES}{self.index}", place, allow_overwrite=True)
        if self.index == 0:
            places = self.client.key_value_dir_get(PLACES) if place else ()
            self.progress.see({int(key.rpartition("/")[2]): said for key, said in places})

    def _farewells(self) -> dict[int, dict[str, Any]]:
        return {int(key.rpartition("/")[2]): json.loads(said) for key, said in self.client.key_value_dir_get(STOPPED)}

    def _live(self) -> set[int]:
        """Who lives; it returns when all have asked, or have not given a sign of life for too long."""
        return set(self.client.get_live_nodes(list(range(self.count))))

    def _aborted(self, _: int) -> None:
        """Called in place of dying when the library aborts; when it returns, the process dies of it."""
        if self.code is not None:
            os._exit(self.code)
        if not self.is_joining:
            if self.hosts and (silence := _silence(self.address)):
                _end(f"{self.process_names([0])}, the coordinator, {silence}")
            if self.hosts:
                own = self.process_names([self.index])
                _end(f"a library aborted, as said above; if of a heartbeat, then {own} was without one for too long")
            return
        os.dup2(self.stderr, 2)
        said = self._heard()
        if late := self._late("".join(said)):
            _end(f"{late} did not come within {self.timeout:g} s; see that all were started and reach {self.address}")
        if _silence(self.address):
            own = " (which every host has for itself)" if cluster.is_loopback(self.address) else ""
            _end(f"{self.process_names([0])} did not answer at {self.address}{own} within {self.timeout:g} s")
        sys.stderr.writelines(said)

    def _heard(self) -> list[str]:
        self.heard.seek(0)
        return self.heard.readlines()

    def _late(self, said: str) -> str:
        """Who has not come, by what the service says when a barrier is not reached; "" if it says no such thing."""
        found = re.search(r"reached the barrier: (\d+)/.*timed out task names:\n((?:[^\n]*\d\n)+)", said, re.DOTALL)
        if found is None:
            return ""
        late = [int(i) for i in re.findall(r"(\d+)\n", found[2])]
        more = self.count - int(found[1]) - len(late)  # it lists but the first of many
        return self.process_names(late) + (f" and {more} more" if more > 0 else "")

    def process_names(self, processes: Iterable[int]) -> str:
        """ "processes 2 (its host) and 3 (its host) of 8" """
        known = [f"{i} ({self.hosts[i]})" if i in self.hosts else str(i) for i in sorted(processes)]
        return f"process{'es' if len(known) > 1 else ''} {list_words(known)} of {self.count}"


def in_thread(call: Callable[[], T], limit: float | None = None) -> T:
    """Run what blocks outside of Python in a thread of its own, so that signals are heard meanwhile.

    Raises:
        TimeoutError: after `limit` seconds; the call goes on.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=run, daemon=True, name="waiting").start()
    return future.result(limit)


def first_line(said: Any) -> str:
    return next((line for line in str(said).splitlines() if line.strip()), type(said).__name__)


def patience(code: int, timeout: float) -> float:
    """Seconds for an own end when another's is heard of: for some reasons all stop alike, and save before it."""
    return max(timeout / 2, GRACE) if code in (Preempted.exit_code, NonFinite.exit_code) else GRACE


def _end(cause: str) -> None:
    print(f"stopped: {cause}", file=sys.stderr, flush=True)
    os._exit(PeerLost.exit_code)


def _silence(address: str) -> str:
    """What is wrong with the coordinator at "host:port", in words; "" if it answers.

    It greets whoever connects with its settings (HTTP/2, RFC 9113, section 3.4). A process that stands still does not,
    though its system takes the connection; nor does another program.
    """
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=2)
    except (OSError, ValueError):
        return "is gone without a word"
    with connection, contextlib.suppress(OSError):
        connection.settimeout(GRACE)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]))
        greeting = connection.recv(9, socket.MSG_WAITALL)
        if len(greeting) == 9 and greeting[3] == SETTINGS:
            return ""
    return "does not answer"


def _catch_abort(handler: Any) -> Any:
    """Set C's handler of SIGABRT and return the one before; Python's own comes too late, as abort() does not return."""
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    return function(signal.SIGABRT, handler)
