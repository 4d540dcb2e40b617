"""Values of a config that can only be mistakes, and how they are refused."""

from types import SimpleNamespace

import pytest

from nml_jax import ranges
from nml_jax.errors import UserError


class Section(SimpleNamespace):
    def __getitem__(self, key: str):
        return getattr(self, key)


@pytest.mark.parametrize(
    ("require", "value", "cause"),
    [
        (ranges.require_positive, 0.0, "tune.x must be above 0, got 0.0"),
        (ranges.require_share, 1.5, "tune.x must be in [0, 1], got 1.5"),
        (ranges.require_share, float("nan"), "tune.x must be in [0, 1], got nan"),
        (ranges.require_interval, (0.5, 0.1), "tune.x must be (low, high) with 0 < low <= high, got (0.5, 0.1)"),
        (ranges.require_interval, ("a", 1), "tune.x must be (low, high) with 0 < low <= high, got ('a', 1)"),
        (ranges.require_names, ([1],), "tune.x must be a tuple of at least one name, each once, got ([1],)"),
        (ranges.require_names, ("a", "a"), "tune.x must be a tuple of at least one name, each once, got ('a', 'a')"),
    ],
)
def test_what_is_out_of_range_is_named_with_its_rule(require, value, cause: str):
    with pytest.raises(UserError) as e:
        require("tune", Section(x=value), "x")
    assert e.value.cause == cause
    assert e.value.cure.startswith("set --config.tune.x")


def test_numbers_have_a_least_value():
    ranges.require_at_least(0, "", Section(seed=0, noise_seed=None), "seed", "noise_seed")
    for value, rule in ((-1, "at least 0"), (float("nan"), "at least 0"), (float("inf"), "finite")):
        with pytest.raises(UserError) as e:
            ranges.require_at_least(0, "", Section(seed=value), "seed")
        assert e.value.cause == f"seed must be {rule}, got {value}"
        assert e.value.cure == "set --config.seed to 0 or more"


def test_shares_may_be_one_or_not():
    ranges.require_share("data", Section(x=1.0), "x")
    with pytest.raises(UserError, match=r"data\.x must be in \[0, 1\), got 1\.0"):
        ranges.require_share("data", Section(x=1.0), "x", below_one=True)


@pytest.mark.parametrize("values", [(), (1, 1), (0,), (1.5,), ("1",), ([1],), (float("inf"),)])
def test_grids_are_tuples_of_distinct_numbers(values: tuple):
    with pytest.raises(UserError) as e:
        ranges.require_distinct("positive integers", "tune", Section(ks=values), "ks")
    assert e.value.cause == f"tune.ks must be a tuple of distinct positive integers, got {values!r}"
    ranges.require_distinct("positive integers", "tune", Section(ks=(1, 10)), "ks")
