"""Describe what a model computes, apart from its weights: the fields of its modules that evaluation depends on."""

import dataclasses
import inspect
from functools import partial
from typing import Any

from nml_jax.models.variants import CLIPS, MODELS, TOWERS

# Fields of modules that only training reads, or only precision.
TRAINING = {"num_classes", "dtype", "dropout", "drop_path", "patch_dropout", "neftune", "remat", "bn_group",
            "bn_momentum", "zero_init_residual"}  # fmt: skip


def describe_tower(config: Any, image_size: int) -> dict[str, Any]:
    """Return the kind ("ResNet", "ViT", ...) and the fields of the image tower that a section `model` describes.

    Values are those that the tower has: the config's or, where it has None, the variant's. Fields that only training
    reads are left out.

    Args:
        config: the section, with a name of `variants.MODELS`.
        image_size: height and width in pixels.
    """
    variant = find_tower(config)
    given = {**{key: config[key] for key in config}, "image_size": image_size}
    if config.name in CLIPS:
        given["hidden"] = None  # is the CLIP's, not the tower's
    fields = _list_defaults(variant) | dict(variant.keywords)
    fields |= {key: value for key, value in given.items() if key in fields and value is not None}
    fields = _resolve(variant.func.__name__, fields)
    return {"kind": variant.func.__name__} | {key: _to_json(fields[key]) for key in sorted(fields.keys() - TRAINING)}


def _resolve(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a network with the values that None stands for, and without those that it does not read."""
    if kind == "ViT" and fields.get("epsilon") is None:
        fields = fields | {"epsilon": 1e-5 if fields["clip"] else 1e-6}
    if kind != "ResNet":
        return fields
    if fields["clip"]:
        usual = max(1, fields["width"] * 2 ** (len(fields["blocks"]) + 1) // 64)
        return {key: value for key, value in fields.items() if key != "stem"} | {"heads": fields["heads"] or usual}
    return {key: value for key, value in fields.items() if key not in ("heads", "image_size")}


def list_fields(config: Any) -> set[str]:
    """Return the names of the fields that a model has: of its image tower or, of a CLIP, of both towers."""
    fields = set(_list_defaults(find_tower(config)))
    return fields | find_clip_values(config).keys() if config.name in CLIPS else fields


def find_tower(config: Any) -> partial[Any]:
    """Return the module of a model's image tower, with the fields that define the variant."""
    if config.name not in CLIPS:
        return MODELS[config.name].make
    return CLIPS[config.name].make.keywords.get("tower") or TOWERS[config.tower].make


def name_tower(config: Any) -> str:
    """Return the key of TOWERS that has the fields of a model's image tower; "" if there is none."""
    tower = find_tower(config)
    same = (name for name, v in TOWERS.items() if (v.make.func, v.make.keywords) == (tower.func, tower.keywords))
    return next(same, "")


def find_clip_values(config: Any) -> dict[str, Any]:
    """Return the values of a CLIP's text tower and joint space: the config's or, where it has None, the variant's."""
    variant, out = CLIPS[config.name].make, {}
    for name, parameter in inspect.signature(variant.func).parameters.items():
        if name not in ("tower", "remat", "dtype"):
            usual = variant.keywords.get(name, None if parameter.default is parameter.empty else parameter.default)
            out[name] = config[name] if name in config and config[name] is not None else usual
    return out


def _list_defaults(variant: partial[Any]) -> dict[str, Any]:
    """Return the fields of a variant's module with their defaults; None for a field that must be given."""
    module: Any = variant.func
    fields = [field for field in dataclasses.fields(module) if field.name not in ("name", "parent")]
    return {field.name: None if field.default is dataclasses.MISSING else field.default for field in fields}


def _to_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
