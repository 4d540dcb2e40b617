"""The table of published architectures: which variant of ours each of timm's names is, and what its arguments are here.

A folder of weights names an architecture, and may give its constructor other arguments (`model_args` of config.json).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Arguments of timm's constructors, and the keys of ours that they are. None: it says nothing about what is computed.
_COMMON: Mapping[str, str | None] = {
    "img_size": "data.image_size",
    "num_classes": "data.num_classes",
    "drop_rate": None,
    "drop_path_rate": None,
}
_RESNET = {**_COMMON, "layers": "model.blocks"}
_VIT = {
    **_COMMON,
    "patch_size": "model.patch",
    "embed_dim": "model.dim",
    "depth": "model.depth",
    "num_heads": "model.heads",
    "norm_eps": "model.epsilon",
    "global_pool": "model.pool",
    "act_layer": "model.quick_gelu",
    "proj_drop_rate": None,
    "attn_drop_rate": None,
    "pos_drop_rate": None,
}
_EFFICIENTNET = {**_COMMON, "bn_eps": "model.epsilon", "bn_momentum": None, "pad_type": "model.padding"}
_CONVNEXT = {
    **_COMMON,
    "depths": "model.blocks",
    "dims": "model.widths",
    "head_hidden_size": "model.hidden",
    "norm_eps": "model.epsilon",
    "ls_init_value": None,
    "head_init_scale": None,
}

# Arguments that we have in these values alone.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "in_chans": (3,),
    "global_pool": ("avg",),
    "qkv_bias": (True,),
    "class_token": (True,),
    "mlp_ratio": (4, 4.0),
    "fc_norm": (None, False),
    "act_layer": (None, "gelu"),
    "norm_layer": (None,),
}
# Their values -> ours, for keys of ours whose values have other names there.
VALUES: Mapping[str, Mapping[Any, Any]] = {
    "model.padding": {"": "symmetric", "same": "same"},
    "model.pool": {"token": "cls", "avg": "gap"},
    "model.quick_gelu": {"gelu": False, "quick_gelu": True},
}
# A kind of transformers' own models -> timm's folder of such weights.
NATIVE: Mapping[str, str] = {
    "vit": "timm/vit_base_patch16_224.augreg_in21k",
    "deit": "timm/deit_base_patch16_224.fb_in1k",
    "swin": "timm/swin_large_patch4_window7_224.ms_in22k",
    "convnext": "timm/convnext_tiny.fb_in1k",
    "bit": "timm/resnetv2_50x1_bit.goog_in21k",
    "resnet": "timm/resnet50.a1_in1k",
    "efficientnet": "timm/tf_efficientnet_b3.ns_jft_in1k",
    "dinov2": "timm/vit_base_patch14_dinov2.lvd142m",
    "clip_vision_model": "timm/vit_large_patch14_clip_224.openai",
}


_SWIN = {
    **_COMMON,
    "patch_size": "model.patch",
    "window_size": "model.window",
    "embed_dim": "model.width",
    "depths": "model.blocks",
    "num_heads": "model.heads",
    "proj_drop_rate": None,
    "attn_drop_rate": None,
}


class Architecture(NamedTuple):
    """A row: one architecture of timm.

    Fields:
        name: our variant, a key of `variants.TOWERS`.
        arguments: timm's arguments -> keys of our config.
        keys: values of our config that the variant alone does not give.
    """

    name: str
    arguments: Mapping[str, str | None]
    keys: Mapping[str, Any] = {}


TIMM: dict[str, Architecture] = {
    **{name: Architecture(name, _RESNET) for name in ("resnet18", "resnet50", "resnet101")},
    **{
        f"{padding}efficientnet_{size}": Architecture(f"{padding}efficientnet_{size}", _EFFICIENTNET)
        for padding in ("", "tf_")
        for size in ("b0", "b1", "b2", "b3")
    },
    "tf_efficientnet_lite0": Architecture("efficientnet_lite0", _EFFICIENTNET),
    "efficientnet_lite0": Architecture(
        "efficientnet_lite0", _EFFICIENTNET, {"model.padding": "symmetric", "model.epsilon": 1e-5}
    ),
    "convnext_tiny": Architecture("convnext_t", _CONVNEXT),
    "convnext_small": Architecture("convnext_s", _CONVNEXT),
    "convnext_base": Architecture("convnext_b", _CONVNEXT),
    "convnext_large": Architecture("convnext_l", _CONVNEXT),
    "convnext_large_mlp": Architecture("convnext_l_mlp", _CONVNEXT),
    **{
        f"vit_{theirs}_patch{patch}_{size}": Architecture(
            ours, _VIT, {"model.patch": patch, "data.image_size": size, "model.pool": "cls"}
        )
        for theirs, ours, patch, size in (
            ("tiny", "vit_ti", 16, 224),
            ("tiny", "vit_ti", 16, 384),
            ("small", "vit_s", 16, 224),
            ("small", "vit_s", 16, 384),
            ("small", "vit_s", 32, 224),
            ("small", "vit_s", 32, 384),
            ("base", "vit_b", 8, 224),
            ("base", "vit_b", 16, 224),
            ("base", "vit_b", 16, 384),
            ("base", "vit_b", 32, 224),
            ("base", "vit_b", 32, 384),
            ("large", "vit_l", 16, 224),
            ("large", "vit_l", 16, 384),
            ("large", "vit_l", 32, 384),
        )
    },
    **{f"resnetv2_{size}_bit": Architecture(f"bit_{size}", _COMMON) for size in ("50x1", "152x2")},
    **{
        f"swin_{theirs}_patch4_window{window}_{size}": Architecture(
            ours, _SWIN, {"model.window": window, "data.image_size": size}
        )
        for theirs, ours, window, size in (
            ("tiny", "swin_t", 7, 224),
            ("small", "swin_s", 7, 224),
            ("base", "swin_b", 7, 224),
            ("base", "swin_b", 12, 384),
            ("large", "swin_l", 7, 224),
            ("large", "swin_l", 12, 384),
        )
    },
    **{
        f"vit_{theirs}_clip_{quick}{size}": Architecture(
            ours, _VIT, {"model.quick_gelu": bool(quick), "data.image_size": size, "model.pool": "cls"}
        )
        for theirs, ours, size in (
            ("base_patch16", "vit_b16_clip", 224),
            ("large_patch14", "vit_l14_clip", 224),
            ("large_patch14", "vit_l14_clip", 336),
        )
        for quick in ("", "quickgelu_")
    },
    **{
        f"vit_{theirs}_patch14_dinov2": Architecture(
            ours, {**_VIT, "init_values": None}, {"data.image_size": 518, "model.pool": "cls"}
        )
        for theirs, ours in (("small", "vit_s14_dinov2"), ("base", "vit_b14_dinov2"), ("large", "vit_l14_dinov2"))
    },
}

# Our variants of two towers, and open_clip's names of the same sizes. Those with QuickGELU need model.quick_gelu=True.
OPEN_CLIP: dict[str, tuple[str, ...]] = {
    "clip_rn50": ("RN50", "RN50-quickgelu"),
    "clip_vitb16": ("ViT-B-16", "ViT-B-16-quickgelu"),
    "clip_vitl14": ("ViT-L-14", "ViT-L-14-quickgelu"),
    "clip_convnext_base_w": ("convnext_base_w",),
    "clip_convnext_large_d": ("convnext_large_d",),
    "clip_convnext_large_d_320": ("convnext_large_d_320",),
}

# Our text encoders, and transformers' names of models whose folders give their sizes.
TRANSFORMERS: dict[str, tuple[str, ...]] = {
    "bert": ("bert-base-uncased", "bert-large-uncased", "bert-base-cased", "bert-large-cased"),
    "roberta": ("roberta-base", "roberta-large"),
    "gpt2": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"),
}

# Forms of open_clip's image towers, and the variant of ours whose other sizes are keys.
BASES: Mapping[str, str] = {"transformer": "clip_vitb16", "resnet": "clip_rn50", "timm": "clip"}
