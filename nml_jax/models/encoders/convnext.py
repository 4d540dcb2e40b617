"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545), in timm's layout."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.errors import UserError
from nml_jax.models.encoders.vit import gelu
from nml_jax.models.layers.depthwise import DepthwiseConv
from nml_jax.models.layers.initializers import normal
from nml_jax.models.layers.layer_scale import LayerScale
from nml_jax.models.layers.materialise import materialise


class Mlp(nn.Module):
    """Two linear layers, C -> 4·C -> C, with exact GELU between them. [..., C] -> same."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, kernel_init=normal(0.02), dtype=self.dtype)
        return dense(x.shape[-1], name="fc2")(gelu(dense(4 * x.shape[-1], name="fc1")(x)))


class Block(nn.Module):
    """Depthwise 7x7, norm, MLP, layer scale, and the residual."""

    drop_path: float
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = DepthwiseConv(7, bias=True, init=normal(0.02), dtype=self.dtype, name="depthwise_conv")(x)
        y = LayerScale(1e-6, name="layer_scale")(Mlp(self.dtype, name="mlp")(self.norm(name="norm")(y)))
        # One draw per example and block: stochastic depth (arXiv 1603.09382), scaled to keep the expectation.
        return materialise(x + nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(y, deterministic=not train))


class ConvNeXt(nn.Module):
    """A ConvNeXt with `blocks[i - 1]` blocks of `widths[i - 1]` channels in stage i = 1, 2, ...

    The stem reduces height and width 4-fold, and every stage but the first 2-fold; what is left over at the lower and
    right edge is not seen. Fields are the keys of `config.model` in configs/common.py. Normalised images
    float32 [B, H, W, 3] become

        features        float32 [B, widths[-1]]  mean over the last map, then the final norm
        hidden          float32 [B, hidden]      with `hidden`: features, a linear layer, GELU
        logits          float32 [B, num_classes] unless num_classes is 0
        stem_map        dtype [B, h, w, C]       after the stem's norm
        stage{i}_map    dtype [B, h, w, C]       output of stage i
        stem, stage{i}  float32 [B, C]           the same maps, averaged over height and width

    Without `hidden`, "features" equals timm's `forward_head(x, pre_logits=True)`. With it, timm hands out "hidden"
    and open_clip's trunk hands out "features".

    Raises:
        UserError: there are not as many widths as stages or, when called, the images are too small.
    """

    num_classes: int
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    hidden: int = 0
    epsilon: float = 1e-6
    drop_path: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.widths):
            raise UserError(
                f"model.widths={self.widths} has {len(self.widths)} numbers for {len(self.blocks)} stages",
                "give the channels of each stage",
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        smallest = 2 ** (len(self.blocks) + 1)
        if min(x.shape[1:3]) < smallest:
            raise UserError(
                f"images of {x.shape[1]}x{x.shape[2]} pixels cannot be reduced {smallest}-fold",
                f"set data.image_size to {smallest} or more",
            )
        wide = jnp.promote_types(self.dtype, jnp.float32)
        norm = partial(nn.LayerNorm, epsilon=self.epsilon, use_fast_variance=False, dtype=self.dtype)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block

        def reduce(x: jax.Array, channels: int, side: int, name: str) -> jax.Array:
            conv = nn.Conv(channels, (side, side), side, "VALID", kernel_init=normal(0.02), dtype=self.dtype, name=name)
            return conv(x)

        x = norm(name="stem_norm")(reduce(x, self.widths[0], 4, "stem_conv"))
        maps, done = {"stem": x}, 0
        for i, (count, channels) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            if i > 1:
                x = reduce(norm(name=f"stage{i}_norm")(x), channels, 2, f"stage{i}_conv")
            for j in range(count):
                rate = self.drop_path * (done + j) / max(sum(self.blocks) - 1, 1)
                x = block(rate, norm, self.dtype, name=f"stage{i}_block{j}")(x, train)
            maps[f"stage{i}"], done = x, done + count

        outputs = {f"{name}_map": value for name, value in maps.items()}
        outputs |= {name: jnp.mean(value.astype(wide), axis=(1, 2)) for name, value in maps.items()}
        y = outputs["features"] = norm(dtype=wide, name="norm")(outputs[f"stage{len(self.blocks)}"])
        dense = partial(nn.Dense, kernel_init=normal(0.02))
        if self.hidden:
            y = outputs["hidden"] = gelu(dense(self.hidden, name="hidden")(y))
        if self.num_classes:
            outputs["logits"] = dense(self.num_classes, name="head")(y)
        return outputs
