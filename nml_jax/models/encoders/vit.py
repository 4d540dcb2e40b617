"""Vision Transformer: Dosovitskiy et al. 2021 (arXiv 2010.11929) in the layout of DeiT (arXiv 2012.12877) and timm, or
of CLIP (arXiv 2103.00020). CLIP's text tower has the same blocks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.models.layers.attention import attend
from nml_jax.models.layers.checks import check_heads, check_patches, check_size
from nml_jax.models.layers.initializers import Initializer, normal, uniform_fan_in, xavier_uniform
from nml_jax.models.layers.layer_scale import LayerScale
from nml_jax.models.layers.materialise import materialise


def gelu(x: jax.Array) -> jax.Array:
    """Return the exact GELU, x·Φ(x)."""
    return nn.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Return x·sigmoid(1.702x), which OpenAI's CLIP uses in place of GELU."""
    return x * nn.sigmoid(1.702 * x)


class Style(NamedTuple):
    """The differences between published transformers: LayerNorm's epsilon, the activation of the MLP, and the
    initialisers of the four kernels of a block.
    """

    epsilon: float
    activation: Callable[[jax.Array], jax.Array]
    qkv: Initializer
    proj: Initializer
    fc1: Initializer
    fc2: Initializer

    def make_norm(self, name: str, dtype: Any) -> nn.LayerNorm:
        """Make a layer norm."""
        return nn.LayerNorm(epsilon=self.epsilon, use_fast_variance=False, dtype=dtype, name=name)


TIMM = Style(1e-6, gelu, *[normal(0.02)] * 4)
# open_clip leaves the blocks of the image tower at PyTorch's defaults.
CLIP = Style(1e-5, gelu, xavier_uniform, *[uniform_fan_in] * 3)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(dim / heads)) v with the softmax in float32. [B, N, dim] -> same.

    `qkv` holds the three projections in one kernel [dim, 3·dim], ordered (q | k | v), each by heads. With `causal`,
    token i attends only to tokens 0..i.
    """

    heads: int
    dtype: Any
    style: Style
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, d = x.shape
        qkv = nn.Dense(3 * d, kernel_init=self.style.qkv, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, d // self.heads), 2, 0)
        y = attend(q, k, v, causal=self.causal).reshape(b, n, d)
        return nn.Dense(d, kernel_init=self.style.proj, dtype=self.dtype, name="proj")(y)


class Mlp(nn.Module):
    """Two linear layers, dim -> 4·dim -> dim, with the activation between them. [B, N, dim] -> same."""

    dtype: Any
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.Dense(4 * x.shape[-1], kernel_init=self.style.fc1, dtype=self.dtype, name="fc1")(x)
        y = self.style.activation(y)
        return nn.Dense(x.shape[-1], kernel_init=self.style.fc2, dtype=self.dtype, name="fc2")(y)


class Block(nn.Module):
    """A pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)).

    With `layer_scale`, every channel of the two branches has a factor, which starts at this number.
    """

    heads: int
    dropout: float
    drop_path: float
    dtype: Any
    style: Style = TIMM
    causal: bool = False
    layer_scale: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def branch(y: jax.Array, scale: str) -> jax.Array:
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
            y = LayerScale(self.layer_scale, name=scale)(y) if self.layer_scale else y
            # One draw per example and branch: stochastic depth (arXiv 1603.09382), scaled to keep the expectation.
            return nn.Dropout(self.drop_path, broadcast_dims=(1, 2))(y, deterministic=not train)

        x = materialise(x)
        norm1, norm2 = (self.style.make_norm(name, self.dtype) for name in ("norm1", "norm2"))
        attention = Attention(self.heads, self.dtype, self.style, self.causal, name="attn")
        x = materialise(x + branch(attention(norm1(x)), "layer_scale1"))
        return x + branch(Mlp(self.dtype, self.style, name="mlp")(norm2(x)), "layer_scale2")


class ViT(nn.Module):
    """A ViT with a class token and learned position embeddings.

    Fields are the keys of `config.model` in configs/common.py. With N = (image_size / patch)², normalised images
    float32 [B, image_size, image_size, 3] become

        features         float32 [B, dim]         pool "cls": the class token; "gap": mean over the patch tokens
        logits           float32 [B, num_classes] unless num_classes is 0
        tokens           float32 [B, 1 + N, dim]  after the final norm; class token first, then patches row by row
        embed_tokens     dtype [B, 1 + N, dim]    input of the first block
        block{i}_tokens  dtype [B, 1 + N, dim]    output of block i = 0, 1, ..., before the final norm
        embed, block{i}  float32 [B, dim]         the same tokens, pooled as the features are

    Both ways of pooling have the same parameters; "gap" is timm's `global_pool="avg", fc_norm=False`.

    `clip` makes it CLIP's image tower: patches without a bias, a norm before the first block, epsilon 1e-5, other
    initial values. An `epsilon` replaces that of all norms. With `layer_scale`, the branches of the blocks have a
    factor per channel, as in DINOv2 (Oquab et al. 2023, arXiv 2304.07193).

    The features are timm's `pre_logits`.

    With `patch_dropout`, every image in training keeps its class token and a random round((1 - rate)·N) of its N
    patches (Li et al. 2023, arXiv 2212.00794). The draw depends only on `key` and the image's position in the global
    batch.

    `neftune` is not a key of `config.model`; only fine-tuning sets it. In training, it adds
    U(-1, 1)·neftune / sqrt(N·dim) to each embedded patch (arXiv 2310.05914).

    Raises:
        UserError: the image cannot be cut into patches, the width cannot be split over the heads, or, when called, the
            images have another size.
    """

    num_classes: int
    image_size: int
    dim: int
    depth: int
    heads: int
    patch: int = 16
    dropout: float = 0.0
    drop_path: float = 0.0
    pool: str = "cls"
    clip: bool = False
    quick_gelu: bool = False
    layer_scale: float = 0.0
    epsilon: float | None = None
    patch_dropout: float = 0.0
    neftune: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_patches(self.image_size, self.patch)
        check_heads(self.dim, self.heads, "dim", "heads")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_size(x, self.image_size)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        style = CLIP if self.clip else TIMM
        style = style._replace(
            activation=quick_gelu if self.quick_gelu else gelu, epsilon=self.epsilon or style.epsilon
        )
        layers = {}

        # timm leaves this layer at PyTorch's default.
        x = nn.Conv(
            self.dim,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            use_bias=not self.clip,
            kernel_init=uniform_fan_in,
            dtype=self.dtype,
            name="patch",
        )(x)
        x = x.reshape(x.shape[0], -1, self.dim)
        if train and self.neftune:
            draw = jax.random.uniform(self.make_rng("dropout"), x.shape, x.dtype, minval=-1.0, maxval=1.0)
            x = x + self.neftune / (x.shape[1] * self.dim) ** 0.5 * draw
        cls_std, pos_std = [self.dim**-0.5] * 2 if self.clip else (1e-6, 0.02)
        cls = self.param("cls", normal(cls_std), (1, 1, self.dim))
        pos_embed = self.param("pos_embed", normal(pos_std), (1, 1 + x.shape[1], self.dim))
        cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, self.dim))
        x = jnp.concatenate([cls, x], axis=1) + pos_embed.astype(x.dtype)
        x = self._drop_patches(x) if train else x
        if self.clip:
            x = style.make_norm("norm_pre", self.dtype)(x)
        layers["embed"] = x
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            x = block(
                self.heads, self.dropout, rate, self.dtype, style, layer_scale=self.layer_scale, name=f"block{i}"
            )(x, train)
            layers[f"block{i}"] = x

        tokens = style.make_norm("norm", jnp.promote_types(self.dtype, jnp.float32))(x)
        outputs = {f"{name}_tokens": value for name, value in layers.items()}
        outputs |= {name: self._pool(value) for name, value in layers.items()}
        outputs |= {"tokens": tokens, "features": self._pool(tokens)}
        if self.num_classes:
            outputs["logits"] = nn.Dense(self.num_classes, kernel_init=normal(0.02), name="head")(outputs["features"])
        return outputs

    def _drop_patches(self, x: jax.Array) -> jax.Array:
        """Keep the class token and a random share of the patches, in their order."""
        count = max(1, round((1 - self.patch_dropout) * (x.shape[1] - 1)))
        if count == x.shape[1] - 1:
            return x
        draw = jax.random.uniform(self.make_rng("dropout"), (len(x), x.shape[1] - 1))
        # XLA partitions a sort over the batch; top_k would gather all draws on every device.
        kept = jnp.sort(jnp.argsort(draw, axis=1)[:, :count], axis=1)
        return jnp.concatenate([x[:, :1], jnp.take_along_axis(x[:, 1:], kept[..., None], axis=1)], axis=1)

    def _pool(self, tokens: jax.Array) -> jax.Array:
        """Return the class token or the mean over the patches, float32 [B, dim]."""
        tokens = tokens.astype(jnp.promote_types(self.dtype, jnp.float32))
        return tokens[:, 0] if self.pool == "cls" else jnp.mean(tokens[:, 1:], axis=1)
