"""What timm and open_clip call our models: the name of a constructor and its arguments.

These are the rows of `architectures`, read in the other direction. Both libraries build a network from such a
description and then load the tensors that timm.py and openclip.py name. What they have no constructor for is refused,
and the message names the key of the config.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nml_jax.errors import UserError
from nml_jax.models import architectures
from nml_jax.models.describe import describe_tower, find_clip_values, name_tower
from nml_jax.models.weights import timm
from nml_jax.models.weights.state_dict import Tree

Fields = Mapping[str, Any]  # of a network, see `describe_tower`

CURE = "export it with --format=nml, which this package alone reads"
TRUNK_SIZE = 224  # pixels of timm's networks in open_clip, which hands on no other size
SIZED = ("ViT", "Swin")  # kinds whose weights fit one image size
# What else timm's constructors must be told with a value of ours: field -> value -> their arguments.
MORE: Mapping[str, Mapping[Any, dict[str, Any]]] = {"pool": {"gap": {"fc_norm": False}}}
UNKNOWN = {("ViT", "epsilon"), ("Swin", "epsilon")}  # fields of a kind that timm's constructor does not take
STAGED = ("blocks", "widths")  # fields with a value for each stage, whose number is the architecture's


class TimmModel(NamedTuple):
    """A network as timm's config.json describes it.

    architecture, arguments: the name of the constructor, and what it is given beside its defaults.
    first, classifier: timm's names of the first convolution and of the classifier.
    sized: whether the weights fit one image size only.
    pool: timm's name of the pooling.
    """

    architecture: str
    arguments: dict[str, Any]
    first: str
    classifier: str
    sized: bool
    pool: str


def describe_for_timm(config: Any, image_size: int, params: Tree) -> TimmModel:
    """Describe the network of a section `model` to timm.

    Args:
        params: its parameters, or their shapes; their names give timm's.

    Raises:
        UserError: timm has no constructor for it.
    """
    fields = describe_tower(config, image_size)
    rows = {name: row for name, row in architectures.TIMM.items() if row.name == config.name}
    if not rows:
        raise UserError(f"timm has no constructor for model.name={config.name}", CURE)
    found, refused = [], []
    for name, row in rows.items():
        try:
            found.append((name, _find_arguments(name, row, fields, image_size)))
        except UserError as e:
            refused.append(e)
    if not found:
        raise refused[0]
    architecture, arguments = min(found, key=lambda item: len(item[1]))
    names = timm.choose_names(params)
    first = next(path for path in ("patch/kernel", "stem_conv/kernel") if path.partition("/")[0] in params)
    pool = _translate("pool", fields["pool"]) if "pool" in fields else "avg"
    first, classifier = (names(path).partition("@")[0].removesuffix(".weight") for path in (first, "head/kernel"))
    return TimmModel(architecture, arguments, first, classifier, fields["kind"] in SIZED, pool)


def _find_arguments(name: str, row: architectures.Architecture, of: Fields, image_size: int) -> dict[str, Any]:
    """Return the arguments that make a row's architecture the network with these fields.

    Raises:
        UserError: it has no argument for a field in which they differ.
    """
    own = {key.partition(".")[2]: value for key, value in row.keys.items() if key.startswith("model.")}
    size = row.keys.get("data.image_size", image_size)
    usual = describe_tower(ConfigDict({"name": row.name, **own}), size)
    theirs = {key.partition(".")[2]: argument for argument, key in row.arguments.items() if key}
    out: dict[str, Any] = {}
    wrong: list[str] = []
    for field in sorted(key for key in of if of[key] != usual[key]):
        staged = field not in STAGED or len(of[field]) == len(usual[field])
        if field not in theirs or not staged or (of["kind"], field) in UNKNOWN:
            wrong.append(field)
            continue
        out[theirs[field]] = _translate(field, of[field])
        if (of["kind"], field) == ("Swin", "heads"):  # twice as many in each stage
            out[theirs[field]] = [of[field] * 2**i for i in range(len(of["blocks"]))]
        out |= MORE.get(field, {}).get(str(of[field]), {})
    if wrong:
        have, has = ([f"model.{key}={_show(values[key])}" for key in wrong] for values in (of, usual))
        raise UserError(f"timm's {name} has no {', '.join(have)}: it has {', '.join(has)}", CURE)
    return out


def _translate(field: str, value: Any) -> Any:
    """Return timm's word for a value of ours."""
    words = architectures.VALUES.get(f"model.{field}", {})
    return next((theirs for theirs, ours in words.items() if ours == value), value)


def _show(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def describe_for_open_clip(config: Any, image_size: int, params: Tree) -> dict[str, Any]:
    """Describe a CLIP to open_clip: the `model_cfg` of its config.

    Args:
        params: its parameters, or their shapes.

    Raises:
        UserError: open_clip has no constructor for it.
    """
    fields, values = describe_tower(config, image_size), find_clip_values(config)
    vision = _describe_vision(config, fields, image_size, params["image"])
    if hidden := values["hidden"]:
        if hidden != 2 * values["embed_dim"]:
            raise UserError(
                f"open_clip's head has a hidden layer of twice the embedding, {2 * values['embed_dim']}, and "
                f"model.hidden={hidden}",
                CURE,
            )
        vision["timm_proj"] = "mlp"
    out = {
        "embed_dim": values["embed_dim"],
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": values["text_context"], "vocab_size": values["text_vocab"],
            "width": values["text_width"], "heads": values["text_heads"], "layers": values["text_depth"],
        },
    }  # fmt: skip
    out |= {"quick_gelu": True} if values["quick_gelu"] else {}
    return out | ({"init_logit_bias": values["logit_bias"]} if values["logit_bias"] is not None else {})


def _describe_vision(config: Any, of: Fields, image_size: int, params: Tree) -> dict[str, Any]:
    """Return the section `vision_cfg` for an image tower."""
    if not of.get("clip"):
        return _describe_trunk(config, image_size, params)
    if of.get("epsilon") not in (None, 1e-5):
        raise UserError(f"open_clip's norms have an epsilon of 1e-5, and model.epsilon={of['epsilon']}", CURE)
    if of["kind"] == "ViT":
        pool = {"cls": "tok", "gap": "avg"}[of["pool"]]
        sizes = {"layers": of["depth"], "width": of["dim"], "patch_size": of["patch"]}
        return {"image_size": image_size, **sizes, "head_width": of["dim"] // of["heads"], "pool_type": pool}
    if len(of["blocks"]) != 4:
        raise UserError(f"open_clip's ResNet has four stages, and model.blocks={tuple(of['blocks'])}", CURE)
    head_width = 32 * of["width"] // of["heads"]
    return {"image_size": image_size, "layers": of["blocks"], "width": of["width"], "head_width": head_width}


def _describe_trunk(config: Any, image_size: int, params: Tree) -> dict[str, Any]:
    """Return `vision_cfg` for one of timm's networks, which open_clip builds by its name alone."""
    name = name_tower(config)
    if not name:
        raise UserError(f"open_clip has no image tower as in model.name={config.name}", CURE)
    tower = ConfigDict({**{key: config[key] for key in config}, "name": name, "hidden": None})
    found = describe_for_timm(tower, image_size, params)
    if changed := sorted(found.arguments.keys() - {"img_size"}):
        raise UserError(
            f"open_clip builds timm's {found.architecture} by its name alone, and this one has "
            f"{changed[0]}={_show(found.arguments[changed[0]])}",
            CURE,
        )
    if found.sized and image_size != TRUNK_SIZE:
        raise UserError(
            f"open_clip builds timm's {found.architecture} for {TRUNK_SIZE} pixels, and data.image_size={image_size}",
            CURE,
        )
    return {"image_size": image_size, "timm_model_name": found.architecture, "timm_model_pretrained": False,
            "timm_pool": "", "timm_proj": "linear"}  # fmt: skip
