"""The processes of a job: joining them, waiting for them, noticing that one is gone, and leaving them.

Everything goes through the coordination service that `jax.distributed.initialize` starts in process 0: registration,
barriers, key-value store, heartbeats. What stands here bounds every wait and puts what went wrong into one line:

- A process that ends with an error says so to the others (`leave`), which end with PeerLost's exit code.
- One that says nothing (SIGKILL, a lost host) is missed by its heartbeat.
- A process whose own error is about to come out is given a moment for it before it ends for another's.
"""

import atexit
import contextlib
import functools
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

from nml_jax.errors import PeerLost, UserError
from nml_jax.processes import cluster, progress
from nml_jax.processes.job import Membership, first_line, in_thread

T = TypeVar("T")
_job: Membership | None = None  # None: this process is alone
_progress: progress.Progress | None = None  # None: not started


def start(timeout: int = 120) -> None:
    """Join the other processes of this job, if there are any; see `cluster.arguments` for how a job is recognised.

    Args:
        timeout: seconds that any process waits for the others, here and at every barrier. A process that gives no sign
            of life is missed after half of it, or 10 seconds.

    Raises:
        UserError: see `cluster.arguments`; or JAX does not know this job.
        PeerLost: this process could not join, or its place is taken. If it cannot because others do not come, it ends
            here, naming them.
    """
    global _job, _progress
    if _job is None and (job := _join(timeout)):
        job.register()
        _job, _progress = job, job.progress
        job.open()
    elif _progress is None:
        _progress = progress.watch_alone()


def _join(timeout: int) -> Membership | None:
    """This process among the others, or None if it is alone."""
    given = cluster.find_job(os.environ)
    if given is None or jax.distributed.is_initialized():
        return None
    if given.get("process_id") == 0 and "coordinator_address" in given:
        cluster.require_free(given["coordinator_address"])
    # The service that would watch for pre-emption replaces Python's handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    # Otherwise the library aborts all processes when one is gone, before any of them can say it.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The client aborts five seconds after its limit; the service, which knows who has not come, is to be earlier.
    limit = max(timeout - 10, math.ceil(timeout * 0.75))
    join = functools.partial(
        jax.distributed.initialize,
        **given,
        initialization_timeout=limit + 1,
        heartbeat_timeout_seconds=max(timeout // 2, 10),
        shutdown_timeout_seconds=timeout,
    )
    job = Membership(timeout)
    atexit.register(job.close)
    try:
        with job.joining(), _registration(limit):
            in_thread(join)
    except ValueError as e:
        if given or cluster.is_launched(os.environ):
            names = ", ".join(cluster.VARIABLES.values())
            raise UserError(f"JAX does not know its place in this job: {first_line(e)}", f"set {names}") from e
        return None  # a TPU of one host
    except RuntimeError as e:
        raise PeerLost(f"this process could not join its job: {first_line(e)}") from e
    return job if job.count > 1 else None


@contextlib.contextmanager
def _registration(seconds: int) -> Iterator[None]:
    """Let the service wait so long for all to come; JAX passes on every limit but this one, which is an hour."""
    make = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = functools.partial(make, cluster_register_timeout=seconds)
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = make


def barrier(name: str, timeout: float | None = None) -> None:
    """Wait until all processes are here. Signals are heard meanwhile.

    Args:
        name: of the place, for the message.
        timeout: seconds; None: those given to `start`; math.inf: as long as all live.

    Raises:
        PeerLost: some did not come in time; it names them.
    """
    if _job is not None:
        _job.barrier(name, _job.timeout if timeout is None else timeout)


def agree(value: T) -> T:
    """The first process's answer (JSON), on every process: what all must decide alike is decided once.

    The others wait for it as long as the first process lives.
    """
    return value if _job is None else _job.agree(value)


def gather(value: T, name: str, *, slack: float = 0.0) -> list[T]:
    """Every process's value (JSON), in their order, on every process.

    Args:
        name: of the place, for the message.
        slack: seconds that some may come later than others for good reasons, beyond the limit given to `start`.

    Raises:
        PeerLost: some did not come in time; it names them.
    """
    return [value] if _job is None else _job.gather(value, name, _job.timeout + slack)


@contextlib.contextmanager
def stepping(place: Callable[[], str]) -> Iterator[None]:
    """While this lasts it is known where this process is; if it does not move on for long, that is said. Of several
    processes the first says who stands where if none moves on.

    These lie in one another, as a batch in a split in a stage; a process moves where any of them does.

    Args:
        place: what this process is doing and the step it has come to, in words; asked by another thread.
    """
    if _progress is None:
        yield
        return
    places = _progress.places
    places.append(place)
    try:
        yield
    finally:
        places.remove(place)  # not always the last: generators of batches end in any order


def at(place: str) -> contextlib.AbstractContextManager[None]:
    """`stepping` where there are no steps, or each is entered anew."""
    return stepping(lambda: place)


def list_hosts() -> list[str]:
    """The host of every process, in their order."""
    return [socket.gethostname()] if _job is None else [_job.hosts[i] for i in range(_job.count)]


def find_lost() -> str | None:
    """Which process is gone, if one is; asked after an error that this may be the cause of.

    It takes a second or two if all live, and at most the limit given to `start` if one does not.
    """
    return None if _job is None else _job.lost()


def finish() -> None:
    """Wait until all processes have done all of their work; after it nobody is missed any more."""
    with at("the end"):
        barrier("the end", math.inf)
    if _job is not None:
        _job.over.set()


def leave(code: int, message: str, words: str) -> None:
    """End this process with `code`, without clean-up; it returns if there are no others.

    Args:
        message: for the person.
        words: of which the other processes are told the first line.
    """
    if _job is not None:
        _job.leave(code, message, words)
    elif jax.distributed.is_initialized():  # or was about to be
        print(message, file=sys.stderr, flush=True)
        os._exit(code)
