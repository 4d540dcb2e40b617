"""The masks that regions must learn: objects' masks, seen through the regions."""

import jax
import jax.numpy as jnp

from nml_jax.boxes import ADAPTIVE


def crop_masks(
    masks: jax.Array, objects: jax.Array, regions: jax.Array, side: int, aligned: bool, binarise: bool
) -> jax.Array:
    """Crop each mask to its region by ROIAlign with an adaptive number of samples: float [R, side, side] in 0..1.

    Args:
        masks: uint8 [R, c, c], 0 or 1, each resized from its object's box. Beyond the box a mask is 0.
        objects: [R, 4], these boxes.
        regions: [R, 4].
        aligned: see `boxes.pool_regions`.
        binarise: return 1 from a half on, else 0.
    """
    weights = [
        _weigh(
            objects[:, axis],
            objects[:, axis + 2],
            regions[:, axis],
            regions[:, axis + 2],
            masks.shape[1],
            side,
            aligned,
        )
        for axis in (1, 0)
    ]
    out = jnp.einsum("rac,rcd,rbd->rab", weights[0], masks.astype(weights[0].dtype), weights[1], precision="highest")
    return (out >= 0.5).astype(out.dtype) if binarise else out


def _weigh(
    low: jax.Array, high: jax.Array, start: jax.Array, end: jax.Array, cells: int, side: int, aligned: bool
) -> jax.Array:
    """Weigh a mask's cells for the bins of a region along one axis, [R, side, cells]."""
    extent = end - start if aligned else jnp.maximum(end - start, 1)
    count = jnp.clip(jnp.ceil(extent / side), 1, ADAPTIVE)[:, None, None]
    k = jnp.arange(ADAPTIVE)
    position = jnp.arange(side)[:, None] + (k + 0.5) / count  # in bins
    pixel = start[:, None, None] + position * (extent / side)[:, None, None] + (0 if aligned else 0.5)
    scale = (cells / jnp.maximum(high - low, 1e-6))[:, None, None]
    cell = (pixel - low[:, None, None]) * scale - 0.5
    tent = jnp.maximum(1 - jnp.abs(cell[..., None] - jnp.arange(cells)), 0)
    return (tent * (k < count)[..., None]).sum(2) / count
