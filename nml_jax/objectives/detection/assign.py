"""Match anchors or regions with objects, and sample them, image by image."""

import jax
import jax.numpy as jnp

from nml_jax import boxes

NEGATIVE, IGNORED = -1, -2


def match_objects(
    anchors: jax.Array,
    objects: jax.Array,
    labels: jax.Array,
    positive: float,
    negative: float,
    floor: float | None,
    rule: str,
    alive: jax.Array | None = None,
) -> jax.Array:
    """Return the object of each anchor, int32 [N]: its index, NEGATIVE, or IGNORED.

    An anchor takes the object that it overlaps most, if by `positive` or more; it is negative below `negative`. With a
    `floor`, each object also takes the anchors that overlap it most, ties included, if by `floor` or more, and at all.

    Args:
        anchors: float [N, 4].
        objects: float [M, 4].
        labels: int32 [M], −1 for padding, which nothing matches.
        floor: None for no such matches.
        rule: which object such an anchor gets: "own" (of several the last) or "argmax" (that it overlaps most).
        alive: bool [N], the anchors that exist; others are IGNORED and no object's best. None: all.
    """
    iou = jnp.where(labels >= 0, boxes.compute_iou(anchors, objects), -1)
    if alive is not None:
        iou = jnp.where(alive[:, None], iou, -1)
    best, own = iou.max(1), iou.argmax(1).astype(jnp.int32)
    index = jnp.where(best >= positive, own, jnp.where(best < negative, NEGATIVE, IGNORED))
    if floor is not None:
        most = iou.max(0)
        taken = (iou == most) & (most >= floor) & (most > 0)
        last = jnp.where(taken, jnp.arange(len(labels), dtype=jnp.int32), -1).max(1)
        index = jnp.where(last >= 0, last if rule == "own" else own, index)
    return index if alive is None else jnp.where(alive, index, IGNORED)
