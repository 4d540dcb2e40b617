"""A folder has one owner at a time."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nml_jax.errors import UserError
from nml_jax.runs import owner
from tests.launch.shell import ROOT, clean

HOLD = """
import sys, time
from pathlib import Path
from nml_jax.runs import owner
owner.BEAT = float(sys.argv[2])
with owner.hold(Path(sys.argv[1]), "the folder", "wait"):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(owner, "BEAT", 0.1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".owner"


@pytest.fixture
def other(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the file."""
    command = [sys.executable, "-c", HOLD, str(path), "0.1"]
    process = subprocess.Popen(command, cwd=ROOT, env=clean(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.communicate()


def hold(path: Path):
    return owner.hold(path, "the folder", "give another")


def on_another_machine(monkeypatch) -> None:
    """Let the kernel know nothing, as on another machine that sees the same disk."""
    monkeypatch.setattr(owner, "_read_boot", lambda: "another")


def test_one_after_the_other(path: Path):
    for _ in range(2):
        with hold(path):
            assert owner.read(path)["process"] == os.getpid()
        assert list(path.parent.iterdir()) == []


def test_an_error_leaves_no_owner(path: Path):
    with pytest.raises(ZeroDivisionError), hold(path):
        raise ZeroDivisionError
    assert not path.exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_live_owner_is_named_and_keeps_its_folder(path: Path, other, monkeypatch, elsewhere: bool):
    if elsewhere:
        on_another_machine(monkeypatch)
    before = owner.read(path)["token"]
    with (
        pytest.raises(UserError, match=rf"^the folder belongs to another job \(process {other.pid} on ") as e,
        hold(path),
    ):
        pass
    assert e.value.cure == "give another"
    assert owner.read(path)["token"] == before


def test_a_job_waits_for_one_that_is_about_to_end(path: Path, other):
    threading.Timer(0.15, other.kill).start()
    with hold(path):
        assert owner.read(path)["process"] == os.getpid()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_owner_that_was_killed_is_replaced(path: Path, other, monkeypatch, capsys, elsewhere: bool):
    other.kill()
    other.wait()
    if elsewhere:
        on_another_machine(monkeypatch)
    begun = time.monotonic()
    with hold(path):
        assert owner.read(path)["process"] == os.getpid()
    assert ("waiting for its end" in capsys.readouterr().err) == elsewhere  # the kernel knows at once
    assert time.monotonic() - begun < 5
    assert list(path.parent.iterdir()) == []


def test_an_owner_that_stands_still_on_this_machine_is_not_replaced(path: Path, other):
    other.send_signal(signal.SIGSTOP)
    time.sleep(0.05)
    with pytest.raises(UserError, match=r"which stands still\n"), hold(path):
        pass


def test_an_owner_that_stood_still_elsewhere_ends_when_it_goes_on(path: Path, other, monkeypatch):
    other.send_signal(signal.SIGSTOP)
    on_another_machine(monkeypatch)
    with hold(path):
        other.send_signal(signal.SIGCONT)
        assert other.wait(10) == 2
        assert owner.read(path)["process"] == os.getpid()


def test_of_many_that_find_a_dead_owner_one_wins(path: Path, monkeypatch):
    path.write_text(json.dumps({"token": "dead", "every": 0.1}).ljust(owner.SIZE))
    on_another_machine(monkeypatch)
    won, refused, together = [], [], threading.Barrier(6)

    def start() -> None:
        together.wait()
        try:
            with hold(path):
                won.append(owner.read(path)["token"])
                time.sleep(1)
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 5)


@pytest.mark.parametrize("content", ["", "[]", '{"every": "x"}', "\udcff" * 3, '{"every": 1e9}', "[" * 5000])
def test_a_file_without_sense_is_that_of_a_dead_owner(path: Path, content: str):
    path.write_text(content, "utf-8", "surrogateescape")
    with hold(path):
        assert owner.read(path)["process"] == os.getpid()


def test_a_link_is_no_owner(path: Path, tmp_path: Path):
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="is a link, not a file"), hold(path):
        pass
    assert not (tmp_path / "victim").exists()
