"""Regions of a pyramid: their level, and pooling them by ROIAlign."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.boxes.geometry import compute_areas

ADAPTIVE = 8  # most samples per bin and axis if their number follows the region's size


def find_level(boxes: jax.Array, levels: int, finest: int, inside: float, outside: float) -> jax.Array:
    """Return the pyramid level of each region [N, 4], int32 [N] in 0..levels − 1, the finest first.

    The rule is floor(log2(√area / 56 + inside) + outside) (arXiv 1612.03144, eq. 1) for a finest stride of 4, and in
    proportion for others; codebases add a small number at one place or the other.
    """
    side = jnp.sqrt(jnp.maximum(compute_areas(boxes), 0))
    level = jnp.floor(jnp.log2(jnp.maximum(side / (14 * finest) + inside, 1e-12)) + outside)
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)


def pool_regions(
    maps: Sequence[jax.Array],
    strides: Sequence[int],
    regions: jax.Array,
    level: jax.Array,
    side: int,
    samples: int = 2,
    aligned: bool = True,
) -> jax.Array:
    """Pool regions of a pyramid by ROIAlign (arXiv 1703.06870, section 3): [R, side, side, C], float32.

    Each bin is the mean of samples × samples bilinear samples. A sample more than a pixel outside the map is 0.

    Args:
        maps: [H, W, C] of each level; the regions of a level are read from its map.
        regions: [R, 4] in pixels of the picture.
        level: int [R].
        samples: per bin and axis; 0: adaptive, ceil(side of the bin) on the map, at most `ADAPTIVE`.
        aligned: subtract half a pixel, and allow regions smaller than a pixel.
    """
    dtype = jnp.promote_types(regions.dtype, jnp.float32)
    table = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in maps])
    sizes = [x.shape[0] * x.shape[1] for x in maps]
    offset = jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32)[level]
    heights, widths = (jnp.asarray([x.shape[axis] for x in maps], jnp.int32)[level] for axis in (0, 1))
    scaled = regions.astype(dtype) * jnp.asarray([1 / stride for stride in strides], dtype)[level][:, None]
    extent = scaled[:, 2:] - scaled[:, :2]
    start = scaled[:, :2] - 0.5 * aligned
    bins = (extent if aligned else jnp.maximum(extent, 1)) / side
    count = jnp.clip(jnp.ceil(bins), 1, ADAPTIVE) if samples == 0 else jnp.full_like(bins, samples)

    def locate(axis: int, k: Any) -> jax.Array:
        """Return the k-th sample of every bin along an axis, [R, side]."""
        position = jnp.arange(side) + ((k + 0.5) / count[:, axis])[:, None]
        return start[:, axis, None] + position * bins[:, axis, None]

    def sample(y: jax.Array, x: jax.Array) -> jax.Array:
        """Interpolate at the product of rows y [R, P] and columns x [R, Q], [R, P, Q, C]."""
        total = jnp.zeros((), dtype)
        for row, row_weight in _split_position(y, heights):
            for column, column_weight in _split_position(x, widths):
                index = offset[:, None, None] + row[:, :, None] * widths[:, None, None] + column[:, None, :]
                weight = row_weight[:, :, None] * column_weight[:, None, :]
                total += jnp.take(table, index, axis=0, mode="clip").astype(dtype) * weight[..., None]
        return total

    if samples:
        grid = [jnp.stack([locate(axis, k) for k in range(samples)], -1).reshape(len(regions), -1) for axis in (1, 0)]
        whole = sample(*grid).reshape(len(regions), side, samples, side, samples, -1)
        return whole.mean((2, 4))

    def add(total: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        i, j = k // ADAPTIVE, k % ADAPTIVE
        counts = ((i < count[:, 1]) & (j < count[:, 0])) / (count[:, 0] * count[:, 1])
        return total + sample(locate(1, i), locate(0, j)) * counts[:, None, None, None].astype(dtype), None

    zero = jnp.zeros((len(regions), side, side, table.shape[-1]), dtype)
    return jax.lax.scan(add, zero, jnp.arange(ADAPTIVE**2))[0]


def _split_position(position: jax.Array, length: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Split positions [R, P] on axes of so many cells [R] into two (cell, weight) each; weights are 0 outside."""
    length = length[:, None]
    inside = (position >= -1) & (position <= length)
    low = jnp.floor(jnp.maximum(position, 0)).astype(jnp.int32)
    fraction = jnp.where(low >= length - 1, 0, jnp.maximum(position, 0) - low)
    low = jnp.clip(low, 0, length - 1)
    return [(low, inside * (1 - fraction)), (jnp.minimum(low + 1, length - 1), inside * fraction)]
