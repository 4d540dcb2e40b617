"""EfficientNet (Tan & Le 2019, arXiv 1905.11946) and EfficientNet-Lite, in timm's layout.

Lite has no squeeze-and-excitation and ReLU6 in place of SiLU. Google's own weights need TensorFlow's padding and
epsilon; those trained in PyTorch need PyTorch's. Tensors have the same names and shapes in both.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.errors import UserError
from nml_jax.models.layers.batch_norm import BatchNorm
from nml_jax.models.layers.depthwise import PADDINGS, DepthwiseConv
from nml_jax.models.layers.initializers import kaiming_normal, uniform_fan_out
from nml_jax.models.layers.materialise import materialise

# Table 1 of the paper: side of the depthwise kernels, stride of the first block, expansion of the channels.
STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
_WIDTHS = (32, 16, 24, 40, 80, 112, 192, 320, 1280)


def scale_blocks(depth: float) -> tuple[int, ...]:
    """Return the blocks per stage of B0, times `depth`, rounded up."""
    return tuple(math.ceil(n * depth) for n in _BLOCKS)


def scale_widths(width: float) -> tuple[int, ...]:
    """Return the channels of B0's stem, stages and head, times `width`.

    Each is rounded to a multiple of 8, and up where rounding down would lose more than a tenth.
    """
    rounded = [max(8, int(n * width + 4) // 8 * 8) for n in _WIDTHS]
    return tuple(r + 8 * (r < 0.9 * n * width) for r, n in zip(rounded, _WIDTHS, strict=True))


class SqueezeExcite(nn.Module):
    """A gate per channel that depends on the whole map (Hu et al. 2018, arXiv 1709.01507). [B, H, W, C] -> same."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, kernel_init=kaiming_normal, dtype=self.dtype)
        y = jnp.mean(x.astype(jnp.promote_types(self.dtype, jnp.float32)), axis=(1, 2))
        y = dense(x.shape[-1], name="expand")(nn.silu(dense(self.width, name="reduce")(y)))
        return x * nn.sigmoid(y)[:, None, None]


class Block(nn.Module):
    """An inverted bottleneck: 1x1 (unless `expansion` is 1), depthwise, gate, 1x1, and the residual if shapes agree."""

    channels: int
    side: int
    stride: int
    expansion: int
    squeeze: bool
    drop_path: float
    padding: str
    activation: Any
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(nn.Conv, kernel_size=(1, 1), use_bias=False, kernel_init=kaiming_normal, dtype=self.dtype)
        y = x
        if self.expansion > 1:
            y = conv(self.expansion * x.shape[-1], name="expand_conv")(y)
            y = self.activation(self.norm(name="expand_bn")(y, train))
        y = DepthwiseConv(self.side, self.stride, self.padding, dtype=self.dtype, name="depthwise_conv")(y)
        y = materialise(self.activation(self.norm(name="depthwise_bn")(y, train)))
        if self.squeeze:
            y = SqueezeExcite(round(x.shape[-1] / 4), self.dtype, name="squeeze")(y)
        y = self.norm(name="project_bn")(conv(self.channels, name="project_conv")(y), train)
        if x.shape != y.shape:
            return materialise(y)
        # One draw per example and block: stochastic depth (arXiv 1603.09382), scaled to keep the expectation.
        return materialise(x + nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(y, deterministic=not train))


class EfficientNet(nn.Module):
    """An EfficientNet of the first len(blocks) stages of STAGES.

    Fields are the keys of `config.model` in configs/common.py. Normalised images float32 [B, H, W, 3] become

        features        float32 [B, widths[-1]]  mean over the last map, after the 1x1 convolution, norm and activation
                                                 that follow the stages; timm's `forward_head(x, pre_logits=True)`
        logits          float32 [B, num_classes] unless num_classes is 0; `dropout` applies to the features before it
        stem_map        dtype [B, h, w, C]       after the stem's activation
        stage{i}_map    dtype [B, h, w, C]       output of stage i = 1, 2, ...
        stem, stage{i}  float32 [B, C]           the same maps, averaged over height and width

    As in timm and Google's code, block j of n has the stochastic depth drop_path·j/n; so the last has less than the
    rate.

    Fields:
        blocks: per stage.
        widths: channels of the stem, of each stage and of the features.
        squeeze: with squeeze-and-excitation and SiLU; else, as in Lite, without and with ReLU6.
        padding: a key of depthwise.PADDINGS, for all convolutions.

    Raises:
        UserError: there are more stages than STAGES, or not two more widths than stages.
    """

    num_classes: int
    blocks: tuple[int, ...] = _BLOCKS
    widths: tuple[int, ...] = _WIDTHS
    padding: str = "symmetric"
    epsilon: float = 1e-5
    squeeze: bool = True
    bn_group: int = 0
    bn_momentum: float = 0.9
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if not 0 < len(self.blocks) <= len(STAGES):
            raise UserError(
                f"model.blocks={self.blocks} has {len(self.blocks)} stages", f"give 1 to {len(STAGES)} for EfficientNet"
            )
        if len(self.widths) != len(self.blocks) + 2:
            raise UserError(
                f"model.widths={self.widths} has {len(self.widths)} numbers for {len(self.blocks)} stages",
                "give the channels of the stem, of each stage and of the features",
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        activation = nn.silu if self.squeeze else nn.relu6
        norm = partial(
            BatchNorm, group=self.bn_group, momentum=self.bn_momentum, epsilon=self.epsilon, dtype=self.dtype
        )
        conv = partial(nn.Conv, use_bias=False, kernel_init=kaiming_normal, dtype=self.dtype)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block

        pads = PADDINGS[self.padding](3)(x.shape[1], x.shape[2], 2)
        x = conv(self.widths[0], (3, 3), strides=2, padding=pads, name="stem_conv")(x)
        x = materialise(activation(norm(name="stem_bn")(x, train)))
        maps, done = {"stem": x}, 0
        for i, (count, (side, stride, expansion)) in enumerate(zip(self.blocks, STAGES, strict=False), 1):
            for j in range(count):
                x = block(
                    channels=self.widths[i],
                    side=side,
                    stride=stride if j == 0 else 1,
                    expansion=expansion,
                    squeeze=self.squeeze,
                    drop_path=self.drop_path * (done + j) / sum(self.blocks),
                    padding=self.padding,
                    activation=activation,
                    norm=norm,
                    dtype=self.dtype,
                    name=f"stage{i}_block{j}",
                )(x, train)
            maps[f"stage{i}"], done = x, done + count

        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = activation(norm(name="head_bn")(conv(self.widths[-1], (1, 1), name="head_conv")(x), train))
        outputs = {f"{name}_map": value for name, value in maps.items()}
        outputs |= {name: jnp.mean(value.astype(wide), axis=(1, 2)) for name, value in maps.items()}
        outputs["features"] = features = jnp.mean(x.astype(wide), axis=(1, 2))
        if self.num_classes:
            dropped = nn.Dropout(self.dropout)(features, deterministic=not train)
            outputs["logits"] = nn.Dense(self.num_classes, kernel_init=uniform_fan_out, name="head")(dropped)
        return outputs
