"""What this process may use: memory by its cgroups, and one thread of BLAS while heads train."""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from nml_jax.processes import limits

V2 = "30 23 0:28 {root} /sys/fs/cgroup rw - cgroup2 cgroup rw"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
CPU = "32 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"


def lay_out(root: Path, own: str, mounts: str, files: Mapping[str, str]) -> None:
    """Write what Linux says of a process's cgroups, below another root."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


SLICE = {"user.slice/memory.max": "7000", "user.slice/a.scope/memory.max": "max", "memory.max": "9000"}
POD = {"memory/memory.limit_in_bytes": "9000", "memory/pod/memory.limit_in_bytes": "5000",
       "memory/pod/c/memory.limit_in_bytes": str(2**63 - 4096)}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "mounts", "files", "wanted"),
    [
        ("0::/user.slice/a.scope", V2.format(root="/"), SLICE, 7000),  # of the slice
        ("0::/user.slice/b.scope", V2.format(root="/"), SLICE, 7000),  # a group without a controller of memory
        ("0::/", V2.format(root="/"), SLICE, 9000),  # a container that sees itself as the root
        ("0::/../other", V2.format(root="/"), SLICE, 9000),
        ("0::/user.slice/a.scope", V2.format(root="/user.slice"), {"a.scope/memory.max": "5"}, 5),
        (r"0::/my\x2dpod/in/c", V2.format(root=r"/my\134x2dpod"), {"in/memory.max": "6", "in/c/memory.max": "max"}, 6),
        ("4:memory:/pod/c\n0::/", f"{CPU}\n{V1.format(root='/')}", POD, 5000),
        ("4:cpu,memory:/x/y", V1.format(root="/x/y"), POD, 9000),  # a container with the mount of its own group
        ("4:memory:/x/y", V1.format(root="/"), POD, 9000),  # a path of the host that is not seen from here
        ("4:cpu:/pod", f"{CPU}\n{V1.format(root='/')}", POD, None),
        ("0::/", V2.format(root="/"), {}, None),
    ],
)
def test_memory_is_bound_by_every_group_above(
    tmp_path: Path, monkeypatch, own: str, mounts: str, files: Mapping[str, str], wanted: int | None
):
    lay_out(tmp_path, own, mounts, files)
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    found = limits.read_memory_limit()
    assert found == wanted if wanted else found > 2**28  # of the machine


def test_without_linux_it_is_the_machines(tmp_path: Path, monkeypatch):
    real = limits.read_memory_limit()
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    assert 2**28 < real <= limits.read_memory_limit()


def count_threads() -> set[int]:
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


def test_blas_has_one_thread_while_any_thread_needs_that():
    """The first to enter is the first to leave; restoring what the second found would leave one thread for ever."""
    np.linalg.eigh(np.eye(2))
    with limits.limit_blas():
        pass  # loads the library
    before = count_threads()
    entered, left, seen = threading.Event(), threading.Event(), []

    def second() -> None:
        with limits.limit_blas():
            entered.set()
            left.wait(10)
            seen.append(count_threads())

    thread = threading.Thread(target=second)
    with limits.limit_blas():
        thread.start()
        assert entered.wait(10)
        assert count_threads() == {1}
    left.set()
    thread.join()
    assert seen == [{1}]
    assert count_threads() == before


def test_an_error_restores_the_threads_of_blas():
    with limits.limit_blas():
        pass
    before = count_threads()
    with pytest.raises(ZeroDivisionError), limits.limit_blas():
        raise ZeroDivisionError
    assert count_threads() == before
