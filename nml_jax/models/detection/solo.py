"""SOLOv2 (Wang et al. 2020, arXiv 2003.10152): a kernel for every cell of grids, applied to one map of features."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.errors import UserError
from nml_jax.models.detection.system import (
    Layer,
    Setting,
    System,
    choose_maps,
    describe_boxes,
    draw,
    make_conv,
    make_pyramid,
    map_images,
    map_shared,
)
from nml_jax.objectives.detection import cells


def resize(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Resize maps [B, h, w, C] bilinearly, without a filter where they shrink."""
    return jax.image.resize(x, (len(x), *shape, x.shape[-1]), "bilinear", antialias=False)


def add_coordinates(x: jax.Array) -> jax.Array:
    """Add two channels to maps [B, H, W, C]: x and y, from −1 at the first cell to 1 at the last."""
    height, width = x.shape[1:3]
    across, down = jnp.linspace(-1, 1, width, dtype=x.dtype), jnp.linspace(-1, 1, height, dtype=x.dtype)
    grid = jnp.stack(jnp.meshgrid(across, down), -1)
    return jnp.concatenate([x, jnp.broadcast_to(grid, (len(x), *grid.shape))], -1)


class Kernels(nn.Module):
    """Two towers on the levels, resized to grids: a kernel and class logits for every cell, shared by all levels."""

    num_classes: int
    grids: tuple[int, ...]
    width: int
    depth: int
    kernel: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        def tower(kind: str, channels: int, bias: float) -> Any:
            layers = [Layer(self.width, 3, self.groups, self.dtype, name=f"{kind}{i}") for i in range(self.depth)]
            return nn.Sequential([*layers, make_conv(channels, 3, self.dtype, f"{kind}_out", bias=bias)])

        kernel = tower("kernel", self.kernel, 0.0)
        category = tower("class", self.num_classes, -math.log(99))
        kernels, logits = [], []
        for level, side in zip(self.match_sizes(levels), self.grids, strict=True):
            x = resize(add_coordinates(level), (side, side))
            kernels.append(kernel(x))
            logits.append(category(x[..., :-2]))
        return kernels, logits

    def match_sizes(self, levels: Sequence[jax.Array]) -> list[jax.Array]:
        """Halve the finest level, and bring the coarsest to the size of the one before."""
        first, *middle, last = levels
        halved = resize(first, (first.shape[1] // 2, first.shape[2] // 2))
        return [halved, *middle, resize(last, middle[-1].shape[1:3])]


class MaskFeatures(nn.Module):
    """One map of features from the encoder's levels, at the size of the finest."""

    width: int
    out: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
        layer = lambda width, side, name: Layer(width, side, self.groups, self.dtype, name=name)  # noqa: E731
        total = layer(self.width, 3, "level0_0")(levels[0])
        for i, x in enumerate(levels[1:], 1):
            x = add_coordinates(x) if i == len(levels) - 1 else x
            for j in range(i):
                x = layer(self.width, 3, f"level{i}_{j}")(x)
                x = resize(x, (2 * x.shape[1], 2 * x.shape[2]))
            total += x
        return layer(self.out, 1, "out")(total)


def make(setting: Setting) -> System:
    """Make the system from the section `detect.solo`."""
    config, own, num_classes = setting.config, setting.config.solo, setting.num_classes
    if not len(own.strides) == len(own.grids) == len(own.ranges):
        cure = "give one grid and one range of sizes for each level"
        raise UserError(f"detect.solo has {len(own.strides)} strides, {len(own.grids)} grids", cure)
    if len(own.strides) < 3:
        cure = "give three strides or more, such as (4, 8, 16)"
        raise UserError(f"detect.solo.strides={tuple(own.strides)}: SOLOv2 resizes its first and last level", cure)
    pyramid = make_pyramid(setting, own.strides, "pool")
    real = sum(stride in setting.strides for stride in own.strides)
    kernels = Kernels(num_classes, tuple(own.grids), own.width, own.depth, own.kernel, own.groups, setting.dtype)
    features = MaskFeatures(own.mask_width, own.kernel, own.groups, setting.dtype)
    strides = (2 * own.strides[0], *own.strides[1:-1], own.strides[-2])
    grid_of_cell = [level for level, side in enumerate(own.grids) for _ in range(side**2)]

    def init(key: jax.Array, shapes: Sequence[jax.ShapeDtypeStruct]) -> dict[str, Any]:
        keys = jax.random.split(key, 3)
        fpn, levels = draw(pyramid, keys[0], choose_maps(setting, shapes, own.strides))
        return {
            "fpn": fpn,
            "kernels": draw(kernels, keys[1], levels)[0],
            "features": draw(features, keys[2], levels[:real])[0],
        }

    def run(params: Any, maps: Sequence[jax.Array]) -> tuple[jax.Array, list[jax.Array], jax.Array]:
        """Return kernels [B, cells, E] of all grids, class logits [B, S, S, K] of each, and features [B, h, w, E]."""
        levels: Any = pyramid.apply({"params": params["fpn"]}, choose_maps(setting, maps, own.strides))
        check_sizes(levels[:real])
        run_kernels = map_shared(lambda params, x: kernels.apply({"params": params}, x), setting.mesh)
        found, logits = run_kernels(params["kernels"], levels)
        flat = jnp.concatenate([x.reshape(len(x), -1, own.kernel) for x in found], 1)
        shared: Any = features.apply({"params": params["features"]}, levels[:real])
        wide = jnp.promote_types(setting.dtype, jnp.float32)
        return flat.astype(wide), [x.astype(wide) for x in logits], shared.astype(wide)

    def train(params: Any, maps: Sequence[jax.Array], batch: Any, key: jax.Array | None) -> dict[str, jax.Array]:
        found, logits, shared = run(params, maps)
        shape = batch["image"].shape[1:3]

        def assign(boxes: jax.Array, labels: jax.Array, centres: jax.Array) -> Any:
            return cells.assign_cells(boxes, labels, centres, shape, own)

        targets = map_images(assign, setting.mesh)(batch["boxes"], batch["labels"], batch["centres"])

        def predict(kernels: jax.Array, shared: jax.Array, cell: jax.Array) -> jax.Array:
            return jnp.einsum("pc,hwc->phw", kernels[cell], shared)

        masks = map_images(predict, setting.mesh)(found, shared, targets["cell"])

        def unpack(maps: jax.Array, owner: jax.Array) -> jax.Array:
            return jnp.unpackbits(maps[owner], axis=-1, count=shared.shape[2])

        painted = map_images(unpack, setting.mesh)(batch["maps"], targets["owner"])
        flat = [x.reshape(len(x), -1, num_classes) for x in logits]
        inside = find_inside(shared.shape[1:3], own.strides[0], batch["size"])
        return {"logits": jnp.concatenate(flat, 1), "masks": masks, "painted": painted, "inside": inside, **targets}

    def detect(params: Any, maps: Sequence[jax.Array], batch: Any) -> dict[str, jax.Array]:
        found, logits, shared = run(params, maps)
        scores = [cells.keep_peaks(jax.nn.sigmoid(x)).reshape(len(x), -1, num_classes) for x in logits]
        inside = find_inside(shared.shape[1:3], own.strides[0], batch["size"])
        least = jnp.asarray([strides[level] for level in grid_of_cell])

        def finish(
            kernels: jax.Array, scores: jax.Array, shared: jax.Array, inside: jax.Array, size: jax.Array
        ) -> dict[str, jax.Array]:
            best, index = jax.lax.top_k(scores.reshape(-1), min(own.candidates, scores.size))
            cell, classes = index // num_classes, index % num_classes
            masks = jax.nn.sigmoid(jnp.einsum("pc,hwc->phw", kernels[cell], shared)) * inside
            best = jnp.where(best > own.score_threshold, best, 0)
            kept = cells.suppress_masks(masks, best, classes, least[cell], own, config.max_detections)
            return {**kept, "boxes": cells.find_boxes(kept["maps"] > own.threshold, own.strides[0], size)}

        args = found, jnp.concatenate(scores, 1), shared, inside, batch["size"]
        return map_images(finish, setting.mesh)(*args)

    def describe_batch(canvas: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        height, width = (math.ceil(side / own.strides[0]) for side in canvas)
        packed = (1, 1, height, math.ceil(width / 8)), jnp.uint8
        return describe_boxes(canvas, maps=packed, centres=((1, 1, 2), jnp.float32))

    return System(init, train, detect, describe_batch)


def find_inside(shape: tuple[int, ...], stride: int, size: jax.Array) -> jax.Array:
    """Find which cells of a map [h, w] begin inside pictures of sizes [B, 2], bool [B, h, w]."""
    rows = jnp.arange(shape[0]) * stride < size[:, :1]
    columns = jnp.arange(shape[1]) * stride < size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def check_sizes(levels: Sequence[jax.Array]) -> None:
    """Raise a UserError unless each level is exactly twice as large as the next."""
    finest = levels[0].shape[1:3]
    if any(tuple(2**i * side for side in x.shape[1:3]) != finest for i, x in enumerate(levels)):
        cure = f"give a canvas whose sides are multiples of {2 ** (len(levels) - 1)} cells of the finest level"
        raise UserError(f"the levels of SOLOv2 have sizes {[x.shape[1:3] for x in levels]}, which do not double", cure)
