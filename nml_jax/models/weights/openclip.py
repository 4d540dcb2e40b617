"""The layout of open_clip's two-tower models: `CLIP` and `CustomTextCLIP`.

The image tower is a `VisionTransformer`, a `ModifiedResNet` or, if the model's tower is one of timm's, a `TimmModel`
with a linear projection. The rules serve transformers of any size.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from nml_jax.models.weights import timm
from nml_jax.models.weights.state_dict import LEAVES, Tree, read_trees, rename, write_tensors

_RESNET = (
    (r"^stem_(conv|bn)(\d)", r"\1\2"),
    (r"^pool/([qkv])/", r"attnpool/\1_proj/"),
    (r"^pool/pos_embed$", "attnpool/positional_embedding"),
    (r"^projection/", "attnpool/c_proj/"),
    *timm.RESNET,
)
_TRANSFORMER = (
    (r"^block(\d+)", r"transformer/resblocks/\1"),
    (r"/norm([12])/", r"/ln_\1/"),
    (r"/qkv/kernel$", "/in_proj_weight"),
    (r"/qkv/bias$", "/in_proj_bias"),
    (r"/attn/proj/", "/attn/out_proj/"),
    (r"/fc1/", "/c_fc/"),
    (r"/fc2/", "/c_proj/"),
    (r"^cls$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    *LEAVES,
)
_VIT = (
    (r"^patch/", "conv1/"),
    (r"^norm_pre/", "ln_pre/"),
    (r"^norm/", "ln_post/"),
    (r"^projection/kernel$", "proj"),
    *_TRANSFORMER,
)
_TEXT = (
    (r"^tokens/", "token_embedding/"),
    (r"^norm/", "ln_final/"),
    (r"^projection/kernel$", "text_projection"),
    *_TRANSFORMER,
)


def import_weights(tensors: Mapping[str, np.ndarray], like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Convert an open_clip state dict to the trees of a CLIP model.

    The text tower of a `CustomTextCLIP` is below "text."; that of a `CLIP` has no prefix. Arguments, result and errors
    are those of `timm.import_weights`.
    """
    tensors = {name.removeprefix("text."): value for name, value in tensors.items()}
    return read_trees(tensors, like, partial(_name_leaf, image=like[0]["image"]))


def export_weights(params: Tree, model_state: Tree) -> dict[str, np.ndarray]:
    """Convert the trees of a CLIP model to the state dict of open_clip's `CLIP`.

    This is the inverse of `import_weights`, bit-equal in both directions, without `num_batches_tracked`.
    """
    return write_tensors(params, model_state, partial(_name_leaf, image=params["image"]))


def _name_leaf(path: str, image: Tree) -> str:
    """Return the name of a leaf of a model with this image tower."""
    tower, _, rest = path.partition("/")
    if tower == "text":
        return rename(rest, _TEXT)
    if tower != "image":
        return path
    if "norm_pre" in image:
        return "visual." + rename(rest, _VIT)
    if "pool" in image:
        return "visual." + rename(rest, _RESNET)
    # Any other tower is the trunk of a TimmModel.
    if rest == "projection/kernel":
        return "visual.head.proj.weight"
    return "visual.trunk." + timm.choose_names(image)(rest)
