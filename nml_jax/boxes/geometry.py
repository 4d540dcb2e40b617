"""Overlaps, coding, anchors and non-maximum suppression of boxes."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = math.log(1000 / 16)  # of a change of log width or height, in all three codebases


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
    shape: tuple[int, ...], stride: int, scales: Sequence[float], ratios: Sequence[float], rounded: str = ""
) -> np.ndarray:
    """Make the anchors of a map of shape (height, width), float32 [height · width · A, 4].

    At each cell, row by row, stand A = ratios × scales anchors, the scales fastest. They are centred at the cell's
    corner (stride · x, stride · y) and have the area (scale · stride)². A ratio is height / width.

    Args:
        rounded: "" as they are; "corners": to whole pixels; "sizes": scale · stride cut to whole pixels, then corners.
    """
    sizes = np.array([scale * stride for scale in scales], np.float32)
    sizes = np.trunc(sizes) if rounded == "sizes" else sizes
    root = np.sqrt(np.array(ratios, np.float32))
    half_h = (root[:, None] * sizes).reshape(-1) / 2
    half_w = ((1 / root)[:, None] * sizes).reshape(-1) / 2
    own = np.stack([-half_w, -half_h, half_w, half_h], -1)
    own = own.round() if rounded else own
    y, x = np.meshgrid(np.arange(shape[0]) * stride, np.arange(shape[1]) * stride, indexing="ij")
    corners = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (corners + own).reshape(-1, 4).astype(np.float32)


def are_inside(shape: tuple[int, ...], stride: int, per_cell: int, size: jax.Array) -> jax.Array:
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
