"""The region proposal network (Ren et al. 2015, arXiv 1506.01497) on a feature pyramid."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax import boxes
from nml_jax.models.detection.system import (
    Setting,
    find_inside,
    flatten_levels,
    make_all_anchors,
    make_conv,
    map_images,
    map_shared,
)
from nml_jax.objectives.detection.assign import IGNORED, match_objects
from nml_jax.objectives.detection.sample import draw_sample


class Head(nn.Module):
    """A 3x3 convolution, and two 1x1: the logit of an object and the deltas of every anchor of a cell."""

    per_cell: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        conv = make_conv(self.width, 3, self.dtype, "conv")
        score, box = (make_conv(n * self.per_cell, 1, self.dtype, name) for name, n in (("class", 1), ("box", 4)))
        hidden = [nn.relu(conv(x)) for x in maps]
        return [score(x) for x in hidden], [box(x) for x in hidden]


class Proposals(NamedTuple):
    """Regions by falling score: boxes [..., R, 4] within the picture, and which of them exist, bool [..., R]."""

    boxes: jax.Array
    valid: jax.Array


def count_anchors(setting: Setting) -> int:
    """Return the number of anchors of a cell."""
    return len(setting.config.rpn.scales) * len(setting.config.anchors.ratios)


def run_head(
    setting: Setting, head: Head, params: Any, levels: Sequence[jax.Array]
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return logits [B, N] and deltas [B, N, 4] of every level."""
    logits, deltas = map_shared(lambda params, x: head.apply({"params": params}, x), setting.mesh)(params, levels)
    return [x[..., 0] for x in flatten_levels(logits, 1)], flatten_levels(deltas, 4)


def propose(
    setting: Setting,
    levels: Sequence[jax.Array],
    logits: list[jax.Array],
    deltas: list[jax.Array],
    size: jax.Array,
    train: bool,
) -> Proposals:
    """Decode the best anchors of every level, suppress overlaps level by level, and keep the best of all."""
    own, config = setting.config.rpn, setting.config
    before, after = (own.before[0], own.after[0]) if train else (own.before[1], own.after[1])
    anchors = make_all_anchors(setting, levels, own.strides, own.scales)

    def choose(logits: list[jax.Array], deltas: list[jax.Array], size: jax.Array) -> Proposals:
        inside = find_inside(levels, own.strides, count_anchors(setting), size)
        most = min(before, max(len(x) for x in logits))
        found, scores = [], []
        for x, delta, anchor, own_inside in zip(logits, deltas, anchors, inside, strict=True):
            ranked = jnp.where(own_inside & jnp.isfinite(x), x, -jnp.inf)
            best, index = jax.lax.top_k(ranked, min(most, len(x)))
            box = boxes.clip(boxes.decode(delta[index], jnp.asarray(anchor)[index], both=config.clamp_both), size)
            alive = jnp.isfinite(box).all(-1) & (boxes.compute_short_sides(box) > own.min_size)
            box = jnp.where(alive[:, None], box, 0)
            short = most - len(best)
            found.append(jnp.pad(box, ((0, short), (0, 0))))
            scores.append(jnp.pad(jnp.where(alive, best, -jnp.inf), (0, short), constant_values=-jnp.inf))
        stacked, ranked = jnp.stack(found), jnp.stack(scores)
        # A dead box stays where it is in the order: suppression asks only that the living ones are ordered.
        keep = jax.vmap(lambda box, valid: boxes.suppress(box, valid, own.nms))(stacked, ranked > -jnp.inf)
        ranked = jnp.where(keep, ranked, -jnp.inf).reshape(-1)
        best, index = jax.lax.top_k(ranked, min(after, len(ranked)))
        return Proposals(stacked.reshape(-1, 4)[index], best > -jnp.inf)

    cut = jax.lax.stop_gradient((logits, deltas))
    return map_images(choose, setting.mesh)(*cut, size)


def make_targets(setting: Setting, levels: Sequence[jax.Array], batch: Any, keys: jax.Array) -> dict[str, jax.Array]:
    """Match and sample all anchors: "rpn_index" int32 [B, N] (IGNORED if not drawn) and "rpn_target" [B, N, 4]."""
    own = setting.config.rpn
    anchors = jnp.concatenate(make_all_anchors(setting, levels, own.strides, own.scales))

    def assign(found: jax.Array, labels: jax.Array, size: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        inside = jnp.concatenate(find_inside(levels, own.strides, count_anchors(setting), size))
        how = own.positive, own.negative, own.low_quality, setting.config.low_quality
        index = match_objects(anchors, found, labels, *how, alive=inside)
        ids, valid = draw_sample(key, index, own.samples, own.share)
        drawn = jnp.zeros(len(index), bool).at[ids].set(valid)
        target = boxes.encode(found[jnp.maximum(index, 0)], anchors)
        return {"rpn_index": jnp.where(drawn, index, IGNORED), "rpn_target": target}

    return map_images(assign, setting.mesh)(batch["boxes"], batch["labels"], batch["size"], keys)
