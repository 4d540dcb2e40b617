"""The layout of timm's ResNets and ViTs.

The paths in our trees determine the names: `stage2_block0/conv1/kernel` is `layer2.0.conv1.weight`. So the rules serve
every ResNet (18, 50, 101, any stem, width and depth) and every ViT of this package.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from nml_jax.models.weights.state_dict import LEAVES, NameLeaf, Tree, find_places, read_trees, rename, write_tensors

RESNET = (
    (r"^stem_(conv|bn)/", r"\g<1>1/"),
    (r"^stage(\d+)_block(\d+)", r"layer\1/\2"),
    (r"/downsample_conv", "/downsample/0"),
    (r"/downsample_bn", "/downsample/1"),
    (r"^head/", "fc/"),
    *LEAVES,
)
VIT = (
    (r"^block(\d+)", r"blocks/\1"),
    (r"^patch/", "patch_embed/proj/"),
    (r"^cls$", "cls_token"),
    *LEAVES,
)


def choose_names(params: Tree) -> NameLeaf:
    """Return the function that names the leaves of this model."""
    return partial(rename, rules=RESNET if "stem_conv" in params else VIT)


def import_weights(
    tensors: Mapping[str, np.ndarray], like: tuple[Tree, Tree], *, head: bool = True
) -> tuple[Tree, Tree]:
    """Convert a timm state dict to our trees.

    Args:
        tensors: the state dict.
        like: (params, model_state) of the model, as arrays or as shapes from `jax.eval_shape` of its `init`.
        head: False leaves the classifier out; the resulting params have no "head".

    Returns:
        (params, model_state) as float32 NumPy arrays that own their memory.

    Raises:
        UserError: tensors are missing, unexpected, of another shape or not of a float type.
    """
    params, model_state = like
    if not head:
        tensors = {name: value for name, value in tensors.items() if name.partition(".")[0] not in ("fc", "head")}
        params = {name: value for name, value in params.items() if name != "head"}
    return read_trees(tensors, (params, model_state), choose_names(like[0]))


def export_weights(params: Tree, model_state: Tree) -> dict[str, np.ndarray]:
    """Convert our trees to a timm state dict: the inverse of `import_weights`, bit-equal in both directions.

    `num_batches_tracked` is left out; PyTorch loads a state dict from safetensors without it, strictly too.
    """
    return write_tensors(params, model_state, choose_names(params))


def fits_head(tensors: Mapping[str, np.ndarray], params: Tree) -> bool:
    """Return whether the state dict holds a classifier of the model's shape; True if the model has none."""
    head = {"head": params["head"]} if "head" in params else {}
    places = find_places(head, {}, choose_names(params)).values()
    return all(place.name in tensors and tensors[place.name].shape == place.shape for place in places)
