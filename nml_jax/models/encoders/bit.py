"""Big Transfer's ResNet v2 (BiT): Kolesnikov et al. 2020 (arXiv 1912.11370), with the constants of timm.

It is the pre-activation ResNet (arXiv 1603.05027) with group normalisation (arXiv 1803.08494) and weight
standardisation (arXiv 1903.10520). Google's own code standardises with an epsilon of 1e-10, timm with 1e-8.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.errors import UserError
from nml_jax.models.layers.initializers import kaiming_normal, normal
from nml_jax.models.layers.materialise import materialise

GROUPS = 32


class StandardizedConv(nn.Module):
    """A convolution without bias whose kernel has mean 0 and variance 1 for every output channel.

    The kernel is standardised in float32, with the biased variance. Padding is equal on both sides.
    """

    channels: int
    side: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.side, self.side, x.shape[-1], self.channels)
        kernel = self.param("kernel", kaiming_normal, shape).astype(jnp.promote_types(self.dtype, jnp.float32))
        kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
        kernel = kernel * jax.lax.rsqrt(jnp.mean(jnp.square(kernel), axis=(0, 1, 2)) + 1e-8)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(self.side // 2, self.side // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Block(nn.Module):
    """A pre-activation bottleneck: 1x1, 3x3 with the stride, 1x1 with four times the channels, added to the input.

    The shortcut of the first block of a stage is a 1x1 convolution of the normalised input.
    """

    channels: int
    stride: int
    first: bool
    drop_path: float
    norm: Callable[..., nn.GroupNorm]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = self.channels
        conv = partial(StandardizedConv, dtype=self.dtype)
        y = materialise(nn.relu(self.norm(name="norm1")(x)))
        if self.first:
            x = conv(4 * c, 1, self.stride, name="downsample_conv")(y)
        y = conv(c, 1, 1, name="conv1")(y)
        y = materialise(nn.relu(self.norm(name="norm2")(y)))
        y = conv(c, 3, self.stride, name="conv2")(y)
        y = materialise(nn.relu(self.norm(name="norm3")(y)))
        y = conv(4 * c, 1, 1, name="conv3")(y)
        # One draw per example and block: stochastic depth (arXiv 1603.09382), scaled to keep the expectation.
        y = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(y, deterministic=not train)
        return materialise(x + y)


class BiT(nn.Module):
    """A BiT ResNet with `blocks[i - 1]` bottlenecks in stage i = 1, 2, ...

    The stem is a 7x7 convolution with stride 2 to `width` channels and a 3x3 max-pool with stride 2, whose border is 0.
    Stage i has 4·width·2^(i-1) channels. Every stage but the first halves height and width. Fields are the keys of
    `config.model` in configs/common.py. Normalised images float32 [B, H, W, 3] of any size become

        features        float32 [B, D]           mean over the last map after the final norm and ReLU; timm's
                                                 `pre_logits`
        logits          float32 [B, num_classes] unless num_classes is 0
        stem_map        dtype [B, H', W', width] after the stem's pooling
        stage{i}_map    dtype [B, h, w, C]       output of stage i = 1, 2, ..., before the norm that follows
        stem, stage{i}  float32 [B, C]           the same maps, averaged over height and width

    Raises:
        UserError: the width cannot be split into 32 groups.
    """

    num_classes: int
    blocks: tuple[int, ...]
    width: int = 64
    epsilon: float = 1e-5
    drop_path: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.width % GROUPS:
            raise UserError(
                f"{self.width} channels (model.width) cannot be split into {GROUPS} groups of one size",
                f"make model.width a multiple of {GROUPS}",
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        wide = jnp.promote_types(self.dtype, jnp.float32)
        norm = partial(nn.GroupNorm, num_groups=GROUPS, epsilon=self.epsilon, use_fast_variance=False)
        x = StandardizedConv(self.width, 7, 2, self.dtype, name="stem_conv")(x)
        # The border is 0 although values may be negative: the padding of max_pool itself would be -inf.
        x = nn.max_pool(jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), (3, 3), strides=(2, 2))
        maps = {"stem": x}
        for i, count in enumerate(self.blocks):
            for j in range(count):
                rate = self.drop_path * (sum(self.blocks[:i]) + j) / max(sum(self.blocks) - 1, 1)
                stride, name = 2 if i > 0 and j == 0 else 1, f"stage{i + 1}_block{j}"
                x = block(
                    self.width * 2**i, stride, j == 0, rate, partial(norm, dtype=self.dtype), self.dtype, name=name
                )(x, train)
            maps[f"stage{i + 1}"] = x

        outputs = {f"{name}_map": value for name, value in maps.items()}
        outputs |= {name: jnp.mean(value.astype(wide), axis=(1, 2)) for name, value in maps.items()}
        outputs["features"] = jnp.mean(nn.relu(norm(dtype=wide, name="norm")(x)), axis=(1, 2))
        if self.num_classes:
            outputs["logits"] = nn.Dense(self.num_classes, kernel_init=normal(0.01), name="head")(outputs["features"])
        return outputs
