"""Checks of sizes that several towers need."""

import jax

from nml_jax.errors import UserError


def check_patches(image_size: int, patch: int) -> None:
    """Check that an image can be cut into patches. Raise UserError if it cannot."""
    if image_size % patch:
        raise UserError(
            f"an image of {image_size} pixels cannot be cut into patches of {patch} (model.patch)",
            "make data.image_size a multiple of model.patch",
        )


def check_heads(dim: int, heads: int, *keys: str) -> None:
    """Check that a width can be split over the attention heads.

    Args:
        keys: the keys of the width and of the heads in config.model.

    Raises:
        UserError: it cannot.
    """
    if dim % heads:
        raise UserError(
            f"a width of {dim} (model.{keys[0]}) cannot be split over {heads} heads (model.{keys[1]})",
            f"make model.{keys[0]} a multiple of model.{keys[1]}",
        )


def check_size(images: jax.Array, size: int) -> None:
    """Check that images [B, H, W, 3] have the height and width that the position embeddings were made for.

    Raises:
        UserError: they do not.
    """
    if images.shape[1:3] != (size, size):
        raise UserError(
            f"a model built for {size}x{size} pixels got images of {images.shape[1]}x{images.shape[2]}",
            "its position embeddings fit only one size: make augment.test_size equal to data.image_size, or None",
        )
