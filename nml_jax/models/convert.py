"""timm's ResNet and ViT state dicts to our trees and back, bit by bit.

The trees themselves say which tensor goes where: `stage2_block0/conv1/kernel` is `layer2.0.conv1.weight`. So one set of
rules serves every ResNet (18, 50, 101, any stem, width and depth) and every ViT of this package. Kernels change layout,
OIHW to HWIO and [out, in] to [in, out]; everything else keeps its values and its shape.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nml_jax.errors import UserError

Tree = dict[str, Any]

# Applied in turn to a path in our trees; a "/" that is left becomes timm's ".".
_RULES = (
    (r"^stem_(conv|bn)", r"\g<1>1"),
    (r"^stage(\d+)_block(\d+)", r"layer\1/\2"),
    (r"/downsample_conv", "/downsample/0"),
    (r"/downsample_bn", "/downsample/1"),
    (r"^block(\d+)", r"blocks/\1"),
    (r"^patch/", "patch_embed/proj/"),
    (r"^cls$", "cls_token"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
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
    names, ours = _names(*like), _flatten(*like)
    if not head:
        tensors = {name: value for name, value in tensors.items() if name.partition(".")[0] not in ("fc", "head")}
        names = {path: name for path, name in names.items() if not path.startswith("head/")}
    counters = {name for name in tensors if name.endswith(".num_batches_tracked")}
    flat: dict[str, np.ndarray] = {}
    missing, unfit = [], []
    for path, name in names.items():
        axes = _axes(path, ours[path].ndim)
        shape, value = tuple(ours[path].shape[axis] for axis in axes), tensors.get(name)
        if value is None:
            missing.append(name)
        elif value.shape != shape:
            unfit.append(f"{name} is {value.shape} and not {shape}")
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            unfit.append(f"{name} is {value.dtype} and no float")
        else:
            flat[path] = np.array(value.transpose(np.argsort(axes)), np.float32, order="C")
    faults = {"missing": missing, "unexpected": sorted(set(tensors) - set(names.values()) - counters), "unfit": unfit}
    if any(faults.values()):
        raise UserError(
            "the weights do not fit the model: " + "; ".join(f"{k}: {_some(v)}" for k, v in faults.items() if v),
            "set config.model and data.image_size to what these weights were made with, or give other weights",
        )
    return _unflatten(flat)


def to_timm(params: Tree, model_state: Tree) -> dict[str, np.ndarray]:
    """Our trees as a timm state dict: the inverse of `from_timm`, bit-equal in both directions.

    `num_batches_tracked` is not written; PyTorch loads a state dict from safetensors without it, strictly too.
    """
    names = _names(params, model_state)
    return {
        names[path]: np.array(np.asarray(value).transpose(_axes(path, value.ndim)), order="C")
        for path, value in _flatten(params, model_state).items()
    }


def load(path: str | Path, like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """The weights in a .safetensors file with timm's names.

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
    names, ours = _names(*like), _flatten(*like)
    heads = [path for path in ours if path.startswith("head/")]
    fits = all(names[path] in tensors and tensors[names[path]].shape == ours[path].shape[::-1] for path in heads)
    return from_timm(tensors, like, head=fits)


def _names(params: Tree, model_state: Tree) -> dict[str, str]:
    """Path in our trees -> name in timm's state dict."""
    names = {}
    for path in _flatten(params, model_state):
        name = path
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        if "stem_conv" in params:  # timm's ResNets call the classifier fc
            name = re.sub(r"^head/", "fc/", name)
        names[path] = name.replace("/", ".")
    return names


def _axes(path: str, ndim: int) -> Sequence[int]:
    """Axes of our array in timm's order."""
    return {2: (1, 0), 4: (3, 2, 0, 1)}[ndim] if path.endswith("/kernel") else range(ndim)


def _flatten(params: Tree, model_state: Tree) -> dict[str, Any]:
    return flatten_dict(params, sep="/") | flatten_dict(model_state.get("batch_stats", {}), sep="/")


def _unflatten(flat: dict[str, np.ndarray]) -> tuple[Tree, Tree]:
    stats = {path: value for path, value in flat.items() if path.endswith(("/mean", "/var"))}
    params = unflatten_dict({path: value for path, value in flat.items() if path not in stats}, sep="/")
    return params, {"batch_stats": unflatten_dict(stats, sep="/")} if stats else {}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
