"""What all detectors share: the setting that they are made from, their three functions, and the pyramid."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from nml_jax import boxes
from nml_jax.errors import UserError
from nml_jax.models.layers.initializers import Initializer, kaiming_uniform, normal, xavier_uniform

INITIALIZERS: dict[str, Initializer] = {"xavier": xavier_uniform, "kaiming": kaiming_uniform}


class Setting(NamedTuple):
    """The arguments of a system.

    Fields:
        config: the section `detect` of configs/common.py.
        strides: of the encoder's maps, the finest first.
        dtype: type of the activations of convolutions.
        mesh: devices over which a batch is split, or None.
    """

    config: Any
    num_classes: int
    strides: tuple[int, ...]
    dtype: Any
    mesh: Mesh | None


@dataclasses.dataclass(frozen=True)
class System:
    """A detector as functions of the encoder's maps.

    init: `(key, shapes of the maps) -> params`.
    train: `(params, maps, batch, key) -> outputs`, what the objective of that name needs, targets included.
    detect: `(params, maps, batch) -> detections`, see `build`; the batch has only image and size.
    describe_batch: `canvas -> spec` of the batch beside "image"; objects are padded to one here, to any number in use.

    Fields of a batch of B images on canvases of H × W pixels, padded to M objects:
        image: uint8 [B, H, W, 3], which the encoder has read.
        size: int32 [B, 2], height and width of the picture. It stands at the top left, and beyond it is padding.
        boxes: float32 [B, M, 4] in pixels of the canvas, see `nml_jax.boxes`; those of padding may hold anything.
        labels: int32 [B, M], 0 to K − 1, or −1 for padding.
        masks, or maps and centres: for a system that asks for them in `describe_batch`, as mask.py and solo.py do.
    """

    init: Callable[..., Any]
    train: Callable[..., dict[str, jax.Array]]
    detect: Callable[..., dict[str, jax.Array]]
    describe_batch: Callable[[tuple[int, int]], dict[str, jax.ShapeDtypeStruct]]


def describe_boxes(canvas: tuple[int, int], **more: tuple[tuple[int, ...], Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe "size", "boxes" and "labels" of a batch with one object, and what a system needs beside them."""
    shapes = {"size": ((1, 2), jnp.int32), "boxes": ((1, 1, 4), jnp.float32), "labels": ((1, 1), jnp.int32), **more}
    return {name: jax.ShapeDtypeStruct(*of) for name, of in shapes.items()}


def map_images(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """Return a function of one image as one of a batch, which every device runs for its own rows without the others.

    Without this, a loop whose length depends on the image would stop for all devices in every round.
    """
    batched = jax.vmap(function)
    if mesh is None or mesh.size == 1:
        return batched
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(batched, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)


def map_shared(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """Return a function of parameters and a batch, which every device runs for its own rows.

    Where parameters are used for several levels, this adds up their gradients before the devices exchange them.
    """
    if mesh is None or mesh.size == 1:
        return function
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False)


def draw(module: nn.Module, key: jax.Array, *inputs: Any) -> tuple[Any, Any]:
    """Draw the parameters of a module for inputs of these shapes. Return them and the shapes of its outputs."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
    outputs, params = jax.jit(module.init_with_output)(key, *zeros)
    return params["params"], outputs


def make_conv(
    channels: int,
    side: int,
    dtype: Any,
    name: str,
    *,
    stride: int = 1,
    bias: float | None = 0.0,
    init: Initializer = normal(0.01),  # noqa: B008
) -> nn.Conv:
    """Make a convolution with equal padding on all sides, as in PyTorch. `bias` is its initial value; None: no bias."""
    return nn.Conv(
        channels,
        (side, side),
        strides=stride,
        padding=[(side // 2, side // 2)] * 2,
        use_bias=bias is not None,
        kernel_init=init,
        bias_init=nn.initializers.constant(bias or 0.0),
        dtype=dtype,
        name=name,
    )


class Layer(nn.Module):
    """A convolution without bias, GroupNorm with statistics in float32, and a ReLU."""

    width: int
    side: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = make_conv(self.width, self.side, self.dtype, "conv", bias=None)(x)
        return nn.relu(nn.GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype, name="norm")(x))


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017, arXiv 1612.03144): maps C, the finest first, to `levels` maps of one width.

    Levels beyond the encoder's are every second cell of the last (`extra` "pool"), or 3x3 convolutions with stride 2,
    with a ReLU between them ("conv"; RetinaNet's P6 and P7). The first of these reads C5 or P5 (`extra_from`).
    """

    width: int
    levels: int
    extra: str
    extra_from: str
    kernel_init: Initializer
    dtype: Any

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        conv = partial(make_conv, self.width, dtype=self.dtype, init=self.kernel_init)
        last = len(maps) - 1
        out = [conv(side=1, name=f"lateral{i}")(x) for i, x in enumerate(maps)]
        for i in reversed(range(last)):
            out[i] += enlarge_nearest(out[i + 1], out[i].shape[1:3])
        out = [conv(side=3, name=f"output{i}")(x) for i, x in enumerate(out)]
        for i in range(len(maps), self.levels):
            if self.extra == "pool":
                out.append(out[-1][:, ::2, ::2])
            else:
                x = nn.relu(out[-1]) if i > len(maps) else maps[last] if self.extra_from == "c5" else out[-1]
                out.append(conv(side=3, name=f"extra{i}", stride=2)(x))
        return out


def make_pyramid(setting: Setting, strides: Sequence[int], extra: str, extra_from: str = "") -> Pyramid:
    """Make the pyramid with levels of these strides.

    Raises:
        UserError: they do not double, or do not go from one of the encoder's to its last or beyond.
    """
    known = [stride for stride in strides if stride in setting.strides]
    wanted = [strides[0] * 2**i for i in range(len(strides))]
    if list(strides) != wanted or known != list(setting.strides[-len(known) :]) or not known:
        has = ", ".join(map(str, setting.strides))
        cure = "give strides that double, from one of the encoder's to its last or beyond, or another model.stem"
        raise UserError(f"levels of strides {tuple(strides)} do not fit an encoder of strides {has}", cure)
    config = setting.config.fpn
    if config.init not in INITIALIZERS:
        raise UserError(f"detect.fpn.init={config.init!r} is unknown", f"choose one of {', '.join(INITIALIZERS)}")
    init = INITIALIZERS[config.init]
    return Pyramid(config.width, len(strides), extra, extra_from, init, setting.dtype)


def choose_maps(setting: Setting, maps: Sequence[Any], strides: Sequence[int]) -> list[Any]:
    """Choose the encoder's maps of these strides."""
    return [x for stride, x in zip(setting.strides, maps, strict=True) if stride in strides]


def enlarge_nearest(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Resize maps [B, h, w, C] to a shape by the nearest cell: cell i reads cell ⌊i · h / H⌋."""
    for axis, (old, new) in enumerate(zip(x.shape[1:3], shape, strict=True), 1):
        if new == 2 * old:
            x = jnp.repeat(x, 2, axis)
        elif new != old:
            x = jnp.take(x, np.arange(new) * old // new, axis)
    return x


def make_all_anchors(
    setting: Setting, maps: Sequence[jax.Array], strides: Sequence[int], scales: Sequence[float]
) -> list[np.ndarray]:
    """Make the anchors of every level, float32 [N, 4] each."""
    how = setting.config.anchors
    return [
        boxes.make_anchors(x.shape[1:3], stride, scales, how.ratios, how.rounded)
        for x, stride in zip(maps, strides, strict=True)
    ]


def find_inside(maps: Sequence[jax.Array], strides: Sequence[int], per_cell: int, size: jax.Array) -> list[jax.Array]:
    """Find which anchors of every level stand within a picture of size [2], bool [N] each."""
    return [boxes.are_inside(x.shape[1:3], s, per_cell, size) for x, s in zip(maps, strides, strict=True)]


def flatten_levels(maps: Sequence[jax.Array], width: int) -> list[jax.Array]:
    """Reshape outputs [B, h, w, A · width] of every level to float32 [B, h · w · A, width]."""
    return [x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(len(x), -1, width) for x in maps]


def finish_detections(
    found: jax.Array, scores: jax.Array, classes: jax.Array, valid: jax.Array, config: Any
) -> dict[str, jax.Array]:
    """Suppress overlaps class by class, and keep the `max_detections` best of an image.

    Args:
        found: boxes [N, 4]; scores: [N]; classes: int32 [N]; valid: bool [N].
    """
    order = jnp.argsort(-jnp.where(valid, scores, -jnp.inf), stable=True)
    found, scores, classes, valid = (x[order] for x in (found, scores, classes, valid))
    keep = boxes.suppress(found, valid, config.nms, classes)
    ranked = jnp.where(keep, scores, -jnp.inf)
    short = max(config.max_detections - len(ranked), 0)
    best, index = jax.lax.top_k(jnp.pad(ranked, (0, short), constant_values=-jnp.inf), config.max_detections)
    index, exists = jnp.minimum(index, len(ranked) - 1), best > -jnp.inf
    return {
        "boxes": jnp.where(exists[:, None], found[index], 0),
        "scores": jnp.where(exists, best, 0),
        "classes": jnp.where(exists, classes[index], -1).astype(jnp.int32),
    }
