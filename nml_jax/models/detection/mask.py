"""Mask R-CNN (He et al. 2017, arXiv 1703.06870): Faster R-CNN with a mask for each region."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.models.detection.faster import Faster
from nml_jax.models.detection.system import Setting, System, describe_boxes, draw, make_conv, map_images
from nml_jax.models.layers.initializers import kaiming_normal
from nml_jax.objectives.detection.crops import crop_masks


class Double(nn.Module):
    """A transposed 2x2 convolution with stride 2: [R, h, w, C] -> [R, 2h, 2w, channels]."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", kaiming_normal, (2, 2, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        out = jnp.einsum("rhwc,ijcd->rhiwjd", x.astype(self.dtype), kernel.astype(self.dtype))
        return out.reshape(len(x), 2 * x.shape[1], 2 * x.shape[2], -1) + bias.astype(self.dtype)


class MaskHead(nn.Module):
    """3x3 convolutions on pooled regions, then twice the size: logits of a mask for every class."""

    num_classes: int
    width: int
    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.depth):
            x = nn.relu(make_conv(self.width, 3, self.dtype, f"conv{i}", init=kaiming_normal)(x))
        x = nn.relu(Double(self.width, self.dtype, name="double")(x))
        x = make_conv(self.num_classes, 1, self.dtype, "out", init=kaiming_normal)(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))


def make(setting: Setting) -> System:
    """Make the system from the sections `detect.rpn`, `detect.roi` and `detect.mask`."""
    config, own = setting.config, setting.config.mask
    parts = Faster(setting, own.low_quality if own.low_quality <= 1 else None)
    parts.pyramid  # noqa: B018 - raises UserError for strides that do not fit
    head = MaskHead(setting.num_classes, config.fpn.width, own.depth, setting.dtype)

    def init(key: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct]) -> dict[str, Any]:
        keys = jax.random.split(key)
        regions = jax.ShapeDtypeStruct((1, own.side, own.side, config.fpn.width), jnp.float32)
        return {**parts.init(keys[0], shapes), "mask": draw(head, keys[1], regions)[0]}

    def run(params: Any, levels: Sequence[jax.Array], regions: jax.Array, classes: jax.Array) -> jax.Array:
        """Return the logits [B, R, 2 · side, 2 · side] of regions [B, R, 4] for their classes [B, R]."""
        pooled = parts.pool(levels, regions, own.side)
        flat: Any = head.apply({"params": params["mask"]}, pooled.reshape(-1, *pooled.shape[2:]))
        chosen = jnp.take_along_axis(flat, jnp.maximum(classes, 0).reshape(-1, 1, 1, 1), axis=3)
        return chosen.reshape(*regions.shape[:2], *flat.shape[1:3])

    def train(params: Any, maps: Sequence[jax.Array], batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        levels, outputs = parts.train(params, maps, batch, key)
        first = parts.count_positive(outputs["regions"].shape[1])
        index, regions = outputs["roi_index"][:, :first], outputs["regions"][:, :first]
        classes = jnp.where(index >= 0, outputs["target_class"][:, :first], -1)

        def crop(masks: jax.Array, objects: jax.Array, index: jax.Array, regions: jax.Array) -> jax.Array:
            owner = jnp.maximum(index, 0)
            return crop_masks(masks[owner], objects[owner], regions, 2 * own.side, config.roi.aligned, own.binarise)

        targets = map_images(crop, setting.mesh)(batch["masks"], batch["boxes"], index, regions)
        logits = run(params, levels, regions, classes)
        return {**outputs, "mask_logits": logits, "mask_target": targets, "mask_index": index}

    def detect(params: Any, maps: Sequence[jax.Array], batch: Any) -> dict[str, jax.Array]:
        levels, found = parts.detect(params, maps, batch)
        logits = run(params, levels, found["boxes"], found["classes"])
        exists = (found["classes"] >= 0)[..., None, None]
        return {**found, "masks": jnp.where(exists, jax.nn.sigmoid(logits), 0)}

    def describe_batch(canvas: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        return describe_boxes(canvas, masks=((1, 1, own.crop, own.crop), jnp.uint8))

    return System(init, train, detect, describe_batch)
