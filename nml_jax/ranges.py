"""Check values of a config. The module that reads a section calls these functions for its keys.

Each function takes a section's name ("" for the keys at the top), the section, and some of its keys. It raises
UserError for the first key that is out of range.
"""

import math
from typing import Any

from nml_jax.errors import UserError

KINDS = {
    "positive integers": lambda value: isinstance(value, int) and value > 0,
    "positive numbers": lambda value: isinstance(value, (int, float)) and 0 < value < math.inf,
    "numbers of 0 or more": lambda value: isinstance(value, (int, float)) and 0 <= value < math.inf,
}


def require_at_least(low: float, section: str, config: Any, *keys: str) -> None:
    """Require finite numbers of at least `low`. None is allowed."""
    for key in keys:
        if config[key] is not None and not low <= config[key] < math.inf:
            rule = "finite" if config[key] == math.inf else f"at least {low}"
            raise _make_error(section, config, key, rule, f"to {low} or more")


def require_positive(section: str, config: Any, *keys: str) -> None:
    """Require numbers above 0."""
    for key in keys:
        if not config[key] > 0:
            raise _make_error(section, config, key, "above 0", "above 0")


def require_share(section: str, config: Any, *keys: str, below_one: bool = False) -> None:
    """Require numbers in [0, 1], or in [0, 1) with `below_one`."""
    for key in keys:
        if not (0 <= config[key] < 1 or (config[key] == 1 and not below_one)):
            interval = "in [0, 1)" if below_one else "in [0, 1]"
            raise _make_error(section, config, key, interval, interval)


def require_interval(section: str, config: Any, *keys: str) -> None:
    """Require pairs (low, high) with 0 < low <= high."""
    for key in keys:
        numbers = [value for value in config[key] if isinstance(value, (int, float))]
        if len(config[key]) != 2 or len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] < math.inf:
            raise _make_error(section, config, key, "(low, high) with 0 < low <= high", "='(low, high)'")


def require_distinct(kind: str, section: str, config: Any, *keys: str) -> None:
    """Require tuples of at least one value, each once and of KINDS[kind]."""
    for key in keys:
        values = config[key]
        if not values or not all(map(KINDS[kind], values)) or len(set(values)) < len(values):
            raise _make_error(section, config, key, f"a tuple of distinct {kind}", "='(1, 10)'")


def require_shares(section: str, config: Any, *keys: str, zero: bool = False) -> None:
    """Require tuples of shares up to 1, above 0 or with `zero` from 0; distinct as file names write it."""
    words = "from 0 to 1" if zero else "above 0 and up to 1"
    for key in keys:
        values = config[key]
        good = all(isinstance(x, (int, float)) and 0 <= x <= 1 and (x or zero) for x in values)
        if not good or not 0 < len(values) == len({f"{x:g}" for x in values}):
            raise _make_error(section, config, key, f"a tuple of distinct shares {words}", "='(1.0,)'")


def require_names(section: str, config: Any, *keys: str) -> None:
    """Require tuples of at least one name, each once."""
    for key in keys:
        texts = {name for name in config[key] if isinstance(name, str)}
        if not texts or len(texts) < len(config[key]):
            raise _make_error(section, config, key, "a tuple of at least one name, each once", "='(\"name\",)'")


def _make_error(section: str, config: Any, key: str, rule: str, cure: str) -> UserError:
    """Return the error for a key that breaks a rule. `cure` completes "set --config.KEY"."""
    name = f"{section}.{key}" if section else key
    value = config[key]
    cure = f"set --config.{name}{'' if cure.startswith('=') else ' '}{cure}"
    return UserError(f"{name} must be {rule}, got {value!r}", cure)
