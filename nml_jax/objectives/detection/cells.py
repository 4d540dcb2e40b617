"""The cells of SOLOv2's grids: which are positive, which stand out, and Matrix-NMS of their masks."""

from typing import Any

import jax
import jax.numpy as jnp


def assign_cells(
    boxes: jax.Array, labels: jax.Array, centres: jax.Array, shape: tuple[int, int], own: Any
) -> dict[str, jax.Array]:
    """Assign the objects of one image to cells (arXiv 1912.04488, section 3.1, as in mmdetection 3.3.0).

    An object belongs to the grids whose range holds the root of its box's area, and there to the cells around its
    centre of mass: within `centre` of its width and height, and at most one to each side. The last object has the class
    of a cell, but each keeps its pair with the cell, so that several masks may be asked of one kernel.

    Args:
        boxes: [M, 4]; labels: int32 [M], −1 for padding; centres: [M, 2], the mean x and y of a mask's pixels, or
            negative for an empty mask, which belongs nowhere.
        shape: height and width of the canvas.
        own: the section `detect.solo`.

    Returns:
        "class" int32 [cells], −1 where there is no object; and P pairs in a fixed order: "cell" int32 [P], "owner"
        int32 [P], "used" bool [P]; "dropped" int32 [], pairs beyond P.
    """
    side = jnp.sqrt(jnp.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 0))
    reach = 0.5 * own.centre * (boxes[:, 2:] - boxes[:, :2])
    exists = (labels >= 0) & (centres.min(1) >= 0)
    whole = jnp.asarray([shape[1], shape[0]], boxes.dtype)
    classes, pairs, before = [], [], 0
    for grid, (least, most) in zip(own.grids, own.ranges, strict=True):

        def locate(position: jax.Array, grid: int = grid) -> jax.Array:
            return jnp.trunc(position / whole / jnp.asarray(1 / grid, boxes.dtype)).astype(jnp.int32)

        centre = locate(centres)
        low = jnp.maximum(jnp.maximum(locate(centres - reach), 0), centre - 1)
        high = jnp.minimum(jnp.minimum(locate(centres + reach), grid - 1), centre + 1)
        fits = exists & (side >= least) & (side <= most)
        position = jnp.arange(grid)
        covers = fits[:, None, None]
        covers &= (position[:, None] >= low[:, None, None, 1]) & (position[:, None] <= high[:, None, None, 1])
        covers &= (position >= low[:, None, None, 0]) & (position <= high[:, None, None, 0])
        last = jnp.where(covers, jnp.arange(len(labels))[:, None, None], -1).max(0).reshape(-1)
        classes.append(jnp.where(last >= 0, labels[last], -1))
        step = jnp.arange(3)
        y, x = low[:, 1, None, None] + step[:, None], low[:, 0, None, None] + step
        valid = fits[:, None, None] & (y <= high[:, 1, None, None]) & (x <= high[:, 0, None, None])
        cell = jnp.where(valid, before + y * grid + x, 0)
        owner = jnp.broadcast_to(jnp.arange(len(labels))[:, None, None], cell.shape)
        pairs.append(tuple(part.reshape(-1) for part in (cell, owner, valid)))
        before += grid**2
    cell, owner, valid = (jnp.concatenate(part) for part in zip(*pairs, strict=True))
    first = jnp.argsort(~valid, stable=True)[: own.positives]
    return {
        "class": jnp.concatenate(classes).astype(jnp.int32),
        "cell": cell[first].astype(jnp.int32),
        "owner": owner[first].astype(jnp.int32),
        "used": valid[first],
        "dropped": (valid.sum() - valid[first].sum()).astype(jnp.int32),
    }


def keep_peaks(scores: jax.Array) -> jax.Array:
    """Return scores [B, S, S, K], and 0 where a cell above, to the left, or both has a higher one."""
    padded = jnp.pad(scores, ((0, 0), (1, 0), (1, 0), (0, 0)))
    most = jnp.maximum(jnp.maximum(scores, padded[:, :-1, :-1]), jnp.maximum(padded[:, 1:, :-1], padded[:, :-1, 1:]))
    return jnp.where(most == scores, scores, 0)


def suppress_masks(
    masks: jax.Array, scores: jax.Array, classes: jax.Array, least: jax.Array, own: Any, most: int
) -> dict[str, jax.Array]:
    """Lower the scores of masks that overlap better ones by Matrix-NMS (arXiv 2003.10152, section 3.3), Gaussian.

    Args:
        masks: probabilities [P, h, w]; scores: [P], 0 where there is no candidate; classes: int32 [P].
        least: [P], a mask must cover more cells.
        own: the section `detect.solo`.
        most: number of detections D.

    Returns:
        "scores" [D], "classes" int32 [D], −1 where there is none, and "maps" [D, h, w], 0 where there is none.
    """
    covered = masks > own.threshold
    area = covered.sum((1, 2)).astype(masks.dtype)
    inside = jnp.where(covered, masks, 0).sum((1, 2)) / jnp.maximum(area, 1)
    scores = jnp.where(area > least, scores * inside, 0)
    scores, index = jax.lax.top_k(scores, min(own.top, len(scores)))
    flat, area, classes = covered[index].reshape(len(index), -1).astype(masks.dtype), area[index], classes[index]
    both = jnp.einsum("ip,jp->ij", flat, flat, precision="highest")
    iou = both / jnp.maximum(area[:, None] + area - both, 1)
    iou = jnp.triu(jnp.where((classes[:, None] == classes) & (scores[:, None] > 0), iou, 0), 1)
    worst = iou.max(0)[:, None]
    decay = jnp.exp(-own.sigma * (iou**2 - worst**2)).min(0)
    decayed = scores * decay
    decayed = jnp.where((scores > 0) & (decayed >= own.filter), decayed, 0)
    short = max(most - len(decayed), 0)
    best, kept = jax.lax.top_k(jnp.pad(decayed, (0, short)), most)
    kept, exists = jnp.minimum(kept, len(index) - 1), best > 0
    return {
        "scores": best,
        "classes": jnp.where(exists, classes[kept], -1).astype(jnp.int32),
        "maps": jnp.where(exists[:, None, None], masks[index[kept]], 0),
    }


def find_boxes(covered: jax.Array, stride: int, size: jax.Array) -> jax.Array:
    """Find the boxes [D, 4] of masks bool [D, h, w] on the canvas, within a picture of size [2]; 0 for empty masks."""
    out = []
    for axis, end in ((1, size[1]), (2, size[0])):
        line = covered.any(axis)
        first, last = line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)
        out.append(jnp.where(line.any(1), jnp.stack([first * stride, jnp.minimum(last * stride, end)]), 0))
    (x1, x2), (y1, y2) = out
    return jnp.stack([x1, y1, x2, y2], -1).astype(jnp.float32)
