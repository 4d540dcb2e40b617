"""CLIP's text tower: Radford et al. 2021 (arXiv 2103.00020), section 2.4."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.models.encoders.vit import Block, Style, gelu, quick_gelu
from nml_jax.models.layers.checks import check_heads
from nml_jax.models.layers.initializers import normal, normal_fan_in


class TextTransformer(nn.Module):
    """A causal transformer over token ids, pooled at the end token, which has the highest id of a row.

    Token ids int [B, context] in 0..vocab-1, padded with 0, become {"features": float32 [B, width]}, after the final
    norm. The causal mask hides the padding after the end token, so no other mask is needed. Initial values are
    open_clip's.

    Raises:
        UserError: the width cannot be split over the heads.
    """

    context: int
    vocab: int
    width: int
    depth: int
    heads: int
    quick_gelu: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, "text_width", "text_heads")
        super().__post_init__()

    @nn.compact
    def __call__(self, text: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        residual = normal((2 * self.width * self.depth) ** -0.5)
        activation = quick_gelu if self.quick_gelu else gelu
        style = Style(1e-5, activation, normal_fan_in, residual, normal((2 * self.width) ** -0.5), residual)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block

        embed = nn.Embed(self.vocab, self.width, embedding_init=normal(0.02), dtype=self.dtype, name="tokens")
        pos_embed = self.param("pos_embed", normal(0.01), (1, self.context, self.width))
        x = embed(text) + pos_embed.astype(self.dtype)
        for i in range(self.depth):
            x = block(self.heads, 0.0, 0.0, self.dtype, style, causal=True, name=f"block{i}")(x, train)
        end = jnp.argmax(text, axis=1)[:, None, None]
        norm = style.make_norm("norm", jnp.promote_types(self.dtype, jnp.float32))
        return {"features": norm(jnp.take_along_axis(x, end, axis=1)[:, 0])}
