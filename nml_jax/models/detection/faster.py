"""Faster R-CNN (Ren et al. 2015, arXiv 1506.01497) with a feature pyramid (arXiv 1612.03144): two stages."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax import boxes
from nml_jax.models.detection import rpn
from nml_jax.models.detection.system import (
    Pyramid,
    Setting,
    System,
    choose_maps,
    describe_boxes,
    draw,
    finish_detections,
    make_pyramid,
    map_images,
)
from nml_jax.models.layers.initializers import normal, xavier_uniform
from nml_jax.objectives.detection.assign import IGNORED, match_objects
from nml_jax.objectives.detection.sample import count_slots, draw_sample

LEVEL_RULES = {"mmdetection": (1e-6, 0.0), "d2": (4e-8, 0.0), "tv": (0.0, 1e-6)}  # see boxes.find_level


class BoxHead(nn.Module):
    """Two layers on pooled regions [R, side, side, C]: class logits [R, K + 1], the last is background, and deltas."""

    num_classes: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.reshape(len(x), -1)
        for i in range(2):
            x = nn.relu(nn.Dense(self.width, kernel_init=xavier_uniform, dtype=self.dtype, name=f"fc{i}")(x))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = nn.Dense(self.num_classes + 1, kernel_init=normal(0.01), dtype=self.dtype, name="class")(x)
        deltas = nn.Dense(self.num_classes * 4, kernel_init=normal(0.001), dtype=self.dtype, name="box")(x)
        return logits.astype(wide), deltas.astype(wide).reshape(len(x), self.num_classes, 4)


@dataclasses.dataclass(frozen=True)
class Faster:
    """The parts of the system, which Mask R-CNN shares.

    low_quality: regions that an object overlaps most are positive from this overlap on; None: only by overlap.
    """

    setting: Setting
    low_quality: float | None = None

    @cached_property
    def pyramid(self) -> Pyramid:
        return make_pyramid(self.setting, self.setting.config.rpn.strides, "pool")

    @cached_property
    def rpn_head(self) -> rpn.Head:
        config = self.setting.config
        return rpn.Head(rpn.count_anchors(self.setting), config.fpn.width, self.setting.dtype)

    @cached_property
    def box_head(self) -> BoxHead:
        return BoxHead(self.setting.num_classes, self.setting.config.roi.width, self.setting.dtype)

    def init(self, key: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Return the parameters for the encoder's maps of these shapes."""
        keys, config = jax.random.split(key, 3), self.setting.config
        fpn, levels = draw(self.pyramid, keys[0], choose_maps(self.setting, shapes, config.rpn.strides))
        regions = jax.ShapeDtypeStruct((1, config.roi.side, config.roi.side, config.fpn.width), jnp.float32)
        rpn_params, box_params = draw(self.rpn_head, keys[1], levels)[0], draw(self.box_head, keys[2], regions)[0]
        return {"fpn": fpn, "rpn": rpn_params, "box": box_params}

    def run_pyramid(self, params: Any, maps: Sequence[jax.Array]) -> Any:
        """Return the levels, and the RPN's logits [B, N] and deltas [B, N, 4] of each."""
        found = choose_maps(self.setting, maps, self.setting.config.rpn.strides)
        levels = self.pyramid.apply({"params": params["fpn"]}, found)
        return levels, *rpn.run_head(self.setting, self.rpn_head, params["rpn"], levels)  # pyright: ignore

    def pool(self, levels: Sequence[jax.Array], regions: jax.Array, side: int) -> jax.Array:
        """Pool regions [B, R, 4] from the levels that the encoder has, [B, R, side, side, C]."""
        own, strides = self.setting.config.roi, self.setting.config.rpn.strides
        used = [i for i, stride in enumerate(strides) if stride in self.setting.strides]
        rule = LEVEL_RULES[own.level_rule]

        def pool(maps: list[jax.Array], regions: jax.Array) -> jax.Array:
            level = boxes.find_level(regions, len(used), strides[0], *rule)
            return boxes.pool_regions(maps, [strides[i] for i in used], regions, level, side, own.sampling, own.aligned)

        return map_images(pool, self.setting.mesh)([levels[i] for i in used], regions)

    def run_boxes(self, params: Any, levels: Sequence[jax.Array], regions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return class logits [B, R, K + 1] and deltas [B, R, K, 4] of regions [B, R, 4]."""
        pooled = self.pool(levels, regions, self.setting.config.roi.side)
        flat: Any = self.box_head.apply({"params": params["box"]}, pooled.reshape(-1, *pooled.shape[2:]))
        logits, deltas = (x.reshape(*regions.shape[:2], *x.shape[1:]) for x in flat)
        return logits, deltas

    def count_positive(self, available: int) -> int:
        """Return how many regions of a sample, its first, can be positive."""
        own = self.setting.config.roi
        return count_slots(available, own.samples, own.share)[1]

    def sample_regions(self, proposals: rpn.Proposals, batch: Any, keys: jax.Array) -> dict[str, jax.Array]:
        """Add the objects to the proposals, match and sample: "regions" [B, S, 4] and their targets.

        "roi_index" int32 [B, S] is the object of a region, NEGATIVE, or IGNORED where there is no region;
        "target_class" int32 [B, S] is K for background; "target_deltas" [B, S, 4].
        """
        own, setting = self.setting.config.roi, self.setting

        def sample(found: rpn.Proposals, objects: jax.Array, labels: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
            exists, rule = labels >= 0, setting.config.low_quality
            how = own.positive, own.positive, self.low_quality, rule
            # An object is its own region. Matched with the proposals, it would be the best region of every object, and
            # `low_quality` would do nothing.
            index = jnp.concatenate([
                match_objects(found.boxes, objects, labels, *how, alive=found.valid),
                jnp.where(exists, jnp.arange(len(labels), dtype=jnp.int32), IGNORED),
            ])  # fmt: skip
            regions = jnp.concatenate([found.boxes, objects.astype(found.boxes.dtype)])
            regions = jnp.where(jnp.concatenate([found.valid, exists])[:, None], regions, 0)
            ids, valid = draw_sample(key, index, own.samples, own.share)
            index, regions = jnp.where(valid, index[ids], IGNORED), regions[ids]
            own_object = jnp.maximum(index, 0)
            return {
                "regions": jnp.where(valid[:, None], regions, 0),
                "roi_index": index,
                "target_class": jnp.where(index >= 0, labels[own_object], setting.num_classes),
                "target_deltas": boxes.encode(objects[own_object], regions, own.stds),
            }

        return map_images(sample, setting.mesh)(proposals, batch["boxes"], batch["labels"], keys)

    def train(self, params: Any, maps: Sequence[jax.Array], batch: Any, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """Return the levels, and the outputs for the objective."""
        levels, logits, deltas = self.run_pyramid(params, maps)
        keys = jax.random.split(key, (2, len(batch["size"])))
        targets = rpn.make_targets(self.setting, levels, batch, keys[0])
        proposals = rpn.propose(self.setting, levels, logits, deltas, batch["size"], train=True)
        targets |= self.sample_regions(proposals, batch, keys[1])
        class_logits, class_deltas = self.run_boxes(params, levels, targets["regions"])
        outputs = {"rpn_logits": jnp.concatenate(logits, 1), "rpn_deltas": jnp.concatenate(deltas, 1)}
        return levels, {**outputs, "class_logits": class_logits, "class_deltas": class_deltas, **targets}

    def detect(self, params: Any, maps: Sequence[jax.Array], batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        """Return the levels and the detections."""
        config, setting = self.setting.config, self.setting
        levels, logits, deltas = self.run_pyramid(params, maps)
        proposals = rpn.propose(setting, levels, logits, deltas, batch["size"], train=False)
        class_logits, class_deltas = self.run_boxes(params, levels, proposals.boxes)

        def finish(
            proposals: rpn.Proposals, logits: jax.Array, deltas: jax.Array, size: jax.Array
        ) -> dict[str, jax.Array]:
            scores = jax.nn.softmax(logits)[:, :-1]
            allowed = (scores > config.score_threshold) & proposals.valid[:, None]
            best, index = jax.lax.top_k(jnp.where(allowed, scores, -1).reshape(-1), min(config.roi.top, scores.size))
            region, classes = index // setting.num_classes, index % setting.num_classes
            how = config.roi.stds, config.clamp_both
            found = boxes.clip(boxes.decode(deltas[region, classes], proposals.boxes[region], *how), size)
            valid = (best > 0) & (boxes.compute_short_sides(found) > config.min_size)
            return finish_detections(found, best, classes, valid, config)

        return levels, map_images(finish, setting.mesh)(proposals, class_logits, class_deltas, batch["size"])


def make(setting: Setting) -> System:
    """Make the system from the sections `detect.rpn` and `detect.roi`."""
    parts = Faster(setting)
    parts.pyramid  # noqa: B018 - raises UserError for strides that do not fit
    return System(
        parts.init,
        lambda *args: parts.train(*args)[1],
        lambda *args: parts.detect(*args)[1],
        describe_boxes,
    )
