"""ResNet v1.5 and CLIP's modification of it (arXiv 2103.00020, section 2.4).

Version 1.5 is He et al. 2016 (arXiv 1512.03385) with the stride in the 3x3 of a bottleneck (arXiv 1706.02677). Padding
is equal on both sides, as in PyTorch; "SAME" would pad a stride-2 map on one side only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.errors import UserError
from nml_jax.models.layers.attention import attend
from nml_jax.models.layers.batch_norm import BatchNorm
from nml_jax.models.layers.checks import check_heads, check_size
from nml_jax.models.layers.initializers import Initializer, kaiming_normal, normal, normal_fan_in, uniform_fan_in
from nml_jax.models.layers.materialise import materialise


def _make_conv(channels: int, side: int, stride: int, *, init: Initializer, dtype: Any, name: str) -> nn.Conv:
    """Make a convolution without bias."""
    return nn.Conv(
        channels,
        (side, side),
        strides=stride,
        padding=[(side // 2, side // 2)] * 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=init,
        name=name,
    )


def _average_pool(x: jax.Array, side: int) -> jax.Array:
    """Average windows of side x side, [B, H, W, C] -> [B, H // side, W // side, C]."""
    return nn.avg_pool(x, (side, side), strides=(side, side)) if side > 1 else x


class Block(nn.Module):
    """A residual block: 3x3, 3x3, or the bottleneck 1x1, 3x3, 1x1 with four times the channels at its end.

    `average` replaces a convolution with stride by one with stride 1 and an average pool (bottlenecks only).
    """

    channels: int
    stride: int
    bottleneck: bool
    drop_path: float
    zero_init_residual: bool
    average: bool
    norm: Callable[..., BatchNorm]
    conv: Callable[..., nn.Conv]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c, stride, pool = self.channels, self.stride, 1
        if self.average:
            stride, pool = pool, stride
        layers = [(c, 1, 1), (c, 3, stride), (4 * c, 1, 1)] if self.bottleneck else [(c, 3, stride), (c, 3, 1)]
        y = x
        for i, (channels, side, step) in enumerate(layers, 1):
            last = i == len(layers)
            init = nn.initializers.zeros if last and self.zero_init_residual else nn.initializers.ones
            y = self.conv(channels, side, step, name=f"conv{i}")(_average_pool(y, pool) if last else y)
            y = self.norm(scale_init=init, name=f"bn{i}")(y, train)
            y = y if last else materialise(nn.relu(y))
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(y.shape[-1], 1, stride, name="downsample_conv")(_average_pool(x, pool))
            x = self.norm(name="downsample_bn")(x, train)
        # One draw per example and block: stochastic depth (arXiv 1603.09382), scaled to keep the expectation.
        y = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(y, deterministic=not train)
        return materialise(nn.relu(x + y))


class AttentionPool(nn.Module):
    """Pooling by multi-head attention, [B, H, W, C] -> [B, C] float32.

    The query is the mean over all positions; keys and values are that mean and the positions. The softmax is in
    float32. The output layer that follows in CLIP is `clip.ProjectedTower`'s projection.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, c = x.shape[0], x.shape[-1]
        x = x.reshape(b, -1, c)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        pos_embed = self.param("pos_embed", normal(c**-0.5), (1, *x.shape[1:]))
        x = x + pos_embed.astype(x.dtype)
        dense = partial(nn.Dense, c, kernel_init=normal_fan_in, dtype=self.dtype)
        q, k, v = dense(name="q")(x[:, :1]), dense(name="k")(x), dense(name="v")(x)
        q, k, v = (y.reshape(b, -1, self.heads, c // self.heads) for y in (q, k, v))
        return attend(q, k, v).reshape(b, c).astype(jnp.promote_types(self.dtype, jnp.float32))


class ResNet(nn.Module):
    """A ResNet with `blocks[i - 1]` blocks in stage i = 1, 2, ...

    Stage i has width·2^(i-1) channels, or four times as many at the output of a bottleneck. Every stage but the first
    halves height and width. Fields are the keys of `config.model` in configs/common.py. The `stem` "imagenet" is 7x7
    with stride 2 and a 3x3 max-pool with stride 2; "small" is 3x3 with stride 1. Normalised images float32 [B, H, W, 3]
    become

        features        float32 [B, D]           mean over the last map
        logits          float32 [B, num_classes] unless num_classes is 0
        stem_map        dtype [B, H', W', width] after the stem's activation and pooling
        stage{i}_map    dtype [B, h, w, C]       output of stage i = 1, 2, ...
        stem, stage{i}  float32 [B, C]           the same maps, averaged over height and width

    `clip` makes it CLIP's image tower. The stem is three 3x3 convolutions and a 2x2 average pool, whatever `stem` is.
    The blocks have average pools in place of strides. Attention with `heads` heads (None: heads of 64 channels)
    replaces the mean over the last map; its position embeddings fit only `image_size`.

    Raises:
        UserError: with `clip`, the image cannot be halved once more often than there are stages, the channels cannot be
            split over the heads, or, when called, the images have another size.
    """

    num_classes: int
    blocks: tuple[int, ...]
    bottleneck: bool
    width: int = 64
    stem: str = "imagenet"
    bn_group: int = 0
    bn_momentum: float = 0.9
    epsilon: float = 1e-5
    zero_init_residual: bool = True
    drop_path: float = 0.0
    clip: bool = False
    image_size: int = 224
    heads: int | None = None
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.clip:
            halved = 2 ** (len(self.blocks) + 1)
            if self.image_size % halved:
                raise UserError(
                    f"an image of {self.image_size} pixels cannot be reduced {halved}-fold, stage by stage",
                    f"make data.image_size a multiple of {halved}",
                )
            check_heads(self.width * halved, self.heads or 1, "width", "heads")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if self.clip:
            check_size(x, self.image_size)
        conv = partial(_make_conv, init=uniform_fan_in if self.clip else kaiming_normal, dtype=self.dtype)
        norm = partial(
            BatchNorm, group=self.bn_group, momentum=self.bn_momentum, epsilon=self.epsilon, dtype=self.dtype
        )
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        rates = [self.drop_path * i / max(sum(self.blocks) - 1, 1) for i in range(sum(self.blocks))]
        maps = {}

        stem = [("", self.width, 7, 2) if self.stem == "imagenet" else ("", self.width, 3, 1)]
        if self.clip:
            half = self.width // 2
            stem = [("1", half, 3, 2), ("2", half, 3, 1), ("3", self.width, 3, 1)]
        for i, channels, side, stride in stem:
            x = conv(channels, side, stride, name=f"stem_conv{i}")(x)
            x = nn.relu(norm(name=f"stem_bn{i}")(x, train))
        if self.clip:
            x = _average_pool(x, 2)
        elif self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=[(1, 1), (1, 1)])  # pyright: ignore[reportArgumentType]
        maps["stem"] = x
        for i, count in enumerate(self.blocks):
            for j in range(count):
                x = block(
                    channels=self.width * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    bottleneck=self.bottleneck,
                    drop_path=rates[sum(self.blocks[:i]) + j],
                    zero_init_residual=self.zero_init_residual,
                    average=self.clip,
                    norm=norm,
                    conv=conv,
                    name=f"stage{i + 1}_block{j}",
                )(x, train)
            maps[f"stage{i + 1}"] = x

        outputs = {f"{name}_map": value for name, value in maps.items()}
        wide = jnp.promote_types(self.dtype, jnp.float32)
        outputs |= {name: jnp.mean(value.astype(wide), axis=(1, 2)) for name, value in maps.items()}
        features = outputs[f"stage{len(self.blocks)}"]
        if self.clip:
            features = AttentionPool(self.heads or max(1, x.shape[-1] // 64), self.dtype, name="pool")(x)
        outputs["features"] = features
        if self.num_classes:
            outputs["logits"] = nn.Dense(self.num_classes, kernel_init=uniform_fan_in, name="head")(features)
        return outputs
