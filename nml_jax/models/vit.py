"""Vision Transformer: Dosovitskiy et al. 2021 (arXiv 2010.11929) in the layout of DeiT (arXiv 2012.12877) and timm."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.errors import UserError
from nml_jax.models.initializers import normal, uniform_fan_in


def _norm(name: str, dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(dim / heads)) v with the softmax in float32. [B, N, dim] -> same.

    `qkv` holds the three projections in one kernel [dim, 3·dim], ordered (q | k | v), each by heads.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, d = x.shape
        qkv = nn.Dense(3 * d, kernel_init=normal(0.02), dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, d // self.heads), 2, 0)
        y = jax.nn.dot_product_attention(q, k, v).reshape(b, n, d)
        return nn.Dense(d, kernel_init=normal(0.02), dtype=self.dtype, name="proj")(y)


class Mlp(nn.Module):
    """dim -> 4·dim -> dim with the exact GELU between. [B, N, dim] -> same."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.Dense(4 * x.shape[-1], kernel_init=normal(0.02), dtype=self.dtype, name="fc1")(x)
        y = nn.gelu(y, approximate=False)
        return nn.Dense(x.shape[-1], kernel_init=normal(0.02), dtype=self.dtype, name="fc2")(y)


class Block(nn.Module):
    """A pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    heads: int
    dropout: float
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def branch(y: jax.Array) -> jax.Array:
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
            # One draw per example and branch: stochastic depth (arXiv 1603.09382), scaled to keep the expectation.
            return nn.Dropout(self.drop_path, broadcast_dims=(1, 2))(y, deterministic=not train)

        x = x + branch(Attention(self.heads, self.dtype, name="attn")(_norm("norm1", self.dtype)(x)))
        return x + branch(Mlp(self.dtype, name="mlp")(_norm("norm2", self.dtype)(x)))


class ViT(nn.Module):
    """A ViT with a class token and learned position embeddings.

    Fields are the keys of `config.model` in configs/common.py. With N = (image_size / patch)², normalised images
    float32 [B, image_size, image_size, 3] become

        features         float32 [B, dim]         pool "cls": the class token; "gap": mean over the patch tokens
        logits           float32 [B, num_classes]
        tokens           float32 [B, 1 + N, dim]  after the final norm; class token first, then patches row by row
        embed_tokens     dtype [B, 1 + N, dim]    input of the first block
        block{i}_tokens  dtype [B, 1 + N, dim]    output of block i = 0, 1, ..., before the final norm
        embed, block{i}  float32 [B, dim]         the same tokens, pooled as the features are

    Both ways of pooling have the same parameters; "gap" is timm's `global_pool="avg", fc_norm=False`.

    Raises:
        UserError: the patches do not tile the image, the heads do not split the width, or (when called) the images
            have another size.
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
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise UserError(
                f"an image of {self.image_size} pixels cannot be cut into patches of {self.patch} (model.patch)",
                "make data.image_size a multiple of model.patch",
            )
        if self.dim % self.heads:
            raise UserError(
                f"a width of {self.dim} (model.dim) cannot be split over {self.heads} heads (model.heads)",
                "make model.dim a multiple of model.heads",
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise UserError(
                f"a ViT built for {self.image_size}x{self.image_size} pixels got images of {x.shape[1]}x{x.shape[2]}",
                "its position embeddings fit one size: make augment.test_size equal to data.image_size, or None",
            )
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        layers = {}

        # timm leaves this layer at PyTorch's default.
        x = nn.Conv(
            self.dim,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            kernel_init=uniform_fan_in,
            dtype=self.dtype,
            name="patch",
        )(x)
        x = x.reshape(x.shape[0], -1, self.dim)
        cls = self.param("cls", normal(1e-6), (1, 1, self.dim))
        pos_embed = self.param("pos_embed", normal(0.02), (1, 1 + x.shape[1], self.dim))
        cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, self.dim))
        x = jnp.concatenate([cls, x], axis=1) + pos_embed.astype(x.dtype)
        layers["embed"] = x
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            x = block(self.heads, self.dropout, rate, self.dtype, name=f"block{i}")(x, train)
            layers[f"block{i}"] = x

        tokens = _norm("norm", jnp.float32)(x)
        outputs = {f"{name}_tokens": value for name, value in layers.items()}
        outputs |= {name: self._pooled(value) for name, value in layers.items()}
        features = self._pooled(tokens)
        logits = nn.Dense(self.num_classes, kernel_init=normal(0.02), name="head")(features)
        return {**outputs, "tokens": tokens, "features": features, "logits": logits}

    def _pooled(self, tokens: jax.Array) -> jax.Array:
        tokens = tokens.astype(jnp.float32)
        return tokens[:, 0] if self.pool == "cls" else jnp.mean(tokens[:, 1:], axis=1)
