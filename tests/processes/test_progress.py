"""Where the processes of a job are, without processes."""

import contextlib
from collections.abc import Iterable

import pytest

from nml_jax import processes
from nml_jax.processes import progress
from nml_jax.processes.progress import Progress


class Job:
    """A process among three, with a service that is a dictionary; what of a Job `progress` and `stepping` ask for."""

    def __init__(self, index: int, kept: dict[str, str]):
        self.index, self.kept, self.client = index, kept, self
        self.progress = Progress(self)

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        self.kept[key] = value

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        return [item for item in self.kept.items() if item[0].startswith(prefix)]

    def named(self, indices: Iterable[int]) -> str:
        return " and ".join(f"process {i}" for i in sorted(indices))


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setattr(progress, "STILL", 0.0)
    kept: dict[str, str] = {}
    return [Job(i, kept) for i in range(3)]


def entered(monkeypatch, job, stack, *places):
    monkeypatch.setattr(processes, "_job", job)
    for what, step in places:
        stack.enter_context(processes.at(what, step))


def test_places_lie_in_one_another(monkeypatch, jobs, capsys):
    first, second, third = jobs
    with contextlib.ExitStack() as stack:
        entered(monkeypatch, third, stack, ("tune", 0))
        entered(monkeypatch, second, stack, ("tune", 0))
        entered(monkeypatch, first, stack, ("zeroshot", 0), ("test", 0), ("images", 12))
        for job in (third, second, first, first):
            job.progress.look()
    said = capsys.readouterr().err
    assert said == ("no step for 0 s: process 0 at step 12 (zeroshot, test, images), the others at step 0 (tune)\n")


def test_batches_may_end_in_any_order(monkeypatch, jobs):
    """Two passes over a split, of which the first ends first, leave no place of theirs behind."""
    job = jobs[0]
    monkeypatch.setattr(processes, "_job", job)
    with processes.at("extract"):
        passes = [processes.at("view 1", 3), processes.at("view 2", 4)]
        for one in passes:
            one.__enter__()
        passes[0].__exit__(None, None, None)
        job.progress.look()
        assert job.kept == {"nml_jax/place/0": '[4, "extract, view 2"]'}
        passes[1].__exit__(None, None, None)
        job.progress.look()
        assert job.kept == {"nml_jax/place/0": '[0, "extract"]'}
    assert job.progress.places == []


def test_who_is_nowhere_says_nothing(jobs, capsys):
    for _ in range(3):
        jobs[0].progress.look()
    assert jobs[0].kept == {}
    assert capsys.readouterr().err == ""
