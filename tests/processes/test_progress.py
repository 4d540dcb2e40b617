"""Where the processes of a job are, without processes."""

import contextlib
from collections.abc import Iterable

import pytest

from nml_jax import processes
from nml_jax.processes import progress
from nml_jax.processes.progress import Progress
from nml_jax.stages import evaluation


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


def enter(monkeypatch, job, stack, *places):
    monkeypatch.setattr(processes, "_job", job)
    for place in places:
        stack.enter_context(processes.at(place))
    job.progress.look()


def test_the_few_are_named_before_the_many(monkeypatch, jobs, capsys):
    first, second, third = jobs
    with contextlib.ExitStack() as stack:
        enter(monkeypatch, third, stack, "tune")
        enter(monkeypatch, second, stack, "tune")
        enter(monkeypatch, first, stack, "zeroshot", "test", "batch 12 of images")
        first.progress.look()
    said = "no step for 0 s: process 0 in zeroshot: test: batch 12 of images; the others in tune\n"
    assert capsys.readouterr().err == said


def test_of_two_neither_is_accused(monkeypatch, jobs, capsys):
    with contextlib.ExitStack() as stack:
        enter(monkeypatch, jobs[1], stack, "the end")
        enter(monkeypatch, jobs[0], stack, "tune", "mlp")
        jobs[0].progress.look()
    assert capsys.readouterr().err == "no step for 0 s: process 0 in tune: mlp; process 1 in the end\n"


def test_all_in_one_place(monkeypatch, jobs, capsys):
    with contextlib.ExitStack() as stack:
        for job in reversed(jobs):
            enter(monkeypatch, job, stack, "report")
        jobs[0].progress.look()
    assert capsys.readouterr().err == "no step for 0 s: all in report\n"


def test_batches_of_several_passes(monkeypatch, jobs):
    """Every pass over a split counts, in whatever order they end, and none leaves its place behind."""
    job = jobs[0]
    monkeypatch.setattr(processes, "_job", job)

    def seen() -> str:
        job.progress.look()
        return job.kept["nml_jax/place/0"]

    with processes.at("extract"):
        one, other = (evaluation._counted(iter([{}, {}]), what) for what in ("images", "texts"))
        next(one)
        next(other)
        assert seen() == "extract: batch 1 of images: batch 1 of texts"
        next(one)
        assert seen() == "extract: batch 2 of images: batch 1 of texts"
        assert list(one) == []
        assert seen() == "extract: batch 1 of texts"
        other.close()  # given up
        assert seen() == "extract"
    assert job.progress.places == []


def test_who_is_nowhere_says_nothing(jobs, capsys):
    for _ in range(3):
        jobs[0].progress.look()
    assert jobs[0].kept == {}
    assert capsys.readouterr().err == ""
