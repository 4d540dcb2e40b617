"""Test that no minute holds more requests or tokens than the limits, also over restarts."""

from pathlib import Path

import numpy as np

from nml_jax.data.embeddings import limits
from nml_jax.data.embeddings.limits import Window


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now

    time = __call__


def test_a_minute_begins_when_a_request_ends():
    clock = Clock()
    window = Window(2, 0, clock=clock)
    first, second = window.begin(1), window.begin(1)
    assert window.find_delay(1) == np.inf
    clock.now += 10
    window.end(second)
    assert window.find_delay(1) == 60
    clock.now += 5
    window.end(first)
    assert window.find_delay(1) == 55
    clock.now += 55
    assert window.find_delay(1) == 0
    window.begin(1)
    assert window.find_delay(1) == 5


def test_tokens_are_those_that_the_service_counts():
    clock = Clock()
    window = Window(0, 100, clock=clock)
    request = window.begin(90)
    assert window.find_delay(10) == 0
    assert window.find_delay(11) == np.inf
    window.end(request, 40)
    assert window.find_delay(60) == 0
    assert window.find_delay(61) == 60
    assert window.find_delay(500) == 60  # more than the limit goes alone
    clock.now += 60
    assert window.find_delay(500) == 0
    assert Window(0, 0, clock=clock).find_delay(1e9) == 0


def simulate(tmp_path: Path, monkeypatch, kills: bool) -> tuple[np.ndarray, float]:
    """Return when a service saw the requests of a client with 7 requests a minute, and how long they took."""
    clock, rng = Clock(), np.random.default_rng(0)
    monkeypatch.setattr(limits, "time", clock)
    seen, flying = [], []
    window = Window(7, 0, tmp_path / "log", clock=clock)
    start = clock.now
    while len(seen) < 60:
        for request, end in flying:
            if end <= clock.now:
                window.end(request)
        flying = [(request, end) for request, end in flying if end > clock.now]
        if kills and rng.random() < 0.05:
            flying = []
            window.close()
            if rng.random() < 0.5:  # in the middle of a note
                with (tmp_path / "log").open("ab") as log:
                    log.write(b"1234567")
            window = Window(7, 0, tmp_path / "log", clock=clock)
        if len(flying) < 4 and not window.find_delay(1):
            took = rng.uniform(0, 8)
            flying.append((window.begin(1), clock.now + took))
            seen.append(clock.now + rng.uniform(0, 0.01 if kills else took))
        clock.now += rng.uniform(0.01, 2)
    window.close()
    return np.sort(seen), clock.now - start


def test_no_minute_of_the_service_holds_more(tmp_path: Path, monkeypatch):
    for kills in (False, True):
        (tmp_path / str(kills)).mkdir()
        seen, took = simulate(tmp_path / str(kills), monkeypatch, kills)
        assert (seen[7:] - seen[:-7]).min() >= 60
        assert took < 60 * (60 / 7) * 1.4  # nor does it wait for much longer than it must
