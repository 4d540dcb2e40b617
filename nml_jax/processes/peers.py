"""Join the processes of a job, wait for them, notice that one is gone, and leave them.

Everything goes through the coordination service that `jax.distributed.initialize` starts in process 0. It offers
registration, barriers, a key-value store and heartbeats. This module limits every wait and reports each fault in one
line:

- A process that ends with an error tells the others (`leave`). They end with PeerLost's exit code.
- A process that ends without a word (SIGKILL, a lost host) is noticed by its missing heartbeat.
- A process that hears of another's error waits a moment, so that it can report an error of its own first.
"""

import atexit
import contextlib
import functools
import json
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import jax
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

from nml_jax.console import notice
from nml_jax.errors import PeerLost, UserError
from nml_jax.hashes import hash_text
from nml_jax.processes import cluster, progress
from nml_jax.processes.job import Membership, first_line, in_thread

T = TypeVar("T")
PATIENCE = 3600.0  # seconds that a process may take longer than another to read its inputs
_job: Membership | None = None  # None: this process is alone
_progress: progress.Progress | None = None  # None: not started


def start(timeout: int = 120) -> None:
    """Join the other processes of this job, if there are any. `cluster.find_job` says how a job is recognised.

    If other processes do not come in time, this one names them and exits here.

    Args:
        timeout: seconds that a process waits for the others, here and at every barrier. A process without heartbeat
            counts as lost after half of it, at least 10 seconds.

    Raises:
        UserError: see `cluster.find_job`; or JAX does not know this job.
        PeerLost: this process could not join, or another one has its number.
    """
    global _job, _progress
    if _job is None and (job := _join(timeout)):
        job.register()
        _job, _progress = job, job.progress
        job.open()
    elif _progress is None:
        _progress = progress.watch_alone()


def _join(timeout: int) -> Membership | None:
    """Return this process's membership of the job, or None if it is alone."""
    arguments = cluster.find_job(os.environ)
    if arguments is None or jax.distributed.is_initialized():
        return None
    address = arguments.get("coordinator_address", "")
    if arguments.get("process_id") == 0 and address:
        cluster.require_free(address)
    if cluster.is_loopback(address):
        _keep_gloo_on_loopback()
    # JAX's preemption service replaces Python's handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    # Otherwise the library aborts all processes when one is gone, before any of them can report it.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The client aborts five seconds after its limit. The service knows who has not come, so it must time out earlier.
    limit = max(timeout - 10, math.ceil(timeout * 0.75))
    join = functools.partial(
        jax.distributed.initialize,
        **arguments,
        coordinator_bind_address=cluster.choose_bind_address(os.environ, arguments.get("coordinator_address", "")),
        initialization_timeout=limit + 1,
        heartbeat_timeout_seconds=max(timeout // 2, 10),
        shutdown_timeout_seconds=timeout,
    )
    job = Membership(timeout)
    atexit.register(job.close)
    try:
        with job.joining(), _limit_registration(limit):
            in_thread(join)
    except ValueError as e:
        if arguments or cluster.is_launched(os.environ):
            names = ", ".join(cluster.VARIABLES.values())
            raise UserError(f"JAX does not know its place in this job: {first_line(e)}", f"set {names}") from e
        return None  # a TPU of one host
    except RuntimeError as e:
        raise PeerLost(f"this process could not join its job: {first_line(e)}") from e
    return job if job.count > 1 else None


@contextlib.contextmanager
def _limit_registration(seconds: int) -> Iterator[None]:
    """Make the service wait `seconds` for all processes. JAX has no argument for this limit, which is an hour."""
    make = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = functools.partial(make, cluster_register_timeout=seconds)
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = make


def _keep_gloo_on_loopback() -> None:
    """Make collectives on CPUs listen at loopback alone. JAX has no setting for their address, which is the host's."""
    make = _jax.make_gloo_tcp_collectives
    if not isinstance(make, functools.partial):
        _jax.make_gloo_tcp_collectives = functools.partial(make, hostname="127.0.0.1")


def barrier(name: str, timeout: float | None = None) -> None:
    """Wait until all processes are here. Signals are handled meanwhile.

    Args:
        name: what to call this place in the message.
        timeout: seconds. None: those given to `start`; math.inf: as long as all live.

    Raises:
        PeerLost: names the processes that did not come in time.
    """
    if _job is not None:
        _job.barrier(name, _job.timeout if timeout is None else timeout)


def agree(value: T) -> T:
    """Return process 0's value (JSON) on every process, for decisions that must be the same everywhere.

    The others wait for it as long as process 0 lives.
    """
    return value if _job is None else _job.agree(value)


def gather(value: T, name: str, *, slack: float = 0.0) -> list[T]:
    """Return the values (JSON) of all processes, in their order, on every process.

    Args:
        name: what to call this place in the message.
        slack: seconds to wait beyond the timeout given to `start`.

    Raises:
        PeerLost: names the processes that did not come in time.
    """
    return [value] if _job is None else _job.gather(value, name, _job.timeout + slack)


def require_same(collect: Callable[[], Mapping[str, str]], cure: str) -> None:
    """Raise UserError on every process if what they collect differs. Do nothing if this process is alone.

    Args:
        collect: returns what must be the same, in words: what it is -> its value.
        cure: what to do if something differs.

    Raises:
        UserError: names the first thing that differs, and the processes that differ from most others.
        PeerLost: see `gather`.
    """
    if _job is None:
        return
    own = dict(collect())
    # Some read large files to answer, on slow disks; one that is gone is noticed by its heartbeat.
    if len(set(gather(hash_text(json.dumps(own)), "the comparison of inputs", slack=PATIENCE))) == 1:
        return
    raise UserError(describe_difference(gather(own, "the difference of inputs"), _job.process_names), cure)


def describe_difference(all_facts: Sequence[Mapping[str, str]], process_names: Callable[[Iterable[int]], str]) -> str:
    """Return in words which processes differ from most others, and in what.

    Args:
        all_facts: of every process, in their order; not all equal.
    """
    for what in dict.fromkeys(what for facts in all_facts for what in facts):
        values = [facts.get(what, "nothing") for facts in all_facts]
        most = max(values, key=values.count)  # the first of several: that of process 0
        odd = [i for i, value in enumerate(values) if value != most]
        if odd:
            others = process_names([values.index(most)]) if len(values) == 2 else "most others"
            return f"{process_names(odd)} has another {what} than {others}: {values[odd[0]]}, not {most}"
    return "the processes list their inputs in different orders"


@contextlib.contextmanager
def track(place: str | Callable[[], str]) -> Iterator[None]:
    """Track where this process is, so that a line can be printed if no process moves on for long.

    Calls nest, as a batch does in a split in a stage. A process moves if any of its places changes.

    Args:
        place: what this process is doing, in words, or a function that returns it with the current step. Another
            thread calls the function.
    """
    if _progress is None:
        yield
        return
    places, current = _progress.places, (lambda: place) if isinstance(place, str) else place
    places.append(current)
    try:
        yield
    finally:
        places.remove(current)  # not always the last: generators of batches end in any order


def find_position() -> str:
    """Return what this process is doing, as `track` was told."""
    return "" if _progress is None else _progress.position()


def list_hosts() -> list[str]:
    """Return the host of every process, in their order."""
    return [socket.gethostname()] if _job is None else [_job.hosts[i] for i in range(_job.count)]


def find_lost() -> str | None:
    """Return which process is gone and why, or None. Call it after an error that a lost process may have caused.

    It takes a second or two if all live, and at most the timeout given to `start` if one does not.
    """
    return None if _job is None else _job.find_lost()


def finish() -> None:
    """Wait until all processes have done all of their work. From then on each may end."""
    with track("the end"):
        barrier("the end", math.inf)
    if _job is not None:
        _job.finished.set()


def leave(code: int, message: str, words: str, *, saved: bool = True) -> None:
    """End this process with `code`, without clean-up. Return if there are no others.

    Args:
        message: printed to stderr.
        words: why. The other processes get its first line.
        saved: whether the others may be saving, too, and must have time for that.
    """
    if _job is not None:
        _job.leave(code, message, words, saved=saved)
    elif jax.distributed.is_initialized():  # the others have not joined yet
        notice(message)
        os._exit(code)
