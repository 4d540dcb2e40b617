"""Who stands where is printed; tested without real processes."""

import contextlib
import re
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from nml_jax.assembly import streams
from nml_jax.processes import peers, progress
from nml_jax.processes.job import Membership
from nml_jax.processes.progress import Progress
from tests.launch.shell import ROOT, clean
from tests.scenes import programs


class Peer:
    """One of three processes, with a dictionary as service; has all that `share_position` and `track` need."""

    share_position: Any = Membership.share_position

    def __init__(self, index: int, kept: dict[str, str]):
        self.index, self.kept, self.client = index, kept, self
        self.progress = Progress(self.process_names)

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        self.kept[key] = value

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        return [item for item in self.kept.items() if item[0].startswith(prefix)]

    def process_names(self, numbers: Iterable[int]) -> str:
        return " and ".join(f"process {i}" for i in sorted(numbers))


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setattr(progress, "STILL", 0.0)
    kept: dict[str, str] = {}
    return [Peer(i, kept) for i in range(3)]


def enter(monkeypatch, job, stack, *places):
    monkeypatch.setattr(peers, "_progress", job.progress)
    for place in places:
        stack.enter_context(peers.track(place))
    job.share_position()


def test_the_few_are_named_before_the_many(monkeypatch, jobs, capsys):
    first, second, third = jobs
    with contextlib.ExitStack() as stack:
        enter(monkeypatch, third, stack, "tune")
        enter(monkeypatch, second, stack, "tune")
        enter(monkeypatch, first, stack, "zeroshot", "test", "batch 12 of images")
        first.share_position()
    line = "no step for 0 s: process 0 in zeroshot: test: batch 12 of images; the others in tune\n"
    assert capsys.readouterr().err == line


def test_two_processes_are_both_named(monkeypatch, jobs, capsys):
    with contextlib.ExitStack() as stack:
        enter(monkeypatch, jobs[1], stack, "the end")
        enter(monkeypatch, jobs[0], stack, "tune", "mlp")
        jobs[0].share_position()
    assert capsys.readouterr().err == "no step for 0 s: process 0 in tune: mlp; process 1 in the end\n"


def test_all_in_one_place(monkeypatch, jobs, capsys):
    with contextlib.ExitStack() as stack:
        for job in reversed(jobs):
            enter(monkeypatch, job, stack, "report")
        jobs[0].share_position()
    assert capsys.readouterr().err == "no step for 0 s: all in report\n"


def test_batches_of_several_passes(monkeypatch, jobs):
    """Passes over splits may end in any order, and each removes its place."""
    job = jobs[0]
    monkeypatch.setattr(peers, "_progress", job.progress)

    def read_place() -> str:
        job.share_position()
        return job.kept["nml_jax/place/0"]

    with peers.track("extract"):
        one, other = (streams.track_batches(iter([{}, {}]), what) for what in ("images", "texts"))
        next(one)
        next(other)
        assert read_place() == "extract: batch 1 of images: batch 1 of texts"
        next(one)
        assert read_place() == "extract: batch 2 of images: batch 1 of texts"
        assert list(one) == []
        assert read_place() == "extract: batch 1 of texts"
        other.close()  # given up
        assert read_place() == "extract"
    assert job.progress.places == []


def test_without_a_place_nothing_is_printed(jobs, capsys):
    for _ in range(3):
        jobs[0].share_position()
    assert jobs[0].kept == {}
    assert capsys.readouterr().err == ""


ALONE = """
import time
from nml_jax.processes import peers, progress
progress.TICK, progress.STILL = 0.1, 0.6
peers.start()
with peers.track("pretrain"), peers.track(lambda: "step 7"):
    time.sleep(1.6)
time.sleep(1)
"""


def test_a_single_process_prints_where_it_stands():
    """It prints nothing more once it has left the place."""
    ended = programs.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, env=clean(), timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.splitlines()
    assert all(re.fullmatch(r"no step for \d s: in pretrain: step 7", line) for line in lines)
    assert 1 <= len(lines) <= 3
