"""State dicts of timm's ResNets and ViTs, and of open_clip's two-tower models, to our trees and back, bit by bit.

The trees themselves say which tensor goes where: `stage2_block0/conv1/kernel` is `layer2.0.conv1.weight`. So one set of
rules serves every ResNet (18, 50, 101, any stem, width and depth) and every ViT of this package, and another CLIP's
transformers of any size. Kernels change layout, OIHW to HWIO and [out, in] to [in, out]; everything else keeps its
values, and its shape but for the axes of length 1 that stand in front of our class token and position embeddings.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nml_jax.errors import UserError

Tree = dict[str, Any]

# Applied in turn to a path in our trees, or in one tower of them; a "/" that is left becomes a ".".
_LEAVES = (
    (r"/(kernel|scale|embedding)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
)
_TIMM = (
    (r"^stem_(conv|bn)/", r"\g<1>1/"),
    (r"^stage(\d+)_block(\d+)", r"layer\1/\2"),
    (r"/downsample_conv", "/downsample/0"),
    (r"/downsample_bn", "/downsample/1"),
    (r"^block(\d+)", r"blocks/\1"),
    (r"^patch/", "patch_embed/proj/"),
    (r"^cls$", "cls_token"),
    *_LEAVES,
)
_CLIP_RESNET = (
    (r"^stem_(conv|bn)(\d)", r"\1\2"),
    (r"^pool/([qkv])/", r"attnpool/\1_proj/"),
    (r"^pool/pos_embed$", "attnpool/positional_embedding"),
    (r"^projection/", "attnpool/c_proj/"),
    *_TIMM,
)
_CLIP_TRANSFORMER = (
    (r"^block(\d+)", r"transformer/resblocks/\1"),
    (r"/norm([12])/", r"/ln_\1/"),
    (r"/qkv/kernel$", "/in_proj_weight"),
    (r"/qkv/bias$", "/in_proj_bias"),
    (r"/attn/proj/", "/attn/out_proj/"),
    (r"/fc1/", "/c_fc/"),
    (r"/fc2/", "/c_proj/"),
    (r"^cls$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    *_LEAVES,
)
_CLIP_VIT = (
    (r"^patch/", "conv1/"),
    (r"^norm_pre/", "ln_pre/"),
    (r"^norm/", "ln_post/"),
    (r"^projection/kernel$", "proj"),
    *_CLIP_TRANSFORMER,
)
_CLIP_TEXT = (
    (r"^tokens/", "token_embedding/"),
    (r"^norm/", "ln_final/"),
    (r"^projection/kernel$", "text_projection"),
    *_CLIP_TRANSFORMER,
)


def from_timm(tensors: Mapping[str, np.ndarray], like: tuple[Tree, Tree], *, head: bool = True) -> tuple[Tree, Tree]:
    """A timm state dict as our trees.

    Args:
        tensors: the state dict. `num_batches_tracked` is ignored: with a fixed momentum nothing reads it.
        like: (params, model_state) of the model, as arrays or as shapes from `jax.eval_shape` of its `init`.
        head: False leaves the classifier out, of the file and of the result, whose params then have no "head".

    Returns:
        (params, model_state) as float32 NumPy arrays that own their memory.

    Raises:
        UserError: tensors are missing, unexpected, of another shape or no floats; the message names them.
    """
    places = _places(*like)
    if not head:
        tensors = {name: value for name, value in tensors.items() if name.partition(".")[0] not in ("fc", "head")}
        places = {path: place for path, place in places.items() if not path.startswith("head/")}
    return _read(tensors, places)


def to_timm(params: Tree, model_state: Tree) -> dict[str, np.ndarray]:
    """Our trees as a timm state dict: the inverse of `from_timm`, bit-equal in both directions.

    `num_batches_tracked` is not written; PyTorch loads a state dict from safetensors without it, strictly too.
    """
    return _write(params, model_state)


def from_openclip(tensors: Mapping[str, np.ndarray], like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """An open_clip state dict as the trees of a CLIP model.

    It is that of a `CLIP` or a `CustomTextCLIP`, whose text tower stands below "text."; the image tower is a
    `VisionTransformer`, a `ModifiedResNet` or, where `like` has one of timm's, a `TimmModel` with a linear projection.
    Arguments, result and errors are those of `from_timm`.
    """
    return _read({name.removeprefix("text."): value for name, value in tensors.items()}, _places(*like))


def to_openclip(params: Tree, model_state: Tree) -> dict[str, np.ndarray]:
    """The trees of a CLIP model as the state dict of open_clip's `CLIP`: the inverse of `from_openclip`, bit-equal in
    both directions, without `num_batches_tracked`."""
    return _write(params, model_state)


def load(path: str | Path, like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """The weights in a .safetensors file: with open_clip's names for a CLIP model, with timm's for the others.

    A classifier that is absent from the file or made for other classes is left out: the result's params then have no
    "head", and the caller keeps its own.

    Args:
        path: the file.
        like: as in `from_timm`.

    Raises:
        UserError: the file is missing, no safetensors, truncated, of an unknown dtype, or does not fit the model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, AttributeError) as e:  # AttributeError: a dtype that NumPy lacks, as float8
        raise UserError(f"cannot read {path} as safetensors: {e}", "give a complete .safetensors file") from e
    two_towers = any(name.startswith("visual.") for name in tensors)
    if two_towers != _is_clip(like[0]):
        theirs, ours = ("a CLIP", "an image") if two_towers else ("an image", "a CLIP")
        raise UserError(
            f"{path} holds the weights of {theirs} model, and the model is {ours} model",
            "set model.name to what the weights are of, or give other weights",
        )
    if two_towers:
        return from_openclip(tensors, like)
    heads = [place for path, place in _places(*like).items() if path.startswith("head/")]
    fits = all(place.name in tensors and tensors[place.name].shape == place.shape for place in heads)
    return from_timm(tensors, like, head=fits)


class _Place(NamedTuple):
    """Where a leaf of ours stands in a state dict: transposed by `axes` to `full` and then reshaped to `shape`."""

    name: str
    axes: tuple[int, ...]
    full: tuple[int, ...]
    shape: tuple[int, ...]


def _is_clip(params: Tree) -> bool:
    return "image" in params


def _places(params: Tree, model_state: Tree) -> dict[str, _Place]:
    """Path in our trees -> place in the state dict."""
    places = {}
    for path, leaf in _flatten(params, model_state).items():
        name = _clip_name(path, params["image"]) if _is_clip(params) else _timm_name(path, params)
        axes = tuple(range(leaf.ndim))
        if path.endswith("/kernel") and name.endswith("weight"):  # not so the bare matrices of CLIP's projections
            axes = {2: (1, 0), 4: (3, 2, 0, 1)}[leaf.ndim]
        full = tuple(leaf.shape[axis] for axis in axes)
        lacks = 2 * name.endswith("class_embedding") + name.endswith("positional_embedding")
        places[path] = _Place(name, axes, full, full[lacks:])
    return places


def _timm_name(path: str, params: Tree) -> str:
    if "stem_conv" in params:  # timm's ResNets call the classifier fc
        path = re.sub(r"^head/", "fc/", path)
    return _renamed(path, _TIMM)


def _clip_name(path: str, image: Tree) -> str:
    tower, _, rest = path.partition("/")
    if tower == "text":
        return _renamed(rest, _CLIP_TEXT)
    if tower != "image":
        return path
    if "norm_pre" in image:
        return "visual." + _renamed(rest, _CLIP_VIT)
    if "pool" in image:
        return "visual." + _renamed(rest, _CLIP_RESNET)
    # A tower that is not CLIP's own is the trunk of open_clip's TimmModel.
    return "visual." + ("head.proj.weight" if rest == "projection/kernel" else f"trunk.{_renamed(rest, _TIMM)}")


def _renamed(path: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def _read(tensors: Mapping[str, np.ndarray], places: Mapping[str, _Place]) -> tuple[Tree, Tree]:
    counters = {name for name in tensors if name.endswith(".num_batches_tracked")}
    flat: dict[str, np.ndarray] = {}
    missing, unfit = [], []
    for path, place in places.items():
        value = tensors.get(place.name)
        if value is None:
            missing.append(place.name)
        elif value.shape != place.shape:
            unfit.append(f"{place.name} is {value.shape} and not {place.shape}")
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            unfit.append(f"{place.name} is {value.dtype} and no float")
        else:
            value = value.reshape(place.full).transpose(np.argsort(place.axes))
            flat[path] = np.array(value, np.float32, order="C")
    unexpected = set(tensors) - {place.name for place in places.values()} - counters
    faults = {"missing": missing, "unexpected": sorted(unexpected), "unfit": unfit}
    if any(faults.values()):
        raise UserError(
            "the weights do not fit the model: " + "; ".join(f"{k}: {_some(v)}" for k, v in faults.items() if v),
            "set config.model and data.image_size to what these weights were made with, or give other weights",
        )
    stats = {path: value for path, value in flat.items() if path.endswith(("/mean", "/var"))}
    params = unflatten_dict({path: value for path, value in flat.items() if path not in stats}, sep="/")
    return params, {"batch_stats": unflatten_dict(stats, sep="/")} if stats else {}


def _write(params: Tree, model_state: Tree) -> dict[str, np.ndarray]:
    flat = _flatten(params, model_state)
    return {
        place.name: np.array(np.asarray(flat[path]).transpose(place.axes).reshape(place.shape), order="C")
        for path, place in _places(params, model_state).items()
    }


def _flatten(params: Tree, model_state: Tree) -> dict[str, Any]:
    return flatten_dict(params, sep="/") | flatten_dict(model_state.get("batch_stats", {}), sep="/")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
