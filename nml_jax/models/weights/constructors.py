"""What timm and open_clip call our models: the name of a constructor and its arguments, one row per kind of network.

Both libraries build a network from such a description and then load the tensors that timm.py and openclip.py name. What
they have no constructor for is refused, and the message names the key of the config.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nml_jax.errors import UserError
from nml_jax.models.describe import describe_tower, find_clip_values

Fields = Mapping[str, Any]  # of a network, see `describe_tower`

CURE = "export it with --format=nml, which this package alone reads"
TRUNK_SIZE = 224  # pixels of timm's networks in open_clip, which hands on no other size

# model.name -> timm's name of the same variant. Arguments make it any other size.
TIMM_NAMES = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "vit_ti": "vit_tiny_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "vit_b": "vit_base_patch16_224",
    "vit_l": "vit_large_patch16_224",
}


class Kind(NamedTuple):
    """How timm builds a kind of network.

    arguments: fields -> arguments of timm's constructor.
    fixed: field -> its only value that timm has, with the key of the config.
    first, classifier: timm's names of the first convolution and of the classifier.
    sized: whether the network takes one image size only.
    pool: fields -> timm's name of the pooling.
    """

    arguments: Callable[[Fields], dict[str, Any]]
    fixed: Mapping[str, Any]
    first: str
    classifier: str
    sized: bool
    pool: Callable[[Fields], str]


def _list_vit_arguments(of: Fields) -> dict[str, Any]:
    out = {"img_size": of["image_size"], "patch_size": of["patch"], "embed_dim": of["dim"], "depth": of["depth"],
           "num_heads": of["heads"]}  # fmt: skip
    out |= {"global_pool": "avg", "fc_norm": False} if of["pool"] == "gap" else {}
    return out | ({"act_layer": "quick_gelu"} if of["quick_gelu"] else {})


KINDS = {
    "ResNet": Kind(
        lambda of: {"layers": of["blocks"]}, {"stem": "imagenet", "width": 64, "clip": False}, "conv1", "fc", False,
        lambda of: "avg",
    ),
    "ViT": Kind(
        _list_vit_arguments, {"clip": False}, "patch_embed.proj", "head", True,
        lambda of: "avg" if of["pool"] == "gap" else "token",
    ),
}  # fmt: skip


class TimmModel(NamedTuple):
    """A network as timm's config.json describes it; see `Kind`."""

    architecture: str
    arguments: dict[str, Any]
    kind: Kind
    pool: str


def describe_for_timm(config: Any, image_size: int) -> TimmModel:
    """Describe the network of a section `model` to timm.

    Raises:
        UserError: timm has no constructor for it.
    """
    fields = describe_tower(config, image_size)
    if config.name not in TIMM_NAMES or fields["kind"] not in KINDS:
        raise UserError(f"timm has no constructor for model.name={config.name}", CURE)
    kind = KINDS[fields["kind"]]
    for name, value in kind.fixed.items():
        if fields[name] != value:
            raise UserError(f"timm's {config.name} has no model.{name}={fields[name]}: it has {value}", CURE)
    if len(fields.get("blocks", range(4))) != 4:
        raise UserError(f"timm's {config.name} has four stages, and model.blocks={tuple(fields['blocks'])}", CURE)
    return TimmModel(TIMM_NAMES[config.name], kind.arguments(fields), kind, kind.pool(fields))


def describe_for_open_clip(config: Any, image_size: int) -> dict[str, Any]:
    """Describe a CLIP to open_clip: the `model_cfg` of its config.

    Raises:
        UserError: open_clip has no constructor for it.
    """
    fields, values = describe_tower(config, image_size), find_clip_values(config)
    out = {
        "embed_dim": values["embed_dim"],
        "vision_cfg": _describe_vision(config, fields, image_size),
        "text_cfg": {
            "context_length": values["text_context"], "vocab_size": values["text_vocab"],
            "width": values["text_width"], "heads": values["text_heads"], "layers": values["text_depth"],
        },
    }  # fmt: skip
    out |= {"quick_gelu": True} if values["quick_gelu"] else {}
    return out | ({"init_logit_bias": values["logit_bias"]} if values["logit_bias"] is not None else {})


def _describe_vision(config: Any, of: Fields, image_size: int) -> dict[str, Any]:
    """Return the section `vision_cfg` for an image tower."""
    if not of["clip"]:
        return _describe_trunk(config, of, image_size)
    if of["kind"] == "ViT":
        pool = {"cls": "tok", "gap": "avg"}[of["pool"]]
        sizes = {"layers": of["depth"], "width": of["dim"], "patch_size": of["patch"]}
        return {"image_size": image_size, **sizes, "head_width": of["dim"] // of["heads"], "pool_type": pool}
    if len(of["blocks"]) != 4:
        raise UserError(f"open_clip's ResNet has four stages, and model.blocks={tuple(of['blocks'])}", CURE)
    channels = 32 * of["width"]
    heads = of["heads"] or max(1, channels // 64)
    return {"image_size": image_size, "layers": of["blocks"], "width": of["width"], "head_width": channels // heads}


def _describe_trunk(config: Any, of: Fields, image_size: int) -> dict[str, Any]:
    """Return `vision_cfg` for one of timm's networks, which open_clip builds by its name alone."""
    tower = ConfigDict({**config.to_dict(), "name": config.tower})
    found = describe_for_timm(tower, image_size)
    usual = describe_tower(ConfigDict({"name": config.tower}), image_size)
    if changed := sorted(key for key in of if of[key] != usual[key]):
        raise UserError(
            f"open_clip builds timm's {found.architecture} in one size only: model.{changed[0]} is {of[changed[0]]} "
            f"and not {usual[changed[0]]}",
            CURE,
        )
    if found.kind.sized and image_size != TRUNK_SIZE:
        raise UserError(
            f"open_clip builds timm's {found.architecture} for {TRUNK_SIZE} pixels, and data.image_size={image_size}",
            CURE,
        )
    return {"image_size": image_size, "timm_model_name": found.architecture, "timm_model_pretrained": False,
            "timm_pool": "", "timm_proj": "linear"}  # fmt: skip
