"""Geometry of boxes for one image: overlaps, coding, anchors, non-maximum suppression, pooling of regions.

A box is (x1, y1, x2, y2) in pixels with exclusive ends, so that its width is x2 − x1. All functions are pure, take
arrays without a batch axis (use `jax.vmap`), and compute in float32, or in float64 if their inputs have it.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = math.log(1000 / 16)  # of a change of log width or height, in all three codebases
ADAPTIVE = 8  # most samples per bin and axis if their number follows the region's size


def compute_areas(boxes: jax.Array) -> jax.Array:
    """Return the areas of boxes [..., 4] in square pixels, [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def compute_short_sides(boxes: jax.Array) -> jax.Array:
    """Return the shorter sides of boxes [..., 4], [...]."""
    return jnp.minimum(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])


def compute_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return intersection over union of boxes [N, 4] and [M, 4], [N, M]. It is 0 where the union is empty."""
    low = jnp.maximum(a[:, None, :2], b[None, :, :2])
    high = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    side = jnp.maximum(high - low, 0)
    inside = side[..., 0] * side[..., 1]
    union = compute_areas(a)[:, None] + compute_areas(b)[None] - inside
    return jnp.where(union > 0, inside / jnp.where(union > 0, union, 1), 0)


def encode(boxes: jax.Array, anchors: jax.Array, stds: Sequence[float] = (1, 1, 1, 1)) -> jax.Array:
    """Return the deltas [N, 4] from anchors [N, 4] to boxes [N, 4], divided by `stds`.

    They are the shift of the centre in units of the anchor's width and height, and the log of the ratio of sides
    (Girshick et al. 2014, arXiv 1311.2524, appendix C). A side below 1e-6 counts as 1e-6, so that nothing is infinite.
    """
    centre, side = _to_centre(boxes)
    from_centre, from_side = _to_centre(anchors)
    side, from_side = jnp.maximum(side, 1e-6), jnp.maximum(from_side, 1e-6)
    deltas = jnp.concatenate([(centre - from_centre) / from_side, jnp.log(side / from_side)], -1)
    return deltas / jnp.asarray(stds, deltas.dtype)


def decode(deltas: jax.Array, anchors: jax.Array, stds: Sequence[float] = (1, 1, 1, 1), both: bool = True) -> jax.Array:
    """Return the boxes [..., 4] that deltas [..., 4] make of anchors [..., 4], the inverse of `encode`.

    Changes of the log of a side are clamped at log(1000/16) from above and, with `both`, from below.
    """
    deltas = deltas * jnp.asarray(stds, deltas.dtype)
    centre, side = _to_centre(anchors)
    centre = centre + deltas[..., :2] * side
    grown = jnp.clip(deltas[..., 2:], -LARGEST if both else None, LARGEST)
    half = jnp.exp(grown) * side / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Clip boxes [..., 4] to a picture of size (height, width), int or float [2]."""
    height, width = size[0].astype(boxes.dtype), size[1].astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]))


def _to_centre(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return centres and sides, both (x, y) [..., 2]."""
    side = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + side / 2, side


def make_anchors(
    shape: tuple[int, int], stride: int, scales: Sequence[float], ratios: Sequence[float], rounded: str = ""
) -> np.ndarray:
    """Make the anchors of a map of shape (height, width), float32 [height · width · A, 4].

    At each cell, row by row, stand A = ratios × scales anchors, the scales fastest. They are centred at the cell's
    corner (stride · x, stride · y) and have the area (scale · stride)². A ratio is height / width.

    Args:
        rounded: "" as they are; "corners": to whole pixels; "sizes": scale · stride cut to whole pixels, then corners.
    """
    sizes = np.float32([scale * stride for scale in scales])
    sizes = np.trunc(sizes) if rounded == "sizes" else sizes
    root = np.sqrt(np.float32(ratios))
    half_h = (root[:, None] * sizes).reshape(-1) / 2
    half_w = ((1 / root)[:, None] * sizes).reshape(-1) / 2
    own = np.stack([-half_w, -half_h, half_w, half_h], -1)
    own = own.round() if rounded else own
    y, x = np.meshgrid(np.arange(shape[0]) * stride, np.arange(shape[1]) * stride, indexing="ij")
    corners = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (corners + own).reshape(-1, 4).astype(np.float32)


def are_inside(shape: tuple[int, int], stride: int, per_cell: int, size: jax.Array) -> jax.Array:
    """Return which anchors of a map stand at a cell whose corner is inside a picture of size [2], bool [N]."""
    rows = jnp.arange(shape[0]) * stride < size[0]
    columns = jnp.arange(shape[1]) * stride < size[1]
    return jnp.repeat((rows[:, None] & columns[None]).reshape(-1), per_cell)


def suppress(boxes: jax.Array, valid: jax.Array, threshold: float, groups: jax.Array | None = None) -> jax.Array:
    """Return which boxes greedy non-maximum suppression keeps, bool [N].

    A box is kept unless one before it in its group is kept and overlaps it by more than the threshold. This is a fixed
    point of keep ← valid ∧ ¬any(overlaps ∧ keep). There is exactly one, because boxes depend only on earlier ones, and
    iteration reaches it within the length of the longest chain of overlaps.

    Args:
        boxes: [N, 4], by falling score.
        valid: bool [N]; others are neither kept nor suppress anything.
        groups: int [N]; boxes of different groups do not suppress each other.
    """
    over = compute_iou(boxes, boxes) > threshold
    over &= jnp.arange(len(boxes))[:, None] < jnp.arange(len(boxes))
    if groups is not None:
        over &= groups[:, None] == groups

    def again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keep, _ = state
        new = valid & ~jnp.any(over & keep[:, None], 0)
        return new, jnp.any(new != keep)

    return jax.lax.while_loop(lambda state: state[1], again, (valid, jnp.bool_(True)))[0]


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
