"""One config -> the runs of its sweep; what identifies a run; configs as JSON."""

import functools
import hashlib
import importlib.util
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from nml_jax.errors import UserError
from nml_jax.ranges import require_at_least, require_names, require_share

# What to run, where and how fast: these change no number, so they do not identify a run.
NOT_IDENTITY = ("sweep", "stages", "runtime")
# Every run is named by these two, swept or not, so that runs of one experiment find their place beside each other. Of
# features from files nobody knows the noise.
AXES = ("noise", "seed")
INSTALLED = Path(__file__).resolve().parent / "installed"  # only in a wheel


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping as (dotted key, value)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dicts of JSON values, placeholders resolved."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(tree: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `to_json`: lists become tuples again."""

    def restored(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: restored(v) for k, v in value.items()}
        return tuple(map(restored, value)) if isinstance(value, list) else value

    return ConfigDict(restored(tree)).lock()


def configs_home() -> Path:
    """Return the folder of `configs`, as this package was installed: in itself from a wheel, else beside it."""
    return INSTALLED if INSTALLED.is_dir() else INSTALLED.parent.parent


@functools.cache
def default_config() -> dict[str, Any]:
    """Return the config of configs/common.py as JSON: every key with its default.

    The file is loaded by its path, as a notebook may have another `configs` on its own.
    """
    spec = importlib.util.spec_from_file_location("nml_jax_defaults", configs_home() / "configs" / "common.py")
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


def freeze_sections(*sections: ConfigDict) -> tuple[FrozenConfigDict, ...]:
    """Hashable copies, to key what is compiled by what it was compiled for."""
    return tuple(FrozenConfigDict(section.to_dict()) for section in sections)


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def select_keys(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Those top-level keys of a config (as JSON) that a stage reads."""
    return {key: config[key] for key in keys if key in config}


def repetition_seeds(seed: int, count: int) -> range:
    """Seeds of several repetitions within a run: those of one run are none of another run of the sweep."""
    return range(seed * count, (seed + 1) * count)


def expand_sweep(config: ConfigDict, pinned: Mapping[str, Any] | None = None) -> dict[str, ConfigDict]:
    """The runs of a config: the product of the values under `sweep`, each a resolved and locked config by its name.

    Args:
        config: a whole config; `sweep` mirrors its keys with a tuple of values each.
        pinned: dotted keys given on the command line. A pinned axis keeps that one value: it selects cells.

    Returns:
        name -> config, as in {"noise=0.05,seed=1": ...}; noise and seed are always part of the name.

    Raises:
        UserError: an axis that is no key, has no values, or values of the wrong type.
    """
    known = dict(flatten(config.to_dict()))
    axes: dict[str, tuple] = {key: (known[key],) for key in AXES if key != "noise" or not config.features.train}
    for key, values in swept_axes(config).items():
        if key not in known or key.split(".")[0] in NOT_IDENTITY:
            raise UserError(f"sweep.{key}: {key} is no key that a run can vary", "use a key of configs/common.py")
        if not isinstance(values, tuple) or not values or len(set(values)) < len(values):
            raise UserError(f"sweep.{key}={values!r} is no tuple of different values", f"write sweep.{key}=(a, b, ...)")
        axes[key] = (known[key],) if key in (pinned or {}) else values
    out = {}
    for values in itertools.product(*axes.values()):
        cell = config.copy_and_resolve_references()
        try:
            cell.update_from_flattened_dict(dict(zip(axes, values, strict=True)))
        except (TypeError, ValueError) as e:
            raise UserError(f"sweep: {str(e).splitlines()[0]}", "give each axis values of its key's type") from e
        if cell.noise_seed is None:
            cell.noise_seed = cell.seed
        check(cell)
        name = ",".join(f"{key}={_short(value)}" for key, value in zip(axes, values, strict=True)).replace("/", "_")
        if name in out:
            raise UserError(f"sweep: two runs would be called {name}", "give each axis values of different names")
        out[name] = cell.lock()
    return out


def _short(value: Any) -> str:
    """0.05 and not 5e-02, 0 and not 0.0, but every digit that makes a difference."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def swept_axes(config: ConfigDict) -> dict[str, Any]:
    """Dotted key -> values, of the axes of a config. An empty tuple is no axis."""
    return {key: values for key, values in flatten(config.sweep.to_dict()) if values != ()}


def check(config: ConfigDict) -> None:
    """Refuse values that can only be mistakes, of keys that belong to no section or to several.

    A section's own keys are checked by the module that reads it (stages/sections.py).

    Raises:
        UserError: one line of cause, one of cure.
    """
    for key, value in flatten(config.to_dict()):
        if any(isinstance(number, float) and not math.isfinite(number) for number in _leaves(value)):
            raise UserError(f"{key} must be finite, got {value}", f"set --config.{key} to finite numbers")
    require_share("", config, "noise")
    require_at_least(0, "", config, "seed", "noise_seed")
    require_names("", config, "stages")
    if config.extract.weights not in ("raw", "ema") or (config.extract.weights == "ema" and not config.train.ema):
        raise UserError(
            f"extract.weights={config.extract.weights!r} with train.ema={config.train.ema}",
            "use 'raw', or 'ema' together with train.ema > 0",
        )


def _leaves(value: Any) -> Iterator[Any]:
    """What a tuple holds, of tuples within it each; anything else is its own leaf."""
    if isinstance(value, tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def shared_identity(config: ConfigDict, axes: Iterable[str]) -> dict[str, Any]:
    """What all runs of an experiment share: every key but its axes, `noise_seed` (of an axis) and `NOT_IDENTITY`."""
    swept = {*axes, "noise_seed"} if "seed" in axes and config.noise_seed is None else {*axes}
    flat = flatten({k: v for k, v in to_json(config).items() if k not in NOT_IDENTITY})
    return {key: value for key, value in flat if key not in swept}


def axes_of(config: ConfigDict) -> tuple[str, ...]:
    """The dotted keys in which the runs of an experiment differ."""
    return tuple(dict.fromkeys((*AXES, *swept_axes(config))))
