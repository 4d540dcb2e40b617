"""The window of steps: means, signals, ids."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax import runtime
from nml_jax.errors import NonFinite
from nml_jax.training.window import Window, hash_ids


def values(loss=(1.0, 1.0), *, asked=0, streak=0, **more):
    pairs = {"loss": loss, "skipped": (int(streak > 0), 1), "asked": (asked, 1), "streak": (streak, 1)} | more
    return {name: (jnp.asarray(total), jnp.asarray(count)) for name, (total, count) in pairs.items()}


def rows(*ids: int, quarantined=None):
    return np.array(ids, np.int32), np.full(len(ids), -1, np.int32) if quarantined is None else quarantined


@pytest.fixture
def window() -> Window:
    return Window(runtime.make_mesh(), max_skipped=3)


def test_means_are_sums_over_sums_of_counts(window):
    window.add(1, values((3.0, 2.0), never=(0.0, 0.0)), *rows(5, 6))
    window.add(2, values((1.0, 6.0), never=(0.0, 0.0)), *rows(7, 8))
    seen = window.close()
    assert seen.means == {"train/loss": 0.5, "train/skipped": 0.0}
    assert {step: ids.tolist() for step, ids in seen.ids.items()} == {1: [5, 6], 2: [7, 8]}
    window.add(3, values((4.0, 1.0)), *rows(1, 2))
    assert window.close().means["train/loss"] == 4.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_metric_that_is_not_finite_is_named_with_step_and_ids(window, bad: float):
    for step, loss in ((7, 1.0), (8, bad), (9, bad)):
        window.add(step, values((loss, 1.0)), *rows(step, 10 * step))
    with pytest.raises(NonFinite, match=r"loss is (nan|inf) at step 8; .*8, 80"):
        window.close()


def test_a_signal_is_read_so_many_steps_later(window):
    for step in range(1, 6):
        window.add(step, values(asked=3 if step == 2 else 0), *rows(step))
        assert window.check_stop(lag=2) == (step == 4)
    assert not window.check_stop(lag=0)


def test_the_streak_that_is_too_long_names_its_last_batch(window):
    for step, streak in ((1, 1), (2, 2), (3, 0), (4, 1), (5, 2)):
        window.add(step, values(streak=streak), *rows(step))
    assert not window.check_stop(lag=0)
    window.add(6, values(streak=3), *rows(60, 61))
    assert not window.check_stop(lag=1)
    with pytest.raises(NonFinite, match=r"3 steps in a row .*step 6; ids of its batch: 60, 61"):
        window.check_stop(lag=0)


def test_skipped_steps_and_undecodable_records_are_listed(window):
    replaced = np.array([-1, 9], np.int32)
    window.add(1, values(quarantined=(0, 2)), *rows(1, 2, quarantined=np.array([-1, -1], np.int32)))
    window.add(2, values(quarantined=(1, 2), streak=1), *rows(3, 4, quarantined=replaced))
    seen = window.close()
    assert (seen.skipped, seen.undecodable) == ([2], [9])


def test_the_hash_depends_on_the_order_of_the_ids():
    assert hash_ids(np.array([1, 2])) == hashlib.sha256(b"\1\0\0\0\2\0\0\0").hexdigest()[:16]
    assert hash_ids(np.array([1, 2])) != hash_ids(np.array([2, 1]))
