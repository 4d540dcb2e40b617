"""Copy tensors between a PyTorch state dict and our parameter trees, bit by bit.

A layout (layouts.py) only gives the name of the tensor that belongs to each leaf. Kernels change their axes
here, from OIHW to HWIO and from [out, in] to [in, out]. Everything else keeps its values and its shape, except that
the class token and the position embeddings of some layouts lack our leading axes of length 1.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nml_jax.errors import UserError
from nml_jax.models.weights import positions

Tree = dict[str, Any]
# (pattern, replacement as `re.sub` takes it), applied in turn to a path such as "block0/norm1/scale"
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
NameLeaf = Callable[[str], str]  # path in our trees -> name in the state dict

# What PyTorch calls the leaves of its layers.
LEAVES = (
    (r"/(kernel|scale|embedding)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
)

# Tensors that no network of ours reads: counters, tables that follow from the sizes, and what only training masks.
BUFFERS = re.compile(r"(.*\.)?(num_batches_tracked|relative_position_index|attn_mask|position_ids|mask_token)")


class UnfitWeights(UserError):
    """Tensors are not those of the model."""


class Place(NamedTuple):
    """The tensor of one leaf: our array, transposed by `axes` to the shape `full` and then reshaped to `shape`.

    With `grid`, it holds position embeddings, and is resampled if its shape is that of another grid.
    """

    name: str
    axes: tuple[int, ...]
    full: tuple[int, ...]
    shape: tuple[int, ...]
    grid: bool = False


def rename(path: str, rules: Rules) -> str:
    """Apply the rules to a path in our trees and join what results by dots."""
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def find_places(params: Tree, model_state: Tree, name_leaf: NameLeaf) -> dict[str, Place]:
    """Return the place in the state dict of every leaf, by its path in our trees.

    A name that ends with "@conv" is that of a linear layer which the state dict keeps as a 1x1 convolution; one that
    ends with "@same" is of a kernel that lies there as here.
    """
    places = {}
    for path, leaf in _flatten(params, model_state).items():
        name, _, form = name_leaf(path).partition("@")
        axes = tuple(range(leaf.ndim))
        if (
            path.endswith("/kernel") and name.endswith("weight") and form != "same"
        ):  # CLIP's bare projection matrices are [in, out]
            axes = {2: (1, 0), 4: (3, 2, 0, 1)}[leaf.ndim]
        full = tuple(leaf.shape[axis] for axis in axes)
        lacks = 2 * name.endswith("class_embedding") + name.endswith("positional_embedding")
        places[path] = Place(name, axes, full, full[lacks:] + (1, 1) * (form == "conv"), form == "grid")
    return places


def read_trees(tensors: Mapping[str, Any], like: tuple[Tree, Tree], name_leaf: NameLeaf) -> tuple[Tree, Tree]:
    """Build our trees from a state dict.

    Args:
        tensors: the state dict, of arrays or of what has a shape and a dtype and becomes one by `np.asarray`. BUFFERS
            are ignored.
        like: (params, model_state) of the model, as arrays or as shapes.

    Returns:
        (params, model_state) as float32 NumPy arrays that own their memory.

    Raises:
        UserError: tensors are missing, unexpected, of another shape, not of a float type or not finite. The message
            names them.
    """
    flat: dict[str, np.ndarray] = {}
    missing, unfit, broken = [], [], []
    places = find_places(*like, name_leaf)
    for path, place in places.items():
        value = tensors.get(place.name)
        if place.grid and value is not None:
            value = positions.fit(place.name, value, place.shape)
        if value is None:
            missing.append(place.name)
        elif value.shape != place.shape:
            unfit.append(f"{place.name} is {value.shape} and not {place.shape}")
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            unfit.append(f"{place.name} is {value.dtype} and not a float")
        else:
            own = np.asarray(value).reshape(place.full).transpose(np.argsort(place.axes))
            flat[path] = np.array(own, np.float32, order="C")
            if not np.isfinite(flat[path]).all():
                broken.append(place.name)
    known = {place.name for place in places.values()}
    unexpected = [name for name in sorted(tensors) if name not in known and not BUFFERS.fullmatch(name)]
    faults = {"missing": missing, "unexpected": unexpected, "unfit": unfit}
    if any(faults.values()):
        raise UnfitWeights(
            "the weights do not fit the model: " + "; ".join(f"{k}: {_list_some(v)}" for k, v in faults.items() if v),
            "set config.model and data.image_size to what these weights were made with, or give other weights",
        )
    if broken:
        cause = f"the weights hold NaN or infinity: {_list_some(broken)}"
        raise UserError(cause, "download them again, or give others")
    stats = {path: value for path, value in flat.items() if path.endswith(("/mean", "/var"))}
    params = unflatten_dict({path: value for path, value in flat.items() if path not in stats}, sep="/")
    return params, {"batch_stats": unflatten_dict(stats, sep="/")} if stats else {}


def list_paths(params: Tree) -> list[str]:
    """List the paths of a tree's leaves."""
    return list(flatten_dict(params, sep="/"))


def write_tensors(params: Tree, model_state: Tree, name_leaf: NameLeaf) -> dict[str, np.ndarray]:
    """Build the state dict from our trees: the inverse of `read_trees`, without `num_batches_tracked`."""
    flat = _flatten(params, model_state)
    return {
        place.name: np.array(np.asarray(flat[path]).transpose(place.axes).reshape(place.shape), order="C")
        for path, place in find_places(params, model_state, name_leaf).items()
    }


def _flatten(params: Tree, model_state: Tree) -> dict[str, Any]:
    """Return all leaves by path, those of the batch statistics last."""
    return flatten_dict(params, sep="/") | flatten_dict(model_state.get("batch_stats", {}), sep="/")


def _list_some(names: list[str]) -> str:
    """Join the first three names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
