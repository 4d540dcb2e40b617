"""What the readers of all forms share: checks, the look-up of architectures, and names of rows."""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nml_jax.console import notice_once
from nml_jax.errors import UserError
from nml_jax.models.architectures import BASES, TIMM, Architecture
from nml_jax.models.describe import find_tower
from nml_jax.models.variants import CLIPS, TOWERS

Keys = dict[str, Any]


def find_architecture(path: Path, name: str) -> Architecture:
    if name not in TIMM:
        near = difflib.get_close_matches(name, TIMM, 3, 0.5)
        raise UserError(
            f"{path} names the architecture {name!r}, which is not known here",
            f"the nearest are {', '.join(near)}" if near else "python -m nml_jax.models lists what there is",
        )
    return TIMM[name]


def list_constants(name: str, tower: str = "") -> Keys:
    """List the constants of a variant that its shapes do not show, as keys of our config.

    Args:
        name: a key of MODELS. If it has two towers, the image tower counts.
        tower: a key of TOWERS, for the row of CLIPS that has none.
    """
    make = find_tower(ConfigDict({"name": name, "tower": tower}))
    fields = {k: p.default for k, p in inspect.signature(make.func).parameters.items()} | make.keywords
    return {f"model.{key}": fields[key] for key in ("epsilon", "padding") if fields.get(key) is not None}


def name_clip(keys: Keys) -> Keys:
    """Return the keys with the name of the row of CLIPS whose sizes they are, if there is one."""
    for name, variant in CLIPS.items():
        tower = variant.make.keywords.get("tower")
        if tower is None:
            continue
        if keys["model.name"] == BASES["timm"]:
            fits = TOWERS[keys["model.tower"]].make.func is tower.func
            own = TOWERS[keys["model.tower"]].make.keywords
        else:
            fits = CLIPS[keys["model.name"]].make.keywords["tower"].func is tower.func
            own = {key.partition(".")[2]: value for key, value in keys.items()}
        fits = fits and all(own.get(key, value) == value for key, value in tower.keywords.items())
        mine = {"hidden": 0} | {key: value for key, value in variant.make.keywords.items() if key != "tower"}
        fits = fits and all(keys.get(f"model.{key}", value) == value for key, value in mine.items())
        if fits and variant.input.size == keys["data.image_size"]:
            return {key: value for key, value in keys.items() if key != "model.tower"} | {"model.name": name}
    return keys


def require(path: Path, where: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise UserError(f"{path}: {where} is {value!r}", f"here it can be {allowed}")


def require_known(path: Path, block: str, values: Mapping[str, Any], known: set[str]) -> None:
    """Raise a UserError for a setting that we do not know and that is not off."""
    for key, value in values.items():
        if key not in known and value not in (None, False, 0, ""):
            raise UserError(f"{path}: {block}.{key}={value!r} is not known here", "give a model without this setting")


def check_filter(path: Path, name: str) -> str:
    require(path, "interpolation", name, name in ("bilinear", "bicubic"), "bilinear or bicubic")
    return name


def tell_assumed(path: Path, own: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if own.get(key) is None]
    if missing:
        notice_once(f"{path} does not say {', '.join(missing)}; assumed as its library does")
