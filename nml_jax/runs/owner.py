"""Give a folder one owner at a time: a second job waits for the first to end, or ends itself and harms nothing.

The owner keeps a file with a random token and rewrites it at every heartbeat. Host and process stand there only for
messages, because containers repeat both. Whoever finds the file waits three heartbeats. If it has not changed by then,
its owner is dead. Nobody compares clocks, so this works on a network disk, too.

On one machine the kernel knows better: the owner also locks its file, and a lock ends with its process, however that
ends. A dead owner is then replaced at once, and one that stands still is not replaced at all.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from nml_jax.console import notice
from nml_jax.errors import UserError, report_disk_errors

BEAT = 5.0  # seconds between two heartbeats
MISSED = 3  # heartbeats after which an owner counts as dead
LONGEST = 60.0  # seconds to wait, whatever the file says
SIZE = 1024  # bytes; always the same, so that no reader finds half of a heartbeat
BOOT = Path("/proc/sys/kernel/random/boot_id")  # differs between machines, and is the same in all containers of one


@contextlib.contextmanager
def hold(path: Path, what: str, cure: str, *, lost: Callable[[UserError], None] | None = None) -> Iterator[None]:
    """Own what `path` stands for. Another job that calls this waits, and then raises.

    Args:
        path: the owner's file; its folder exists.
        what: what is owned, in words.
        cure: what to do if another job owns it.
        lost: called from another thread if another job has taken over, because this one stood still for too long. It
            must end this process. None: print the error and exit with 2.

    Raises:
        UserError: another job owns it and is alive, or the file cannot be written.
    """
    owner = _Owner(path, what, cure, lost or _end)
    with report_disk_errors(path):
        owner.acquire()
    try:
        yield
    finally:
        owner.release()


class _Owner:
    """This process as the owner of a file, or on its way to be."""

    def __init__(self, path: Path, what: str, cure: str, lost: Callable[[UserError], None]):
        self.path, self.what, self.cure, self.lost = path, what, cure, lost
        self.ended = threading.Event()
        self.about: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": datetime.now().astimezone().isoformat(" ", "seconds"),
            "every": BEAT,
            "boot": _read_boot(),
            "beat": 0,
        }

    def acquire(self) -> None:
        while not self._create():
            self._wait()
        threading.Thread(target=self._keep, daemon=True, name="owner").start()

    def release(self) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            if read(self.path).get("token") == self.about["token"]:
                self.path.unlink()
            os.close(self.file)  # and with it the lock

    def _create(self) -> bool:
        """Create the file; return whether no other job was faster."""
        try:
            self.file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o644)
        except FileExistsError:
            return False
        # The lock comes before the content: without content nobody asks for the lock.
        self.about["lock"] = _identify(self.file) if _lock(self.file) else None
        self._write()
        return True

    def _write(self) -> None:
        os.pwrite(self.file, json.dumps(self.about).encode().ljust(SIZE), 0)
        os.fsync(self.file)

    def _keep(self) -> None:
        """Rewrite the file at every heartbeat, and end this process if it is another's by now."""
        while not self.ended.wait(BEAT):
            self.about["beat"] += 1
            with contextlib.suppress(OSError):  # a full or slow disk; the next heartbeat may arrive
                self._write()
                now = read(self.path)
                if now.get("token", self.about["token"]) != self.about["token"] and not self.ended.is_set():
                    self.lost(UserError(f"{self._describe(now)} has taken over {self.what}", self.cure))

    def _wait(self) -> None:
        """Return when the file has gone; remove it if its owner is dead.

        Raises:
            UserError: the owner is alive.
        """
        first = now = read(self.path)
        limit = min(MISSED * _read_seconds(first), LONGEST)
        begun, told = time.monotonic(), False
        while now and not (dead := _is_unlocked(self.path, now)):
            if (waited := time.monotonic() - begun) > limit:
                break
            if waited > limit / MISSED and not told:
                told = True
                notice(f"{self.what} belongs to {self._describe(now)}; waiting for its end, {limit:.0f} s at most")
            time.sleep(min(limit / 30, 0.5))
            now = read(self.path)
        if not now:
            return
        if not dead and (now != first or dead is False):
            still = "" if now != first else ", which stands still"
            raise UserError(f"{self.what} belongs to {self._describe(now)}{still}", self.cure)
        notice(f"{self._describe(now)} has left {self.what} without a word; taking over")
        _remove(self.path, now)

    def _describe(self, about: Mapping[str, Any]) -> str:
        """Return words for an owner. What is in the file may be anything."""
        process, host, since = (str(about.get(key, "?"))[:80] for key in ("process", "host", "since"))
        return f"another job (process {process} on {host}, since {since})".encode("ascii", "replace").decode()


def read(path: Path) -> dict[str, Any]:
    """Read an owner's file; {} if there is none. A file without sense, as one just created, has no token.

    Raises:
        UserError: it is not a regular file.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return {}
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise UserError(f"{path} is a link, not a file", "remove it") from e
        raise
    try:
        text = os.pread(file, SIZE, 0).decode("utf-8", "replace")
    finally:
        os.close(file)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"content": text}


def _remove(path: Path, dead: Mapping[str, Any]) -> None:
    """Remove the file of a dead owner, but not that of another job which was faster to replace it."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):  # the other one has removed it
        path.rename(aside)
        if read(aside) != dead:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _is_unlocked(path: Path, about: Mapping[str, Any]) -> bool | None:
    """Return whether the kernel says that the owner is dead; None if this kernel cannot know."""
    if not about.get("lock") or not about.get("boot") or about["boot"] != _read_boot():
        return None
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _lock(file) if _identify(file) == about["lock"] else None
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    """Lock a file until it is closed; return whether that was possible."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by another, or the disk knows no locks
        return False
    return True


def _identify(file: int) -> list[int]:
    """Return what distinguishes a file on this machine. A disk that is mounted twice may have two sets of locks."""
    status = os.fstat(file)
    return [status.st_dev, status.st_ino]


def _read_boot() -> str:
    try:
        return BOOT.read_text("ascii").strip()
    except OSError:  # not Linux
        return ""


def _read_seconds(about: Mapping[str, Any]) -> float:
    """Return the seconds between two heartbeats of an owner."""
    every = about.get("every")
    return float(every) if isinstance(every, int | float) and 0 < every <= LONGEST else BEAT


def _end(error: UserError) -> None:
    notice(f"error: {error}")
    os._exit(error.exit_code)
