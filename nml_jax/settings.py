"""Expand a config into the runs of its sweep, identify runs, and read and write configs as JSON."""

import functools
import importlib.util
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from nml_jax.console import notice
from nml_jax.errors import UserError
from nml_jax.hashes import hash_text
from nml_jax.ranges import require_at_least, require_names, require_share
from nml_jax.stored import fits

# These keys say what to run, where and how fast. They change no number, so they do not identify a run.
NOT_IDENTITY = ("sweep", "condition", "study", "noise_related", "stages", "runtime")
# The name of every run has these keys, swept or not, so that later runs of an experiment fit beside earlier ones. The
# noise is left out for features from files, because it is unknown.
AXES = ("noise", "seed")
# Kinds of noise that bring their own rate. A run's name has the kind in place of the rate, and a sweep over the noise
# leaves them out.
FIXED_RATE = ("matrix", "labels", "matched")
INSTALLED = Path(__file__).resolve().parent / "installed"  # only in a wheel


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested mapping as (dotted key, value)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Return the config as nested dicts of JSON values, with placeholders resolved."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(tree: Mapping[str, Any]) -> ConfigDict:
    """Invert `to_json`. Lists become tuples again."""

    def restore(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: restore(v) for k, v in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    return ConfigDict(restore(tree)).lock()


def find_configs_home() -> Path:
    """Return the folder that contains `configs`: inside the package in a wheel, else beside it."""
    return INSTALLED if INSTALLED.is_dir() else INSTALLED.parent.parent


@functools.cache
def default_config() -> dict[str, Any]:
    """Return the config of configs/common.py as JSON: every key with its default.

    The file is loaded by its path, because a notebook may have another module `configs`.
    """
    spec = importlib.util.spec_from_file_location("nml_jax_defaults", find_configs_home() / "configs" / "common.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return to_json(module.get_config())


def fill_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys that did not exist when a config (as JSON) was written, with their defaults."""

    def fill(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        sections = {
            key: fill(defaults[key], value)
            for key, value in own.items()
            if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping)
        }
        return {**defaults, **own, **sections}

    return fill(default_config(), tree)


def check_stored(tree: Any, where: object) -> dict[str, Any]:
    """Return a stored config (as JSON) with its missing keys, checked against the types of configs/common.py.

    Args:
        where: the file that it is from.

    Raises:
        UserError: a section or value has another type, so the file is damaged.
    """
    cure = "restore it from a copy, or delete it; the command of the run writes it again"
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} is damaged: it holds no config", cure)
    filled = fill_defaults(tree)

    def check_section(defaults: Mapping[str, Any], own: Mapping[str, Any], prefix: str) -> None:
        for key, default in defaults.items():
            value = own[key]
            if isinstance(default, Mapping) and isinstance(value, Mapping):
                check_section(default, value, f"{prefix}{key}.")
            elif not fits(value, _name_type(default)):
                raise UserError(f"{where} is damaged: {prefix}{key} is {str(value)[:40]!r}", cure)

    check_section(default_config(), filled, "")
    return filled


def _name_type(default: Any) -> Any:
    """Return the type that values of a key have whose default, as JSON, is this."""
    if default is None:  # a placeholder
        return None | bool | float | str | list
    return list[Any] if isinstance(default, list) else float if type(default) is float else type(default)


def freeze_sections(*sections: ConfigDict) -> tuple[FrozenConfigDict, ...]:
    """Return hashable copies of sections, as cache keys of compiled functions."""
    return tuple(FrozenConfigDict(section.to_dict()) for section in sections)


def hash_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hash_text(json.dumps(value, sort_keys=True))


def select_keys(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the `keys` of a config (as JSON) that exist in it: whole sections, and keys of sections, such as a.b."""
    out: dict[str, Any] = {}
    for key in keys:
        section, _, name = key.partition(".")
        if not name and section in config:
            out[section] = config[section]
        elif section in config and name in config[section]:
            out.setdefault(section, {})[name] = config[section][name]
    return out


def repetition_seeds(seed: int, count: int) -> range:
    """Return the seeds of `count` repetitions within a run. Runs with different seeds share none of them."""
    return range(seed * count, (seed + 1) * count)


def expand_sweep(config: ConfigDict, pinned: Mapping[str, Any] | None = None) -> dict[str, ConfigDict]:
    """Expand a config into its runs: the product of the values under `sweep`.

    Args:
        config: a whole config. `sweep` has the same keys, each with a tuple of values.
        pinned: dotted keys from the command line. A pinned axis has only that value, which selects runs.

    Noise of a kind that fixes its own rate is not swept, and that is said. Its runs are called noise=labels, say. With
    `sweep.conditions` every named set of keys is multiplied with the axes. Runs are named by these keys, so that equal
    ones are one run, whatever the condition is called.

    Returns:
        name -> resolved and locked config, as in {"noise=0.05,seed=1": ...}. Names always have noise and seed.

    Raises:
        UserError: an axis is not a key, has no values, or has values of the wrong type.
    """
    axes, conditions = _find_axes(config, pinned or {}), list_conditions(config)
    free = "noise" in swept_axes(config) and "noise" not in (pinned or {})
    unswept: dict[str, str] = {}  # name -> kind
    out: dict[str, ConfigDict] = {}
    for (condition, keys), values in itertools.product(conditions.items(), itertools.product(*axes.values())):
        own = dict(zip(axes, values, strict=True)) | keys
        kind = own.get("noise_kind", config.noise_kind)
        fixed = kind in FIXED_RATE and "noise" in own
        own |= {"noise": 0.0} if fixed and (free or condition) else {}
        cell = _resolve(config, own, condition)
        shown = {**own, **({"noise": kind} if fixed else {})}
        if condition and fixed:
            shown.pop("noise_kind", None)  # it stands in place of the rate
        name = _shorten(",".join(f"{key}={_format_value(value)}" for key, value in shown.items()).replace("/", "_"))
        if name in unswept or (condition and name in out and out[name] == cell):
            continue
        unswept |= {name: kind} if fixed and (free or condition) else {}
        if name in out:
            raise UserError(f"sweep: two runs would be called {name}", "give each axis values that print differently")
        out[name] = cell
    for kind in dict.fromkeys(unswept.values()) if free else ():
        notice(f"noise_kind={kind} fixes its own rate: the axis sweep.noise={config.sweep.noise} is left out")
    return out


def _find_axes(config: ConfigDict, pinned: Mapping[str, Any]) -> dict[str, tuple]:
    """Return dotted key -> values, for the keys that name every run and those that the sweep varies."""
    known = dict(flatten(config.to_dict()))
    axes: dict[str, tuple] = {key: (known[key],) for key in AXES if key != "noise" or not config.features.train}
    for key, values in swept_axes(config).items():
        if key not in known or key.split(".")[0] in NOT_IDENTITY:
            raise UserError(f"sweep.{key}: {key} is not a key that a run can vary", "use a key of configs/common.py")
        if not isinstance(values, tuple) or not values or len(set(values)) < len(values):
            raise UserError(
                f"sweep.{key} must be a tuple of distinct values, got {values!r}", f"write sweep.{key}=(a, b, ...)"
            )
        axes[key] = (known[key],) if key in pinned else values
    return axes


def _resolve(config: ConfigDict, own: Mapping[str, Any], condition: str) -> ConfigDict:
    """Return the locked config of one run, which has its own values of some keys."""
    cell = config.copy_and_resolve_references()
    try:
        cell.update_from_flattened_dict(dict(own))
    except (TypeError, ValueError) as e:
        raise UserError(f"sweep: {str(e).splitlines()[0]}", "give each axis values of its key's type") from e
    cell.condition = condition
    if cell.noise_seed is None:
        cell.noise_seed = cell.seed
    check(cell)
    return cell.lock()


def list_conditions(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Return the named sets of keys in `sweep.conditions`: name -> {dotted key: value}; one without a name if none.

    Raises:
        UserError: they are not pairs of a name and pairs of a key and a value, a key is none of a run or is swept, or
            two have one name.
    """
    known, out = dict(flatten(config.to_dict())), {}
    cure = 'write sweep.conditions=(("name", (("key", value), ...)), ...)'
    for entry in _flatten_sweep(config).get("conditions", ()):
        try:
            name, pairs = entry
            keys = {str(key): value for key, value in pairs}
        except (TypeError, ValueError) as e:
            raise UserError(f"sweep.conditions has {entry!r}", cure) from e
        for key in keys:
            if key not in known or key.split(".")[0] in NOT_IDENTITY or key in swept_axes(config):
                raise UserError(f"sweep.conditions: {name} sets {key}, which is swept or no key of a run", cure)
        if not name or not isinstance(name, str) or name in out:
            raise UserError(f"sweep.conditions: two are called {name!r}, or one has no name", cure)
        out[name] = keys
    return out or {"": {}}


LONGEST = 200  # bytes of a run's name; file systems take 255


def _shorten(name: str) -> str:
    """Return a name that a folder can have: its begin and a hash of it if it is too long."""
    raw = name.encode()
    return name if len(raw) <= LONGEST else f"{raw[: LONGEST - 13].decode('utf-8', 'ignore')},{hash_text(name)[:12]}"


def _format_value(value: Any) -> str:
    """Format a value for a name: 0.05 instead of 5e-02, 0 instead of 0.0, without losing digits; of a file its stem."""
    if isinstance(value, str) and "/" in value and Path(value).suffix:
        return Path(value).stem
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def swept_axes(config: ConfigDict) -> dict[str, Any]:
    """Return dotted key -> values of the axes in `sweep`. An empty tuple does not count as an axis."""
    return {key: values for key, values in _flatten_sweep(config).items() if key != "conditions"}


def _flatten_sweep(config: ConfigDict) -> dict[str, Any]:
    return {key: values for key, values in flatten(config.sweep.to_dict()) if values != ()}


def check(config: ConfigDict) -> None:
    """Check keys outside the sections, and keys of several sections together.

    The module that reads a section checks its own keys (assembly/sections.py).

    Raises:
        UserError: a value is out of range, or values do not fit each other.
    """
    for key, value in flatten(config.to_dict()):
        if any(isinstance(number, float) and not math.isfinite(number) for number in _list_leaves(value)):
            raise UserError(f"{key} must be finite, got {value}", f"set --config.{key} to finite numbers")
    require_share("", config, "noise")
    if config.noise_kind in FIXED_RATE and config.noise:
        raise UserError(
            f"noise_kind={config.noise_kind} fixes its own rate, but noise={config.noise}", "leave noise at 0"
        )
    require_at_least(0, "", config, "seed", "noise_seed")
    require_names("", config, "stages")
    if config.extract.weights not in ("raw", "ema") or (config.extract.weights == "ema" and not config.train.ema):
        raise UserError(
            f"extract.weights={config.extract.weights!r} with train.ema={config.train.ema}",
            "use 'raw', or 'ema' together with train.ema > 0",
        )


def _list_leaves(value: Any) -> Iterator[Any]:
    """Yield the values in nested tuples. A value that is not a tuple is its own leaf."""
    if isinstance(value, tuple):
        for item in value:
            yield from _list_leaves(item)
    else:
        yield value


def shared_identity(config: ConfigDict, axes: Iterable[str]) -> dict[str, Any]:
    """Return what all runs of an experiment share: every key but the axes and `NOT_IDENTITY`.

    `noise_seed` is left out if it follows the axis `seed`.
    """
    swept = {*axes, "noise_seed"} if "seed" in axes and config.noise_seed is None else {*axes}
    flat = flatten({k: v for k, v in to_json(config).items() if k not in NOT_IDENTITY})
    return {key: value for key, value in flat if key not in swept}


def list_axes(config: ConfigDict) -> tuple[str, ...]:
    """List the dotted keys in which the runs of an experiment differ."""
    named = (key for keys in list_conditions(config).values() for key in keys)
    return tuple(dict.fromkeys((*AXES, *swept_axes(config), *named)))
