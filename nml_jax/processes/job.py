"""One process among the others of its job: what it learns about them, and what it tells them."""

import contextlib
import ctypes
import functools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import jax
from jax._src import distributed  # JAX's own libraries take the service's client from here, too

from nml_jax.console import list_words, notice
from nml_jax.errors import NonFinite, PeerLost, Preempted
from nml_jax.processes import cluster
from nml_jax.processes.progress import TICK, Progress
from nml_jax.processes.stderr import HeldStderr

T = TypeVar("T")

GRACE = 5.0  # seconds that a process has to report its own error after it hears of another's
SETTINGS = 4  # the type of an HTTP/2 frame
LOST = re.compile(b"coordination service|JAX distributed service")  # the library writes of a lost coordinator
WAITING = 15.0  # seconds after which a process that waits for the others to join says so
FOREVER = 7 * 24 * 3600.0  # seconds; such waits end when a peer is lost

# Prefixes of the service's keys: who has stopped and why, who is on which host, what process 0 has decided, the values
# of all processes, and their positions.
STOPPED, HOSTS, AGREED, GATHERED, PLACES = (
    f"nml_jax/{name}/" for name in ("stopped", "host", "agreed", "gathered", "place")
)


class Membership:
    """This process's part in the job, from before the processes are joined until this one ends.

    Args:
        timeout: seconds, see `peers.start`.
    """

    def __init__(self, timeout: float):
        self.timeout, self.state = timeout, distributed.global_state
        self.hosts: dict[int, str] = {}  # process -> host, once all have joined
        self.agreed = self.gathered = 0  # calls so far
        self.rounds = 0  # how often all the others were found alive
        self.progress = Progress(self.process_names)
        self.cause: str | None = None  # why this process must end
        self.code: int | None = None  # the exit code of the end that has begun
        self.finished = threading.Event()  # set: from now on a missing process is not an error
        self.is_joining = self.has_joined = False
        self.leaving = threading.Lock()
        self.stderr = HeldStderr()
        # When the coordinator is gone, or others do not come, the library ends the process with abort().
        self.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._explain_abort)
        self.previous = _set_abort_handler(ctypes.cast(self.handler, ctypes.c_void_p))

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
        """Return the coordinator's "host:port"."""
        return self.state.coordinator_address or ""

    # ---- its beginning

    @contextlib.contextmanager
    def joining(self) -> Iterator[None]:
        """Hold what C++ writes to stderr: only there does the library name the processes that have not come."""
        self.is_joining = True
        timer = threading.Timer(WAITING, self._tell_waiting)
        timer.daemon = True
        timer.start()
        try:
            yield
            self.has_joined = True
        finally:
            timer.cancel()
            self.is_joining = False
            self.stderr.release()

    def _tell_waiting(self) -> None:
        advice = cluster.advise(os.environ, self.address)
        notice(f"waiting for the other processes of this job, {self.timeout:g} s at most; {advice}")

    def register(self) -> None:
        """Claim this process's number.

        Raises:
            PeerLost: another process has it. The others are not stopped: they may be well.
        """
        try:
            self.client.key_value_set(f"{HOSTS}{self.index}", socket.gethostname())
        except jax.errors.JaxRuntimeError as e:
            if "ALREADY_EXISTS" not in str(e):
                raise
            why = "was it started twice, or is another job on this port?"
            raise PeerLost(f"there is a process {self.index} of {self.count} at {self.address} already: {why}") from e

    def open(self) -> None:
        """Wait for the others, and watch them from now on."""
        self.barrier("the start", self.timeout)
        self.hosts = {int(key.rpartition("/")[2]): host for key, host in self.client.key_value_dir_get(HOSTS)}
        self.watcher = threading.Thread(target=self._watch, daemon=True, name="peers")
        self.watcher.start()
        cluster.require_reachable(self.address, len(set(self.hosts.values())))

    # ---- together with the others

    def barrier(self, name: str, timeout: float) -> None:
        wait = functools.partial(self.client.wait_at_barrier, f"nml_jax/{name}", int(min(timeout, FOREVER) * 1000))
        try:
            in_thread(wait)
        except jax.errors.JaxRuntimeError as e:
            if late := self._find_late(str(e)):
                raise PeerLost(f"{late} did not reach {name!r} within {timeout:g} s") from e
            raise PeerLost(self.find_lost() or f"waiting for the others at {name!r}: {first_line(e)}") from e

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
        if self.index == 0 and self.gathered > 1:  # all who are here have read the previous values
            self.client.key_value_delete(f"{GATHERED}{self.gathered - 1}/")
        values = {int(key.rpartition("/")[2]): json.loads(text) for key, text in self.client.key_value_dir_get(key)}
        return [values[i] for i in range(self.count)]

    def find_lost(self) -> str | None:
        end, rounds = time.monotonic() + self.timeout, self.rounds
        while self.cause is None and self.rounds < rounds + 2 and time.monotonic() < end:
            time.sleep(0.1)
        return self.cause

    # ---- its end

    def leave(self, code: int, message: str, words: str, *, saved: bool = True) -> None:
        self.leaving.acquire()  # never released: a process ends once
        self.code = code
        self.finished.set()
        notice(message)
        with contextlib.suppress(jax.errors.JaxRuntimeError, TimeoutError):
            end_report = json.dumps({"code": code, "words": first_line(words), "saved": saved})
            in_thread(lambda: self.client.key_value_set(f"{STOPPED}{self.index}", end_report), GRACE)
            end = time.monotonic() + choose_grace(code, self.timeout, saved=saved) + 2 * TICK
            # The service ends with process 0, and the clients of the others end with the service.
            while self.index == 0 and len(self._read_stopped()) < self.count and time.monotonic() < end:
                time.sleep(0.1)
        sys.stdout.flush()
        self.stderr.release()
        os._exit(code)

    def close(self) -> None:
        """End without error. Process 0, which holds the service, waits for the others."""
        self.finished.set()
        if self.hosts:
            self.watcher.join(self.timeout)
            end = time.monotonic() + self.timeout
            with contextlib.suppress(jax.errors.JaxRuntimeError, TimeoutError):
                while self.index == 0 and len(in_thread(self._list_live, max(end - time.monotonic(), 0))) > 1:
                    time.sleep(0.05)
        self.stderr.close()
        _set_abort_handler(self.previous)

    # ---- noticing

    def _watch(self) -> None:
        grace = GRACE
        while self.cause is None and not self.finished.wait(TICK):
            try:
                stopped = self._read_stopped()
                missing = set() if stopped else set(range(self.count)) - {self.index} - self._list_live()
                stopped = stopped or (self._read_stopped() if missing else {})  # a missing one may have said why
                self.share_position()
                self.stderr.release(before=LOST)  # the library may be about to abort: `_explain_abort` decides
            except jax.errors.JaxRuntimeError as e:
                self.cause = f"{self.process_names([0])}, the coordinator, does not answer: {first_line(e)}"
                break
            if stopped:
                # If several processes ended, report the first cause: the others may have stopped because of it.
                who, end = min(stopped.items(), key=lambda item: item[1]["code"] == PeerLost.exit_code)
                self.cause = f"{self.process_names([who])} ended with exit code {end['code']}: {end['words']}"
                grace = choose_grace(end["code"], self.timeout, saved=end["saved"])
            elif missing:
                self.cause = f"{self.process_names(missing)} {'is' if len(missing) == 1 else 'are'} gone without a word"
            self.rounds += 1
        if self.cause is not None and not self.finished.wait(grace):
            self.leave(PeerLost.exit_code, f"stopped: {self.cause}", self.cause)

    def share_position(self) -> None:
        """Send this process's position to the others. Process 0 also reads theirs, and reports if nobody moves."""
        place = self.progress.position()
        if place:
            self.client.key_value_set(f"{PLACES}{self.index}", place, allow_overwrite=True)
        if self.index == 0:
            places = self.client.key_value_dir_get(PLACES) if place else ()
            self.progress.update({int(key.rpartition("/")[2]): there for key, there in places})

    def _read_stopped(self) -> dict[int, dict[str, Any]]:
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in self.client.key_value_dir_get(STOPPED)}

    def _list_live(self) -> set[int]:
        """Return the live processes. The call waits until each has asked, or has missed its heartbeat."""
        return set(self.client.get_live_nodes(list(range(self.count))))

    def _explain_abort(self, _: int) -> None:
        """Print why the library aborts, in one line, and exit. If this returns, the process dies of SIGABRT."""
        if self.code is not None:
            self._end(self.code)
        if not self.is_joining:
            if self.has_joined and (fault := _check_coordinator(self.address)):
                self._lose(f"{self.process_names([0])}, the coordinator, {fault}")
            if self.has_joined:
                own = self.process_names([self.index])
                self._lose(
                    f"a library aborted, see below; if it names a heartbeat, {own} sent none for too long", known=False
                )
        elif late := self._find_late(self.stderr.read()):
            self._lose(f"{late} did not come within {self.timeout:g} s; {cluster.advise(os.environ, self.address)}")
        elif _check_coordinator(self.address):
            own = " (which every host has for itself)" if cluster.is_loopback(self.address) else ""
            self._lose(f"{self.process_names([0])} did not answer at {self.address}{own} within {self.timeout:g} s")
        self.stderr.close()

    def _lose(self, cause: str, *, known: bool = True) -> None:
        """End this process because of a lost one. If its loss is `known`, a library's stack trace adds nothing."""
        notice(f"stopped: {cause}")
        self._end(PeerLost.exit_code, known=known)

    def _end(self, code: int, *, known: bool = True) -> None:
        if not self.is_joining:
            self.stderr.release(before=LOST if known else None)
        os._exit(code)

    def _find_late(self, text: str) -> str:
        """Return the names of the processes that the service's error says are late; "" if it names none."""
        found = re.search(r"reached the barrier: (\d+)/.*timed out task names:\n((?:[^\n]*\d\n)+)", text, re.DOTALL)
        if found is None:
            return ""
        late = [int(i) for i in re.findall(r"(\d+)\n", found[2])]
        more = self.count - int(found[1]) - len(late)  # the service lists only the first of many
        return self.process_names(late) + (f" and {more} more" if more > 0 else "")

    def process_names(self, processes: Iterable[int]) -> str:
        """Return words such as "processes 2 (its host) and 3 (its host) of 8"."""
        names = [f"{i} ({self.hosts[i]})" if i in self.hosts else str(i) for i in sorted(processes)]
        return f"process{'es' if len(names) > 1 else ''} {list_words(names)} of {self.count}"


def in_thread(call: Callable[[], T], limit: float | None = None) -> T:
    """Run a call that blocks outside of Python in its own thread, so that this one still handles signals.

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


def first_line(message: Any) -> str:
    return next((line for line in str(message).splitlines() if line.strip()), type(message).__name__)


def choose_grace(code: int, timeout: float, *, saved: bool) -> float:
    """Return the seconds to wait for this process's own end after another ended with `code`.

    Preemption and non-finite losses stop all processes alike, and each may be saving if the other one has saved.
    """
    return max(timeout / 2, GRACE) if saved and code in (Preempted.exit_code, NonFinite.exit_code) else GRACE


def _check_coordinator(address: str) -> str:
    """Return what is wrong with the coordinator at "host:port", in words; "" if it answers.

    A live coordinator sends its settings to every new connection (HTTP/2, RFC 9113, section 3.4). A stopped process
    does not, although its system accepts the connection; nor does another program.
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


def _set_abort_handler(handler: Any) -> Any:
    """Set C's handler of SIGABRT and return the previous one. Python's own never runs, as abort() does not return."""
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    return function(signal.SIGABRT, handler)
