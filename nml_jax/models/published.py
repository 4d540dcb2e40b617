"""Read what the folder of a published model says of itself, as keys of our config.

Four forms are read: `config.json` of timm, `open_clip_config.json`, `config.json` of transformers' CLIPModel, and
`nml_config.json`, which nml_jax.export writes.
"""

import difflib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml_jax import settings
from nml_jax.console import notice_once
from nml_jax.errors import MissingInput, UserError
from nml_jax.models.architectures import FIXED, NATIVE, TIMM, VALUES, Architecture
from nml_jax.models.variants import CLIPS, IMAGENET, MODELS, OPENAI, TOWERS
from nml_jax.models.weights import nml

TIMM_OR_TRANSFORMERS, OPEN_CLIP = "config.json", "open_clip_config.json"
PREPROCESSING = (
    *("data.image_size", "augment.test_crop", "augment.interpolation", "augment.resize"),
    *("model.mean", "model.std", "model.epsilon", "model.padding", "model.quick_gelu"),
)

Keys = dict[str, Any]


def find_config(path: Path) -> Path | None:
    """Return the config of a folder, or the path itself if it is one; None if there is none, or that of a run of ours.

    If both forms are there, as in timm's folders of CLIPs, take open_clip's, which describes both towers, and say so.

    Raises:
        UserError: both are there and disagree.
    """
    if path.name in (TIMM_OR_TRANSFORMERS, OPEN_CLIP, nml.CONFIG) and path.is_file():
        return path
    if (path / nml.CONFIG).is_file():
        return path / nml.CONFIG
    found = [path / name for name in (OPEN_CLIP, TIMM_OR_TRANSFORMERS) if (path / name).is_file()]
    found = [config for config in found if not _is_ours(config)]
    if len(found) == 2:
        _compare(*found)
        notice_once(f"{found[0]} is read, of two towers; for the image tower alone give {found[1]}")
    return found[0] if found else None


def _is_ours(path: Path) -> bool:
    """Return whether a config.json is that of a run of ours."""
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"objective", "model", "optimizer"} <= config.keys()


def _compare(first: Path, second: Path) -> None:
    """Raise a UserError if two configs of one folder say different things of the pixels or the activation."""
    one, two = _parse(first), _parse(second)
    for key in PREPROCESSING:
        if key in one and key in two and None not in (one[key], two[key]) and one[key] != two[key]:
            raise UserError(
                f"{first.parent} holds two configs that disagree: {key} is {one[key]} in {first.name} and "
                f"{two[key]} in {second.name}",
                f"find out which is right, and give {first} or {second} in place of the folder",
            )


def read_keys(path: Path) -> Keys:
    """Return the keys of our config that a published folder, or its config file, sets.

    What the folder does not say is assumed as the libraries do, and a line says so.

    Raises:
        UserError: there is no such folder or config, it cannot be read, or asks for what we do not have.
    """
    if not path.exists():
        raise MissingInput(f"{path} does not exist", "give the folder of a published model")
    config = find_config(path)
    if config is None:
        raise UserError(f"{path} holds no {TIMM_OR_TRANSFORMERS} or {OPEN_CLIP}", "download the whole folder")
    return _parse(config)


def _parse(path: Path) -> Keys:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping")
        if path.name == OPEN_CLIP:
            return _read_open_clip(path, content)
        if path.name == nml.CONFIG:
            return _read_nml(path, content)
        if "architecture" in content:
            return _read_timm(path, content)
        return _read_transformers(path, content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
        raise UserError(f"cannot read {path}: {e!r}", "download it again, or correct it") from e


# ---- timm


def _read_timm(path: Path, content: Mapping[str, Any]) -> Keys:
    row = _find_architecture(path, content["architecture"].partition(".")[0])
    own = content.get("pretrained_cfg", content)  # a file without this block is the block itself
    size = own.get("input_size", (3, MODELS[row.name].input.size, MODELS[row.name].input.size))
    _require(path, "pretrained_cfg.input_size", size, size[0] == 3 and size[1] == size[2], "three equal channels")
    mode = own.get("crop_mode") or "center"
    modes = {"center": "shortest", "squash": "squash"}
    _require(path, "pretrained_cfg.crop_mode", mode, mode in modes, " or ".join(modes))
    _tell_assumed(path, own, ("input_size", "crop_pct", "interpolation", "mean", "std"))
    return {
        "model.name": row.name,
        **_describe_tower(row),
        "model.quick_gelu": False,
        **row.keys,
        "data.image_size": size[1],
        **_read_arguments(path, "model_args", content.get("model_args") or {}, row),
        "augment.test_crop": float(own.get("crop_pct", 0.875)),
        "augment.interpolation": _check_filter(path, own.get("interpolation", "bicubic")),
        "augment.resize": modes[mode],
        "model.mean": tuple(own.get("mean", IMAGENET[0])),
        "model.std": tuple(own.get("std", IMAGENET[1])),
    }


def _find_architecture(path: Path, name: str) -> Architecture:
    if name not in TIMM:
        near = difflib.get_close_matches(name, TIMM, 3, 0.5)
        raise UserError(
            f"{path} names the architecture {name!r}, which is not known here",
            f"the nearest are {', '.join(near)}" if near else "python -m nml_jax.models lists what there is",
        )
    return TIMM[name]


def _describe_tower(row: Architecture) -> Keys:
    """Return the values of a variant that its shapes do not show, so that they stand in the config."""
    make = TOWERS[row.name].make
    fields = {k: p.default for k, p in inspect.signature(make.func).parameters.items()} | make.keywords
    return {f"model.{key}": fields[key] for key in ("epsilon", "padding") if fields.get(key) is not None}


def _read_arguments(path: Path, block: str, arguments: Mapping[str, Any], row: Architecture) -> Keys:
    """Return the keys of arguments of timm's constructor."""
    keys = {}
    for name, value in arguments.items():
        where = f"{block}.{name}"
        key = row.arguments.get(name)
        if name not in row.arguments and name in FIXED:
            _require(path, where, value, value in FIXED[name], " or ".join(map(repr, FIXED[name])))
        elif name not in row.arguments:
            raise UserError(f"{path}: {where}={value!r} is not known here", "give weights without this argument")
        elif key is not None and key != "data.num_classes" and value is not None:
            if isinstance(value, list):
                value = value[0] if key in ("data.image_size", "model.heads") else tuple(value)
            if key in VALUES:
                _require(path, where, value, value in VALUES[key], " or ".join(map(repr, VALUES[key])))
                value = VALUES[key][value]
            keys[key] = value
    return keys


# ---- our own


def _read_nml(path: Path, config: Mapping[str, Any]) -> Keys:
    _require(path, "format", config["format"], config["format"] == nml.FORMAT, nml.FORMAT)
    flat = {**config["keys"]}
    unknown = [key for key, value in flat.items() if key not in dict(settings.flatten(settings.default_config()))
               and value is not None]  # fmt: skip
    if unknown:
        raise UserError(f"{path}: {unknown[0]} is not known here", "read it with the version that wrote it, or a newer")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in flat.items()}


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes of a published folder's classifier; () if it does not say them.

    Raises:
        UserError: its config cannot be read.
    """
    config = find_config(path)
    if config is None:
        return ()
    try:
        whole = json.loads(config.read_bytes())
        of_weights = whole.get("pretrained_cfg", {}).get("label_names")
        names = next(filter(None, (whole.get("class_names"), whole.get("label_names"), of_weights)), [])
        names = list(names.values()) if isinstance(names, dict) else names
        if not all(isinstance(name, str) for name in names):
            raise ValueError("label_names are no texts")
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise UserError(f"cannot read {config}: {e}", "download it again, or correct it") from e
    return tuple(names)


# ---- open_clip


def _read_open_clip(path: Path, content: Mapping[str, Any]) -> Keys:
    if "model_cfg" not in content:
        raise UserError(
            f"{path} has no block model_cfg", f"write {{'model_cfg': ..., 'preprocess_cfg': ...}} into {path.name}"
        )
    model, pixels = content["model_cfg"], content.get("preprocess_cfg") or {}
    vision, text = model["vision_cfg"], model["text_cfg"]
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias", "init_logit_scale"}
    _require_known(path, "model_cfg", model, known)
    text_keys = {
        "context_length": "text_context",
        "vocab_size": "text_vocab",
        "width": "text_width",
        "layers": "text_depth",
        "heads": "text_heads",
    }
    _require_known(path, "text_cfg", text, {*text_keys, "hf_tokenizer_name", "tokenizer_kwargs"})
    defaults = {"context_length": 77, "vocab_size": 49408, "width": 512, "layers": 12, "heads": 8}
    mode = pixels.get("resize_mode") or "shortest"
    _require(path, "preprocess_cfg.resize_mode", mode, mode in ("shortest", "squash"), "shortest or squash")
    _tell_assumed(path, pixels, ("mean", "std", "interpolation"))
    keys = {
        **_read_vision(path, vision, model["embed_dim"]),
        "model.embed_dim": model["embed_dim"],
        **{f"model.{ours}": text.get(theirs, defaults[theirs]) for theirs, ours in text_keys.items()},
        "model.quick_gelu": bool(model.get("quick_gelu", False)),
        "model.logit_bias": model.get("init_logit_bias"),
        "augment.test_crop": 1.0,
        "augment.interpolation": _check_filter(path, pixels.get("interpolation") or "bicubic"),
        "augment.resize": mode,
        "model.mean": tuple(pixels.get("mean") or OPENAI[0]),
        "model.std": tuple(pixels.get("std") or OPENAI[1]),
    }
    return _name_clip(keys)


def _read_vision(path: Path, vision: Mapping[str, Any], embed_dim: int) -> Keys:
    """Return the keys of an image tower: open_clip's own ViT or ResNet, or one of timm's."""
    size = vision.get("image_size", 224)
    size = size[0] if isinstance(size, list) else size
    if "timm_model_name" in vision:
        known = {"image_size"} | {f"timm_{x}" for x in ("model_name", "model_pretrained", "drop", "drop_path")}
        _require_known(path, "vision_cfg", vision, known | {"timm_pool", "timm_proj", "timm_proj_bias"})
        pool, proj = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
        _require(path, "vision_cfg.timm_pool", pool, pool in ("", "avg"), "'' or 'avg'")
        _require(path, "vision_cfg.timm_proj", proj, proj in ("linear", "mlp"), "linear or mlp")
        bias = vision.get("timm_proj_bias", False)
        _require(path, "vision_cfg.timm_proj_bias", bias, not bias, "false")
        row = _find_architecture(path, vision["timm_model_name"])
        hidden = {"model.hidden": 2 * embed_dim if proj == "mlp" else 0}
        keys = {"model.name": "clip", "model.tower": row.name, **_describe_tower(row), **row.keys, **hidden}
        return keys | {"data.image_size": size}
    known = {"image_size", "layers", "width", "head_width", "patch_size", "pool_type", "patch_dropout", "output_tokens"}
    _require_known(path, "vision_cfg", vision, known | {"mlp_ratio"})
    layers, width, head = vision.get("layers", 12), vision.get("width", 768), vision.get("head_width", 64)
    if isinstance(layers, list):
        keys = {"model.name": "clip_rn50", "model.blocks": tuple(layers), "model.width": width}
        return keys | {"model.heads": width * 32 // head, "model.epsilon": 1e-5, "data.image_size": size}
    ratio, pool = vision.get("mlp_ratio", 4), vision.get("pool_type", "tok")
    _require(path, "vision_cfg.mlp_ratio", ratio, ratio == 4, "4")
    _require(path, "vision_cfg.pool_type", pool, pool in ("tok", "avg"), "tok or avg")
    return {
        "model.name": "clip_vitb16",
        "model.dim": width,
        "model.depth": layers,
        "model.heads": width // head,
        "model.patch": vision.get("patch_size", 16),
        "model.pool": {"tok": "cls", "avg": "gap"}[pool],
        "model.epsilon": 1e-5,
        "data.image_size": size,
    }


def _name_clip(keys: Keys) -> Keys:
    """Return the keys with the name of the row of CLIPS whose sizes they are, if there is one."""
    for name, variant in CLIPS.items():
        tower = variant.make.keywords.get("tower")
        if tower is None:
            continue
        if keys["model.name"] == "clip":
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


# ---- transformers


def _read_transformers(path: Path, content: Mapping[str, Any]) -> Keys:
    kind = content.get("model_type", "of no known kind")
    if kind != "clip":
        cure = (
            f"take timm's folder of the same weights, such as {NATIVE[kind]}"
            if kind in NATIVE
            else "take timm's folder"
        )
        raise UserError(f"{path} is transformers' own form of a model ({kind}), which is not read", cure)
    vision, text = content.get("vision_config") or {}, content.get("text_config") or {}
    acts = {part.get("hidden_act", "quick_gelu") for part in (vision, text)}
    _require(
        path, "hidden_act", acts, acts in ({"gelu"}, {"quick_gelu"}), "gelu or quick_gelu, the same in both towers"
    )
    for block, part, width in (("vision_config", vision, 768), ("text_config", text, 512)):
        inner, outer = part.get("intermediate_size", 4 * width), part.get("hidden_size", width)
        _require(path, f"{block}.intermediate_size", inner, inner == 4 * outer, f"{4 * outer}, 4 times the width")
    epsilons = {part.get("layer_norm_eps", 1e-5) for part in (vision, text)}
    _require(path, "layer_norm_eps", epsilons, epsilons == {1e-5}, "1e-5")
    size = vision.get("image_size", 224)
    return _name_clip({
        "model.name": "clip_vitb16",
        "model.dim": vision.get("hidden_size", 768),
        "model.depth": vision.get("num_hidden_layers", 12),
        "model.heads": vision.get("num_attention_heads", 12),
        "model.patch": vision.get("patch_size", 32),
        "model.pool": "cls",
        "model.epsilon": 1e-5,
        "model.embed_dim": content.get("projection_dim", 512),
        "model.text_context": text.get("max_position_embeddings", 77),
        "model.text_vocab": text.get("vocab_size", 49408),
        "model.text_width": text.get("hidden_size", 512),
        "model.text_depth": text.get("num_hidden_layers", 12),
        "model.text_heads": text.get("num_attention_heads", 8),
        "model.quick_gelu": acts == {"quick_gelu"},
        "data.image_size": size,
        **_read_processor(path.parent / "preprocessor_config.json", size),
    })  # fmt: skip


def _read_processor(path: Path, size: int) -> Keys:
    """Return the preprocessing of transformers' `CLIPImageProcessor`; what it lacks is OpenAI's."""
    own = json.loads(path.read_bytes()) if path.is_file() else {}
    if not own:
        notice_once(f"{path} is not there; assumed: OpenAI's mean and standard deviation, bicubic, the shortest side")
    filters = {2: "bilinear", 3: "bicubic"}
    _require(path, "resample", own.get("resample", 3), own.get("resample", 3) in filters, "2 or 3")
    short = own.get("size", size)
    short = short.get("shortest_edge", size) if isinstance(short, dict) else short
    return {
        "augment.test_crop": size / short,
        "augment.interpolation": filters[own.get("resample", 3)],
        "augment.resize": "shortest",
        "model.mean": tuple(own.get("image_mean", OPENAI[0])),
        "model.std": tuple(own.get("image_std", OPENAI[1])),
    }


# ---- checks


def _require(path: Path, where: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise UserError(f"{path}: {where} is {value!r}", f"here it can be {allowed}")


def _require_known(path: Path, block: str, values: Mapping[str, Any], known: set[str]) -> None:
    """Raise a UserError for a setting that we do not know and that is not off."""
    for key, value in values.items():
        if key not in known and value not in (None, False, 0, ""):
            raise UserError(f"{path}: {block}.{key}={value!r} is not known here", "give a model without this setting")


def _check_filter(path: Path, name: str) -> str:
    _require(path, "interpolation", name, name in ("bilinear", "bicubic"), "bilinear or bicubic")
    return name


def _tell_assumed(path: Path, own: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if own.get(key) is None]
    if missing:
        notice_once(f"{path} does not say {', '.join(missing)}; assumed as its library does")
