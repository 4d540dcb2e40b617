"""Test the forecast: what is left by the pace of what is done, and where it is printed."""

import sys
import time

import pytest

from nml_jax.processes import forecast


@pytest.fixture
def clock(monkeypatch):
    """Set the clock that the forecast reads."""
    now = [100.0]
    monkeypatch.setattr(forecast.time, "monotonic", lambda: now[0])
    return now


def test_the_pace_of_what_is_done_corrects_what_is_left(clock):
    told = forecast.Forecast({"a": 10.0, "b": 20.0, "c": 70.0})
    assert told.estimate() == 100
    told.start("a")
    clock[0] += 4
    assert told.estimate() == 96  # 4 of the expected 10 seconds are over
    clock[0] += 16
    told.finish("a")
    assert told.spent == {"a": 20.0}
    # It took twice as long: the pace is (20 + 20) / (10 + 20), as the expectation of all counts for a fifth.
    assert told.estimate() == pytest.approx(90 * 4 / 3)


def test_a_part_that_takes_longer_than_expected_is_near_its_end(clock):
    told = forecast.Forecast({"a": 10.0, "b": 20.0})
    told.start("a")
    told.start("inner")  # not expected: it only shows where the job is
    clock[0] += 60
    assert told.estimate() == 20 + 1
    told.finish("inner")
    told.finish("a")
    assert "inner" not in told.spent


def test_steps_tell_how_long_the_rest_of_a_part_takes(clock):
    """The first step has compiled; the median of the others counts, and the pace of all parts follows it."""
    told = forecast.Forecast({"a: mlp": 10.0, "a: nmtune": 10.0}, {"a: mlp": 10})
    told.start("a: mlp")
    for seconds in (9, 2, 2):
        clock[0] += seconds
        told.step()
    # 7 steps of 2 s ahead. 3 of 10 steps took 6 s of an expected 3, and the expectation of all counts for 4 s.
    assert told.estimate() == pytest.approx(7 * 2 + 10 * (6 + 4) / (3 + 4))
    for _ in range(7):
        clock[0] += 2
        told.step()
    assert told.estimate() == pytest.approx(2 + 10 * (20 + 4) / (10 + 4))  # it ought to be over: one more step
    told.finish("a: mlp")
    assert told.estimate() == pytest.approx(10 * (27 + 4) / (10 + 4))


def test_a_kind_that_is_known_needs_no_pace(clock):
    told = forecast.Forecast({"a: mlp": 30.0, "b: mlp": 10.0, "c: mlp": 10.0, "b: lbfgs": 5.0})
    told.start("a: mlp")
    clock[0] += 50
    told.mark()  # settings are chosen: heads follow, as in the other runs
    clock[0] += 3
    told.finish("a: mlp")
    pace = (53 + 11) / (30 + 11)
    assert told.estimate() == pytest.approx(3 + 3 + 5 * pace)
    told.start("b: mlp")
    clock[0] += 4
    told.finish("b: mlp")
    pace = (57 + 11) / (40 + 11)
    assert told.estimate() == pytest.approx(4 + 5 * pace)  # c is expected as b was


def test_lines_in_a_file_come_once_a_minute(clock, capsys):
    told = forecast.Forecast({"seed=0: mlp": 90.0})
    told.start("seed=0: mlp")
    told.what = "lr 0.001, epoch 3 of at most 41"
    for _ in range(70):
        clock[0] += 1
        told.tell()
    assert capsys.readouterr().err == "seed=0: mlp, lr 0.001, epoch 3 of at most 41; about 0:30 left\n"


def test_a_thread_tells_while_a_solver_is_silent(monkeypatch, capsys):
    """A terminal gets one line that changes; what is printed next does not begin in its middle."""
    monkeypatch.setattr(forecast, "LIVE", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with forecast.begin({"seed=0: lbfgs": 50.0}), forecast.part("seed=0: lbfgs"):
        time.sleep(0.3)
        forecast.notice("a finding")
    said = capsys.readouterr().err
    assert said.count("\r\x1b[Kseed=0: lbfgs; about 0:50 left") > 2
    assert "\r\x1b[Ka finding\n" in said
    assert not said.endswith("left")


def test_nothing_is_told_without_parts(monkeypatch, capsys):
    monkeypatch.setattr(forecast, "LIVE", 0.01)
    monkeypatch.setattr(forecast, "EVERY", 0.0)
    with forecast.begin({}), forecast.part("pretrain"):
        forecast.note("step 3")
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
