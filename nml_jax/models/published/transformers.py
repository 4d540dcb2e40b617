"""Read config.json and preprocessor_config.json of transformers' CLIPModel; text encoders are language.py's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml_jax.console import notice_once
from nml_jax.errors import UserError
from nml_jax.models.architectures import BASES, NATIVE
from nml_jax.models.published.common import Keys, name_clip, require
from nml_jax.models.published.language import read_language
from nml_jax.models.text.language import FAMILIES
from nml_jax.models.variants import OPENAI


def read_transformers(path: Path, content: Mapping[str, Any]) -> Keys:
    kind = content.get("model_type", "of no known kind")
    if kind in FAMILIES:
        return read_language(path, content)
    if kind != "clip":
        cure = (
            f"take timm's folder of the same weights, such as {NATIVE[kind]}"
            if kind in NATIVE
            else f"take timm's folder of images, or a text encoder of the kind {', '.join(FAMILIES)}"
        )
        raise UserError(f"{path} is transformers' own form of a model ({kind}), which is not read", cure)
    vision, text = content.get("vision_config") or {}, content.get("text_config") or {}
    acts = {part.get("hidden_act", "quick_gelu") for part in (vision, text)}
    require(path, "hidden_act", acts, acts in ({"gelu"}, {"quick_gelu"}), "gelu or quick_gelu, the same in both towers")
    for block, part, width in (("vision_config", vision, 768), ("text_config", text, 512)):
        inner, outer = part.get("intermediate_size", 4 * width), part.get("hidden_size", width)
        require(path, f"{block}.intermediate_size", inner, inner == 4 * outer, f"{4 * outer}, 4 times the width")
    epsilons = {part.get("layer_norm_eps", 1e-5) for part in (vision, text)}
    require(path, "layer_norm_eps", epsilons, epsilons == {1e-5}, "1e-5")
    size = vision.get("image_size", 224)
    return name_clip({
        "model.name": BASES["transformer"],
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
    given = json.loads(path.read_bytes()) if path.is_file() else {}
    own = {key: value for key, value in given.items() if value is not None}
    if not own:
        notice_once(f"{path} is not there; assumed: OpenAI's mean and standard deviation, bicubic, the shortest side")
    filters = {2: "bilinear", 3: "bicubic"}
    require(path, "resample", own.get("resample", 3), own.get("resample", 3) in filters, "2 or 3")
    short = own.get("size", size)
    short = short.get("shortest_edge", size) if isinstance(short, dict) else short
    return {
        "augment.test_crop": size / short,
        "augment.interpolation": filters[own.get("resample", 3)],
        "augment.resize": "shortest",
        "model.mean": tuple(own.get("image_mean", OPENAI[0])),
        "model.std": tuple(own.get("image_std", OPENAI[1])),
    }
