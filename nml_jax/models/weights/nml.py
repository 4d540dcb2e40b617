"""Our own layout: every leaf under its path in our trees, in our axes."""

from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nml_jax.models.weights.state_dict import Tree

FORMAT = "nml_jax encoder 1"  # raise the number when the config or the names change their meaning
CONFIG, WEIGHTS = "nml_config.json", "model.safetensors"  # in a folder
PARAMS, STATE = "params/", "model_state/"
BIAS = f"{PARAMS}head/bias"


def export_weights(params: Tree, model_state: Tree) -> dict[str, np.ndarray]:
    """Return the leaves of both trees by name."""
    flat = {f"{PARAMS}{name}": x for name, x in flatten_dict(params, sep="/").items()}
    flat |= {f"{STATE}{name}": x for name, x in flatten_dict(model_state, sep="/").items()}
    return {name: np.array(x, order="C") for name, x in flat.items()}


def import_weights(tensors: Mapping[str, np.ndarray], like: tuple[Tree, Tree] | None = None) -> tuple[Tree, Tree]:
    """Return (params, model_state): the inverse of `export_weights`.

    Args:
        like: the trees of a model, or their shapes. If its classifier has another shape, the params have no "head".
    """
    trees = []
    for prefix in (PARAMS, STATE):
        flat = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        trees.append(unflatten_dict(flat, sep="/"))
    params, state = trees
    shapes = [{name: x.shape for name, x in of.get("head", {}).items()} for of in (params, (like or trees)[0])]
    return {name: x for name, x in params.items() if name != "head" or shapes[0] == shapes[1]}, state
