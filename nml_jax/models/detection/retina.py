"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): one stage, with a focal loss on all anchors."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax import boxes
from nml_jax.models.detection.system import (
    Setting,
    System,
    choose_maps,
    describe_boxes,
    draw,
    find_inside,
    finish_detections,
    flatten_levels,
    make_all_anchors,
    make_conv,
    make_pyramid,
    map_images,
    map_shared,
)
from nml_jax.objectives.detection.assign import match_objects


class Head(nn.Module):
    """Two towers of 3x3 convolutions, shared by all levels: class logits and deltas of every anchor of a cell."""

    num_classes: int
    per_cell: int
    width: int
    tower: int
    dtype: Any

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        def run(kind: str, channels: int, bias: float) -> list[jax.Array]:
            tower = [make_conv(self.width, 3, self.dtype, f"{kind}{i}") for i in range(self.tower)]
            last, out = make_conv(channels, 3, self.dtype, f"{kind}_out", bias=bias), []
            for x in maps:
                for conv in tower:
                    x = nn.relu(conv(x))
                out.append(last(x))
            return out

        # Every class starts with a probability of 0.01 (section 3.3).
        logits = run("class", self.per_cell * self.num_classes, -math.log(99))
        return logits, run("box", self.per_cell * 4, 0.0)


def make(setting: Setting) -> System:
    """Make the system from the section `detect.retina`."""
    config, own, num_classes = setting.config, setting.config.retina, setting.num_classes
    per_cell = len(own.scales) * len(config.anchors.ratios)
    pyramid = make_pyramid(setting, own.strides, "conv", own.p6_from)
    head = Head(num_classes, per_cell, config.fpn.width, own.tower, setting.dtype)

    def init(key: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct]) -> dict[str, Any]:
        keys = jax.random.split(key)
        fpn, levels = draw(pyramid, keys[0], choose_maps(setting, shapes, own.strides))
        return {"fpn": fpn, "head": draw(head, keys[1], levels)[0]}

    def run(params: Any, maps: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """Return the levels, and logits [B, N, K] and deltas [B, N, 4] of each."""
        levels: Any = pyramid.apply({"params": params["fpn"]}, choose_maps(setting, maps, own.strides))
        run_head = map_shared(lambda params, levels: head.apply({"params": params}, levels), setting.mesh)
        logits, deltas = run_head(params["head"], levels)
        return levels, flatten_levels(logits, num_classes), flatten_levels(deltas, 4)

    def train(params: Any, maps: Sequence[jax.Array], batch: Any, key: jax.Array | None) -> dict[str, jax.Array]:
        levels, logits, deltas = run(params, maps)
        anchors = jnp.concatenate(make_all_anchors(setting, levels, own.strides, own.scales))

        def assign(found: jax.Array, labels: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
            inside = jnp.concatenate(find_inside(levels, own.strides, per_cell, size))
            how = own.positive, own.negative, own.low_quality, config.low_quality
            index = match_objects(anchors, found, labels, *how, alive=inside)
            return {
                "index": index,
                "target_deltas": boxes.encode(found[jnp.maximum(index, 0)], anchors),
                "target_class": labels[jnp.maximum(index, 0)],
            }

        targets = map_images(assign, setting.mesh)(batch["boxes"], batch["labels"], batch["size"])
        return {"logits": jnp.concatenate(logits, 1), "deltas": jnp.concatenate(deltas, 1), **targets}

    def detect(params: Any, maps: Sequence[jax.Array], batch: Any) -> dict[str, jax.Array]:
        levels, logits, deltas = run(params, maps)
        anchors = make_all_anchors(setting, levels, own.strides, own.scales)

        def finish(logits: list[jax.Array], deltas: list[jax.Array], size: jax.Array) -> dict[str, jax.Array]:
            parts, inside = [], find_inside(levels, own.strides, per_cell, size)
            for x, delta, anchor, own_inside in zip(logits, deltas, anchors, inside, strict=True):
                scores = jax.nn.sigmoid(x)
                allowed = (scores > config.score_threshold) & own_inside[:, None]
                ranked = jnp.where(allowed, scores, -1).reshape(-1)
                best, index = jax.lax.top_k(ranked, min(own.top, ranked.size))
                anchor_index = index // num_classes
                box = boxes.decode(delta[anchor_index], jnp.asarray(anchor)[anchor_index], both=config.clamp_both)
                parts.append((boxes.clip(box, size), best, index % num_classes))
            found, scores, classes = (jnp.concatenate(x) for x in zip(*parts, strict=True))
            valid = (scores > 0) & (boxes.compute_short_sides(found) > config.min_size)
            return finish_detections(found, scores, classes, valid, config)

        return map_images(finish, setting.mesh)(logits, deltas, batch["size"])

    return System(init, train, detect, describe_boxes)
