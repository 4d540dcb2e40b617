"""Read timm's config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError
from nml_jax.models.architectures import FIXED, VALUES, Architecture
from nml_jax.models.published.common import Keys, check_filter, find_architecture, list_constants, require, tell_assumed
from nml_jax.models.variants import IMAGENET, MODELS


def read_timm(path: Path, content: Mapping[str, Any]) -> Keys:
    row = find_architecture(path, content["architecture"].partition(".")[0])
    given = content.get("pretrained_cfg", content)  # a file without this block is the block itself
    own = {key: value for key, value in given.items() if value is not None}
    size = own.get("input_size", (3, MODELS[row.name].input.size, MODELS[row.name].input.size))
    require(path, "pretrained_cfg.input_size", size, size[0] == 3 and size[1] == size[2], "three equal channels")
    mode = own.get("crop_mode") or "center"
    modes = {"center": "shortest", "squash": "squash"}
    require(path, "pretrained_cfg.crop_mode", mode, mode in modes, " or ".join(modes))
    tell_assumed(path, own, ("input_size", "crop_pct", "interpolation", "mean", "std"))
    return {
        "model.name": row.name,
        **list_constants(row.name),
        "model.quick_gelu": False,
        **row.keys,
        "data.image_size": size[1],
        **_read_arguments(path, content.get("model_args") or {}, row),
        "augment.test_crop": float(own.get("crop_pct", 0.875)),
        "augment.interpolation": check_filter(path, own.get("interpolation", "bicubic")),
        "augment.resize": modes[mode],
        "model.mean": tuple(own.get("mean", IMAGENET[0])),
        "model.std": tuple(own.get("std", IMAGENET[1])),
    }


def _read_arguments(path: Path, arguments: Mapping[str, Any], row: Architecture) -> Keys:
    """Return the keys of arguments of timm's constructor."""
    keys = {}
    for name, value in arguments.items():
        where = f"model_args.{name}"
        key = row.arguments.get(name)
        if name not in row.arguments and name in FIXED:
            require(path, where, value, value in FIXED[name], " or ".join(map(repr, FIXED[name])))
        elif name not in row.arguments:
            raise UserError(f"{path}: {where}={value!r} is not known here", "give weights without this argument")
        elif key is not None and key != "data.num_classes" and value is not None:
            if isinstance(value, list):
                value = value[0] if key in ("data.image_size", "model.heads") else tuple(value)
            if key in VALUES:
                require(path, where, value, value in VALUES[key], " or ".join(map(repr, VALUES[key])))
                value = VALUES[key][value]
            keys[key] = value
    return keys
