"""Read the weights of other projects from a file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from nml_jax.errors import UserError
from nml_jax.models.weights import openclip, timm
from nml_jax.models.weights.state_dict import Tree


def read_weights(path: str | Path, like: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    """Read a .safetensors file in the layout of open_clip for a CLIP model, and of timm for the others.

    If the file has no classifier, or one for other classes, the resulting params have no "head" and the caller keeps
    its own.

    Args:
        path: the file.
        like: as in `timm.import_weights`.

    Raises:
        UserError: the file cannot be read, has a dtype that NumPy lacks, or does not fit the model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, AttributeError) as e:  # AttributeError: a dtype that NumPy lacks, as float8
        why = " ".join(str(e).split())  # names of tensors may hold line breaks
        raise UserError(f"cannot read {path} as safetensors: {why}", "give a complete .safetensors file") from e
    is_clip = any(name.startswith("visual.") for name in tensors)
    if is_clip != ("image" in like[0]):
        theirs, ours = ("a CLIP", "an image") if is_clip else ("an image", "a CLIP")
        raise UserError(
            f"{path} holds the weights of {theirs} model, but the model is {ours} model",
            "set model.name to the model that the weights were made for, or give other weights",
        )
    if is_clip:
        return openclip.import_weights(tensors, like)
    return timm.import_weights(tensors, like, head=timm.fits_head(tensors, like[0]))
