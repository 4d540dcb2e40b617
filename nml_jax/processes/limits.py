"""Limits of this process: the memory it may use, and the threads of BLAS."""

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path("/")  # of the file system
# Type of a file system of cgroups -> the file of a group's memory limit in it.
LIMITS = {"cgroup2": "memory.max", "cgroup": "memory.limit_in_bytes"}


def read_memory_limit() -> int:
    """Return the bytes this process may use: the machine's memory, or the least limit of its cgroups.

    A cgroup is bound by all above it, as a job is by its slice and a container by its pod.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, top, file in _list_cgroups():
        for group in (folder, *folder.parents):
            limits += _read_limit(group / file)
            if group == top:
                break
    return min(limits)


def _list_cgroups() -> Iterator[tuple[Path, Path, str]]:
    """Yield (this process's group, the topmost group it can see, the name of the limit's file), in both versions."""
    own = [line.split(":", 2) for line in _read_lines("proc/self/cgroup")]
    for line in _read_lines("proc/self/mountinfo"):
        mount, _, about = line.partition(" - ")
        kind, _, options = about.split(" ", 2)
        if kind not in LIMITS or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        root, point = map(_unescape, mount.split(" ")[3:5])
        top = ROOT / point.lstrip("/")
        for number, controllers, path in own:
            if (number == "0") if kind == "cgroup2" else ("memory" in controllers.split(",")):
                yield top / _find_below(path, root), top, LIMITS[kind]


def _unescape(path: str) -> str:
    """Return a path as it is: mountinfo writes blanks and backslashes, as in names of systemd, as \\040 and \\134."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)


def _find_below(path: str, root: str) -> str:
    """Return a group's path below the mount whose topmost group is `root`; "" if the mount does not say where it is.

    In a container the topmost group is mostly the container's own, whatever the path says.
    """
    below = path.removeprefix(root.rstrip("/")) if path == root or path.startswith(root.rstrip("/") + "/") else ""
    return "" if ".." in below.split("/") else below.lstrip("/")


def _read_limit(path: Path) -> list[int]:
    """Return the limit in a file in a list; empty if there is none ("max"), or no such file."""
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return []
    return [int(text)] if text.isdecimal() else []


def _read_lines(path: str) -> list[str]:
    try:
        return (ROOT / path).read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # not Linux
        return []


class _Blas:
    """How many are inside `limit_blas`, and what was there before the first of them: library -> threads."""

    lock = threading.Lock()
    inside = 0
    before: Sequence[tuple[Any, int]] = ()


@contextlib.contextmanager
def limit_blas() -> Iterator[None]:
    """Limit BLAS to one thread: XLA's `eigh` on CPU uses it, and its threads would compete with XLA's for the cores.

    The limit holds for the whole process. The first thread that enters sets it, and the last that leaves restores what
    was there before, in whatever order they leave. Libraries on OpenMP count for each thread, and are set in each.
    """
    own, shared = _list_libraries()
    with _Blas.lock:
        if not _Blas.inside:
            _Blas.before = _limit(shared)
        _Blas.inside += 1
    before = _limit(own)
    try:
        yield
    finally:
        _restore(before)
        with _Blas.lock:
            _Blas.inside -= 1
            if not _Blas.inside:
                _restore(_Blas.before)


def _list_libraries() -> tuple[list[Any], list[Any]]:
    """Return the loaded BLAS libraries whose number of threads is set for each thread, and for the whole process."""
    import scipy.linalg  # noqa: F401  XLA uses its LAPACK, and only a loaded library can be limited
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    own = [library for library in libraries if getattr(library, "threading_layer", "") == "openmp"]
    return own, [library for library in libraries if library not in own]


def _limit(libraries: Sequence[Any]) -> list[tuple[Any, int]]:
    """Limit libraries to one thread, and return their numbers of threads before."""
    before = [(library, number) for library in libraries if (number := library.num_threads)]
    _restore([(library, 1) for library in libraries])
    return before


def _restore(threads: Sequence[tuple[Any, int]]) -> None:
    for library, number in threads:
        # threadpoolctl lets only the thread that was first set a library that all share, and ignores the others.
        clear = getattr(library, "clear_controlling_thread", lambda **_: None)
        clear(force=True)
        library.set_num_threads(number)
        clear(force=True)
