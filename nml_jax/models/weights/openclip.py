"""Read and write state dicts of open_clip's two-tower models: `CLIP` and `CustomTextCLIP`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from nml_jax.models.weights import layouts
from nml_jax.models.weights.state_dict import Tree, list_paths, read_trees, rename, write_tensors


def import_weights(tensors: Mapping[str, Any], like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Convert an open_clip state dict to the trees of a CLIP model.

    The text tower of a `CustomTextCLIP` is below "text."; that of a `CLIP` has no prefix. Arguments, result and errors
    are those of `timm.import_weights`.
    """
    tensors = {name.removeprefix("text."): value for name, value in tensors.items()}
    return read_trees(tensors, like, partial(_name_leaf, image=_find_image(like[0])))


def export_weights(params: Tree, model_state: Tree) -> dict[str, np.ndarray]:
    """Convert the trees of a CLIP model to the state dict of open_clip's `CLIP`.

    This is the inverse of `import_weights`, bit-equal in both directions, without `num_batches_tracked`.
    """
    return write_tensors(params, model_state, partial(_name_leaf, image=_find_image(params)))


def _find_image(params: Tree) -> layouts.Layout:
    return layouts.find_layout(list_paths(params["image"]), layouts.OPEN_CLIP_IMAGE)


def _name_leaf(path: str, image: layouts.Layout) -> str:
    """Return the name of a leaf of a model with this layout of the image tower."""
    tower, _, rest = path.partition("/")
    if tower == "text":
        return rename(rest, layouts.OPEN_CLIP_TEXT)
    return image.prefix + rename(rest, image.rules) if tower == "image" else path
