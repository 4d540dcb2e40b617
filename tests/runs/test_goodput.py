"""Test the account of a run's time over its sessions."""

import json

import pytest

from nml_jax.runs import goodput


@pytest.fixture
def clock(monkeypatch):
    """A clock whose time is set by hand: clock.at(seconds)."""
    now = [0.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    clock = goodput.Clock()
    clock.at = lambda seconds: now.__setitem__(0, seconds)  # type: ignore[attr-defined]
    return clock


def session(first: int, reached: int, /, **seconds: float) -> dict:
    return {"first": first, "step": reached, "skipped": 0, "seconds": dict.fromkeys(goodput.PARTS, 0.0) | seconds}


def write(folder, *sessions: dict) -> None:
    (folder / goodput.FILE).write_text(json.dumps({"sessions": sessions}))


def test_every_moment_belongs_to_one_part(clock):
    clock.at(2.0)
    clock.to("compile")
    clock.at(5.0)
    clock.to("step")
    clock.at(9.0)
    assert clock.to("step", was="data") == 4.0
    clock.at(10.0)
    assert clock.share() == 0.1
    assert clock.seconds == {"start": 2, "compile": 3, "data": 4, "step": 1, "save": 0, "evaluate": 0}


def test_a_session_adds_itself_to_those_before(tmp_path, clock):
    write(tmp_path, session(0, 10, step=5.0))
    record = goodput.Record(tmp_path, clock, 10)
    clock.at(1.0)
    clock.to("step")
    clock.at(4.0)
    record.write(20, skipped=2)
    summary = goodput.read(tmp_path)
    assert summary is not None
    assert (summary.sessions, summary.skipped, summary.wall) == (2, 2, 9.0)
    assert summary.seconds["step"] == 8.0
    assert summary.share == pytest.approx(8 / 9)


def test_between_saves_the_file_is_left_alone_for_a_while(tmp_path, clock):
    record = goodput.Record(tmp_path, clock, 0)
    clock.at(1.0)
    record.write(1, now=False)
    clock.at(1.0 + goodput.INTERVAL / 2)
    record.write(2, now=False)
    assert json.loads((tmp_path / goodput.FILE).read_text())["sessions"][0]["step"] == 1
    clock.at(1.0 + goodput.INTERVAL)
    record.write(3, now=False)
    assert json.loads((tmp_path / goodput.FILE).read_text())["sessions"][0]["step"] == 3


def test_a_full_disk_is_not_tried_again_at_once(tmp_path, clock, monkeypatch):
    writes = []

    def full(path, value) -> None:
        writes.append(value)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(goodput, "write_json", full)
    record = goodput.Record(tmp_path, clock, 0)
    clock.at(100.0)
    with pytest.raises(OSError, match="No space"):
        record.write(1, now=False)
    clock.at(101.0)
    record.write(2, now=False)
    assert len(writes) == 1


def test_what_a_later_session_does_again_is_lost(tmp_path):
    """The first session reached step 10, of which 4 were kept; the second reached 6; the third began at 4 again."""
    write(tmp_path, session(0, 10, step=20.0, start=1.0), session(4, 6, step=3.0), session(4, 12, step=8.0))
    summary = goodput.read(tmp_path)
    assert summary is not None
    assert summary.seconds["lost"] == pytest.approx(20 * 6 / 10 + 3)
    assert summary.seconds["step"] == pytest.approx(8 + 8)
    assert summary.wall == pytest.approx(32)
    assert str(summary) == "goodput 50% of 0:32 (start 3%, lost 47%)"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sessions": [{}]}', '{"sessions": 3}'])
def test_a_damaged_file_counts_as_none(tmp_path, content: str):
    (tmp_path / goodput.FILE).write_text(content)
    assert goodput.read(tmp_path) is None
    assert goodput.read(tmp_path / "nowhere") is None
