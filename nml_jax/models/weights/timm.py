"""Read and write state dicts of timm's models."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from nml_jax.models.weights import layouts
from nml_jax.models.weights.state_dict import (
    NameLeaf,
    Tree,
    find_places,
    list_paths,
    read_trees,
    rename,
    write_tensors,
)


def choose_names(params: Tree) -> NameLeaf:
    """Return the function that names the leaves of this model."""
    return partial(rename, rules=layouts.find_layout(list_paths(params), layouts.TIMM).rules)


def import_weights(tensors: Mapping[str, Any], like: tuple[Tree, Tree], *, head: bool = True) -> tuple[Tree, Tree]:
    """Convert a timm state dict to our trees.

    Args:
        tensors: the state dict.
        like: (params, model_state) of the model, as arrays or as shapes from `jax.eval_shape` of its `init`.
        head: False leaves the classifier out; the resulting params have no "head".

    Returns:
        (params, model_state) as float32 NumPy arrays that own their memory.

    Raises:
        UserError: tensors are missing, unexpected, of another shape, not of a float type or not finite.
    """
    params, model_state = like
    if not head:
        unread = _list_head(params)
        tensors = {name: value for name, value in tensors.items() if name not in unread}
        params = {name: value for name, value in params.items() if name != "head"}
    return read_trees(tensors, (params, model_state), choose_names(like[0]))


def export_weights(params: Tree, model_state: Tree) -> dict[str, np.ndarray]:
    """Convert our trees to a timm state dict: the inverse of `import_weights`, bit-equal in both directions.

    `num_batches_tracked` is left out; PyTorch loads a state dict from safetensors without it, strictly too.
    """
    return write_tensors(params, model_state, choose_names(params))


def fits_head(tensors: Mapping[str, Any], params: Tree) -> bool:
    """Return whether the state dict holds a classifier of the model's shape; True if the model has none."""
    head = {"head": params["head"]} if "head" in params else {}
    places = find_places(head, {}, choose_names(params)).values()
    return all(place.name in tensors and tensors[place.name].shape == place.shape for place in places)


def _list_head(params: Tree) -> set[str]:
    """Return the names of a classifier's tensors."""
    return {choose_names(params)(f"head/{leaf}").partition("@")[0] for leaf in ("kernel", "bias")}


# The biases of the classifiers of all families.
HEADS = tuple(dict.fromkeys(rename("head/bias", row.rules) for row in layouts.TIMM))
