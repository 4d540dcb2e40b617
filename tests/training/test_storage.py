"""A disk that is full, read-only or slow while a run saves: training goes on, and the last good checkpoint stays."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.training import checkpoint
from tests.scenes import process_scenes
from tests.training.tiny import Run, host, random_batches

# After a failed write the storage library still calls back into an event loop that it has closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DISK = 4_000_000  # bytes


@pytest.fixture
def disk(tmp_path, request) -> Iterator[Path]:
    """Mount a small disk for the folder of the run, or for a folder inside it."""
    folder = tmp_path / "disk" / getattr(request, "param", "")
    folder.mkdir(parents=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def run(tmp_path, disk, make_run) -> Run:
    run = make_run()
    run.folder = tmp_path / "disk" / "run"
    return run


def test_only_process_0_tries_the_disk(make_run, monkeypatch):
    """Otherwise one process could delete the probe of another, whose save would fail without reason."""
    checkpoints = make_run().checkpoints()
    probe = checkpoints.folder / f"probe{checkpoint.TEMPORARY}"
    probe.mkdir()
    monkeypatch.setattr(checkpoint.jax, "process_index", lambda: 1)
    assert checkpoints._try_disk() == ""
    assert probe.is_dir()


def act_at(actions: Mapping[int, Callable[[], object]]):
    """Return a function that yields batches 0, 1, ... and runs an action while the batch of its step is read."""

    def batches(start: int) -> Iterator:
        for k, batch in enumerate(random_batches(16)(start), start):
            actions.get(k, lambda: None)()
            yield batch

    return batches


def fill(disk: Path) -> None:
    """Leave less space than a checkpoint needs."""
    with (disk / "filler").open("wb") as f:
        free = int(subprocess.check_output(["df", "--output=avail", "-B1", disk]).split()[-1])
        f.write(b"x" * (free - 8192))


def read_only(disk: Path, on: bool) -> None:
    subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", disk], check=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_full_disk_loses_a_checkpoint_but_not_the_run(run, disk, make_run, capsys):
    """The disk is full before the save of step 4 and free again before that of step 8."""
    state = run.train(act_at({3: lambda: fill(disk), 7: (disk / "filler").unlink}))
    assert checkpoint.list_steps(run.folder / "checkpoints") == [8, 12]
    err = capsys.readouterr().err
    assert "the checkpoint of step 4 is lost: cannot write" in err
    assert "No space left" in err
    assert "there is no good checkpoint yet" in err
    for name, array in host(make_run("sound").train()).items():
        np.testing.assert_array_equal(host(state)[name], array, err_msg=name)
    assert not list((run.folder / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("disk", ["run/checkpoints"], indirect=True)
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_last_save_must_succeed_and_the_last_good_one_stays(run, disk, make_run, how: str, capsys):
    def block_disk() -> None:
        wait_for(run.folder / "checkpoints" / "4" / checkpoint.SUMS)
        fill(disk) if how == "full" else read_only(disk, on=True)

    with pytest.raises(UserError, match="cannot write") as error:
        run.train(act_at({6: block_disk}))
    assert "what was saved before is kept" in error.value.cure
    assert "the last good checkpoint is that of step 4" in capsys.readouterr().err  # from the failed save of step 8
    read_only(disk, on=False)
    (disk / "filler").unlink(missing_ok=True)
    state = run.train()
    for name, array in host(make_run("sound").train()).items():
        np.testing.assert_array_equal(host(state)[name], array, err_msg=name)


def test_training_does_not_wait_for_slow_storage(make_run, monkeypatch, capsys):
    """The save of step 4 takes until step 10. That of step 8 is left out, that of step 12 is not."""
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.01)
    run, release = make_run(), threading.Event()
    finish = checkpoint.Checkpoints._finish

    def finish_late(self, response, step: int) -> None:
        assert release.wait(60)
        finish(self, response, step)

    monkeypatch.setattr(checkpoint.Checkpoints, "_finish", finish_late)
    run.train(act_at({9: release.set}))
    assert "the checkpoint of step 4 is still being written; that of step 8 is left out" in capsys.readouterr().err
    assert checkpoint.list_steps(run.folder / "checkpoints") == [4, 12]


@pytest.mark.slow
def test_a_save_that_fails_on_one_process_is_lost_on_all_and_the_next_is_not(tmp_path, monkeypatch):
    """Process 0 alone writes, and cannot at step 4; the other waits for it in the storage library."""
    monkeypatch.setenv("FOLDER", str(tmp_path / "run"))
    first, other = process_scenes.play("the_first_cannot_write_for_a_while", timeout=40, count=2)
    assert (first.code, other.code) == (0, 0), (first.out, other.out)
    lines = [line for line in first.out.splitlines() if "is lost" in line]
    assert len(lines) == 1
    assert lines[0].startswith("the checkpoint of step 4 is lost: process 0: cannot write"), lines
    assert "File too large; training goes on, there is no good checkpoint yet" in lines[0]
    assert "Traceback" not in first.out + other.out
    assert checkpoint.list_steps(tmp_path / "run" / "checkpoints") == [8, 12]
    for step in (8, 12):
        checkpoint.verify(tmp_path / "run" / "checkpoints" / str(step))


@pytest.mark.slow
def test_a_last_save_that_fails_on_one_process_ends_all_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("FOLDER", str(tmp_path / "run"))
    ended = process_scenes.play("the_first_cannot_write", timeout=40, count=2)
    for e in ended:
        assert e.code in (2, 76), e.out
        assert "Traceback" not in e.out
        assert "cannot write" in e.out
        assert "File too large" in e.out
    assert ended[0].code == 2
