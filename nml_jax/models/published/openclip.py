"""Read open_clip_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError
from nml_jax.models.architectures import BASES
from nml_jax.models.published.common import (
    Keys,
    check_filter,
    find_architecture,
    list_constants,
    name_clip,
    require,
    require_known,
    tell_assumed,
)
from nml_jax.models.variants import OPENAI


def read_open_clip(path: Path, content: Mapping[str, Any]) -> Keys:
    if "model_cfg" not in content:
        raise UserError(
            f"{path} has no block model_cfg", f"write {{'model_cfg': ..., 'preprocess_cfg': ...}} into {path.name}"
        )
    model, pixels = content["model_cfg"], content.get("preprocess_cfg") or {}
    vision, text = model["vision_cfg"], model["text_cfg"]
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias", "init_logit_scale"}
    require_known(path, "model_cfg", model, known)
    text_keys = {
        "context_length": "text_context",
        "vocab_size": "text_vocab",
        "width": "text_width",
        "layers": "text_depth",
        "heads": "text_heads",
    }
    require_known(path, "text_cfg", text, {*text_keys, "hf_tokenizer_name", "tokenizer_kwargs"})
    defaults = {"context_length": 77, "vocab_size": 49408, "width": 512, "layers": 12, "heads": 8}
    mode = pixels.get("resize_mode") or "shortest"
    require(path, "preprocess_cfg.resize_mode", mode, mode in ("shortest", "squash"), "shortest or squash")
    tell_assumed(path, pixels, ("mean", "std", "interpolation"))
    keys = {
        **_read_vision(path, vision, model["embed_dim"]),
        "model.embed_dim": model["embed_dim"],
        **{f"model.{ours}": text.get(theirs, defaults[theirs]) for theirs, ours in text_keys.items()},
        "model.quick_gelu": bool(model.get("quick_gelu", False)),
        "model.logit_bias": model.get("init_logit_bias"),
        "augment.test_crop": 1.0,
        "augment.interpolation": check_filter(path, pixels.get("interpolation") or "bicubic"),
        "augment.resize": mode,
        "model.mean": tuple(pixels.get("mean") or OPENAI[0]),
        "model.std": tuple(pixels.get("std") or OPENAI[1]),
    }
    return name_clip(keys)


def _read_vision(path: Path, vision: Mapping[str, Any], embed_dim: int) -> Keys:
    """Return the keys of an image tower: open_clip's own ViT or ResNet, or one of timm's."""
    size = vision.get("image_size", 224)
    size = size[0] if isinstance(size, list) else size
    if "timm_model_name" in vision:
        known = {"image_size"} | {f"timm_{x}" for x in ("model_name", "model_pretrained", "drop", "drop_path")}
        require_known(path, "vision_cfg", vision, known | {"timm_pool", "timm_proj", "timm_proj_bias"})
        pool, proj = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
        require(path, "vision_cfg.timm_pool", pool, pool in ("", "avg"), "'' or 'avg'")
        require(path, "vision_cfg.timm_proj", proj, proj in ("linear", "mlp"), "linear or mlp")
        bias = vision.get("timm_proj_bias", False)
        require(path, "vision_cfg.timm_proj_bias", bias, not bias, "false")
        row = find_architecture(path, vision["timm_model_name"])
        hidden = {"model.hidden": 2 * embed_dim if proj == "mlp" else 0}
        keys = {"model.name": BASES["timm"], "model.tower": row.name, **list_constants(row.name), **row.keys, **hidden}
        return keys | {"data.image_size": size}
    known = {"image_size", "layers", "width", "head_width", "patch_size", "pool_type", "patch_dropout", "output_tokens"}
    require_known(path, "vision_cfg", vision, known | {"mlp_ratio"})
    layers, width, head = vision.get("layers", 12), vision.get("width", 768), vision.get("head_width", 64)
    if isinstance(layers, list):
        keys = {"model.name": BASES["resnet"], "model.blocks": tuple(layers), "model.width": width}
        return keys | {"model.heads": width * 32 // head, "model.epsilon": 1e-5, "data.image_size": size}
    ratio, pool = vision.get("mlp_ratio", 4), vision.get("pool_type", "tok")
    require(path, "vision_cfg.mlp_ratio", ratio, ratio == 4, "4")
    require(path, "vision_cfg.pool_type", pool, pool in ("tok", "avg"), "tok or avg")
    return {
        "model.name": BASES["transformer"],
        "model.dim": width,
        "model.depth": layers,
        "model.heads": width // head,
        "model.patch": vision.get("patch_size", 16),
        "model.pool": {"tok": "cls", "avg": "gap"}[pool],
        "model.epsilon": 1e-5,
        "data.image_size": size,
    }
