"""Text encoders: BERT (Devlin et al. 2018, arXiv 1810.04805), RoBERTa (Liu et al. 2019, arXiv 1907.11692) and GPT-2
(Radford et al. 2019). One module for the three; FAMILIES says how they differ.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.errors import UserError
from nml_jax.models.layers.attention import attend
from nml_jax.models.layers.checks import check_heads
from nml_jax.models.layers.initializers import normal
from nml_jax.models.layers.materialise import materialise

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
POOLS = ("cls", "mean", "last", "pooler")


class Family(NamedTuple):
    """What sets a family apart.

    Fields:
        pre_norm: norms before attention and MLP, and after the last block; else after each, and after the embeddings.
        causal: token i attends only to tokens 0..i.
        pad: id of the padding token where positions count the other tokens from pad + 1; None: positions are 0, 1, ...
        joint: one kernel [dim, 3·dim] for queries, keys and values.
    """

    pre_norm: bool
    causal: bool
    pad: int | None
    joint: bool


FAMILIES = {
    "bert": Family(pre_norm=False, causal=False, pad=None, joint=False),
    "roberta": Family(pre_norm=False, causal=False, pad=1, joint=False),
    "gpt2": Family(pre_norm=True, causal=True, pad=None, joint=True),
}


class Attention(nn.Module):
    """Multi-head self-attention over the first `lengths` tokens of each row. [B, L, dim] -> same."""

    heads: int
    family: Family
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        def project(width: int, name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(width, kernel_init=normal(0.02), dtype=self.dtype, name=name)(x)

        b, n, d = x.shape
        if self.family.joint:
            parts = jnp.split(project(3 * d, "qkv", x), 3, axis=-1)
        else:
            parts = [project(d, name, x) for name in ("query", "key", "value")]
        q, k, v = (part.reshape(b, n, self.heads, d // self.heads) for part in parts)
        y = attend(q, k, v, causal=self.family.causal, lengths=lengths)
        return project(d, "proj", y.reshape(b, n, d))


class Layer(nn.Module):
    """A block: attention and an MLP, each with a residual connection and a layer norm before or after it."""

    heads: int
    hidden: int
    dropout: float
    epsilon: float
    activation: str
    family: Family
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array, train: bool) -> jax.Array:
        def mix(x: jax.Array) -> jax.Array:
            return Attention(self.heads, self.family, self.dtype, name="attn")(x, lengths)

        def transform(x: jax.Array) -> jax.Array:
            y = nn.Dense(self.hidden, kernel_init=normal(0.02), dtype=self.dtype, name="fc1")(x)
            y = ACTIVATIONS[self.activation](y)
            return nn.Dense(x.shape[-1], kernel_init=normal(0.02), dtype=self.dtype, name="fc2")(y)

        x = materialise(x)
        for branch, name in ((mix, "norm1"), (transform, "norm2")):
            norm = make_norm(self.epsilon, self.dtype, name)
            y = branch(norm(x) if self.family.pre_norm else x)
            x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
            x = x if self.family.pre_norm else norm(x)
        return x


def make_norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Make a layer norm."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


class TextEncoder(nn.Module):
    """A transformer over token ids that ends in one vector for each text.

    Fields are keys of `config.model` in configs/common.py, and `family`, a key of FAMILIES. `neftune` is not such a
    key; only fine-tuning sets it. In training, it adds U(-1, 1)·neftune / sqrt(L·dim) to the word embedding of each of
    the L = `length` tokens of a text, and nothing to padding (arXiv 2310.05914). The inputs are

        tokens  int [B, L]  ids in 0..vocab-1; what comes after the text's own tokens is never read
        length  int [B]     number of the text's own tokens
        second  int [B]     where its second part begins, which has type 1 if there are types; L or more: nowhere

    for any L of at most `context`. The outputs are

        features         float32 [B, dim]     as `pool` says: the first token (cls), the mean over the text's own tokens
                                              (mean), the last of them (last), or tanh(W·first + b) (pooler)
        logits           float32 [B, num_classes] unless num_classes is 0
        tokens           float32 [B, L, dim]  after the last block, and after the last norm if there is one
        embed_tokens     dtype [B, L, dim]    input of the first block
        block{i}_tokens  dtype [B, L, dim]    output of block i = 0, 1, ..., before a last norm
        embed, block{i}  float32 [B, dim]     the same tokens, pooled as the features are (pooler: the first token)

    Raises:
        UserError: the width cannot be split over the heads, or, when called, there are more tokens than positions.
    """

    family: str
    dim: int
    depth: int
    heads: int
    vocab: int
    context: int
    types: int
    epsilon: float
    hidden: int
    activation: str
    num_classes: int = 0
    pool: str = "cls"
    dropout: float = 0.0
    neftune: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads, "dim", "heads")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, length: jax.Array, second: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if tokens.shape[1] > self.context:
            raise UserError(
                f"texts of {tokens.shape[1]} tokens, but the model has {self.context} positions",
                "cut texts to model.context tokens",
            )
        family, wide = FAMILIES[self.family], jnp.promote_types(self.dtype, jnp.float32)
        length = jnp.maximum(length, 1)  # rows that only fill a batch have no tokens
        x = self._embed(tokens, length, second, family, train)
        if not family.pre_norm:
            x = make_norm(self.epsilon, self.dtype, "embed_norm")(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        layers = {"embed": x}
        block = nn.remat(Layer, static_argnums=(3,)) if self.remat else Layer
        for i in range(self.depth):
            x = layers[f"block{i}"] = block(
                self.heads, self.hidden, self.dropout, self.epsilon, self.activation, family, self.dtype,
                name=f"block{i}",
            )(x, length, train)  # fmt: skip
        last = make_norm(self.epsilon, wide, "norm")(x) if family.pre_norm else x.astype(wide)
        features = pool(last, length, self.pool)
        if self.pool == "pooler":
            features = jnp.tanh(nn.Dense(self.dim, kernel_init=normal(0.02), dtype=wide, name="pooler")(features))
        outputs = {f"{name}_tokens": value for name, value in layers.items()}
        outputs |= {name: pool(value.astype(wide), length, self.pool) for name, value in layers.items()}
        outputs |= {"tokens": last, "features": features}
        if self.num_classes:
            outputs["logits"] = nn.Dense(self.num_classes, kernel_init=normal(0.02), name="head")(features)
        return outputs

    def _embed(self, tokens: jax.Array, length: jax.Array, second: jax.Array, family: Family, train: bool) -> jax.Array:
        """Return the sum of the embeddings of tokens, positions and types, [B, L, dim]."""

        def look_up(rows: int, name: str, index: jax.Array) -> jax.Array:
            return nn.Embed(rows, self.dim, embedding_init=normal(0.02), dtype=self.dtype, name=name)(index)

        place = jnp.arange(tokens.shape[1])
        if family.pad is None:
            positions, rows = place[None], self.context
        else:
            own = (tokens != family.pad) & (place < length[:, None])
            positions, rows = jnp.cumsum(own, axis=1) * own + family.pad, self.context + family.pad + 1
        x = look_up(self.vocab, "words", tokens)
        if train and self.neftune:
            x += self._draw_noise(x, place < length[:, None], length)
        x += look_up(rows, "positions", positions)
        if self.types:
            x += look_up(self.types, "types", (place >= second[:, None]).astype(jnp.int32) * (self.types > 1))
        return x

    def _draw_noise(self, x: jax.Array, own: jax.Array, length: jax.Array) -> jax.Array:
        """Draw NEFTune's noise for embeddings [B, L, dim]; `own`, bool [B, L], are the tokens that get it."""
        draw = jax.random.uniform(self.make_rng("dropout"), x.shape, x.dtype, minval=-1.0, maxval=1.0)
        size = self.neftune / jnp.sqrt(length * self.dim).astype(x.dtype)
        return jnp.where(own[..., None], draw * size[:, None, None], 0)


def pool(tokens: jax.Array, length: jax.Array, how: str) -> jax.Array:
    """Pool tokens [B, L, D] to [B, D] over the first `length` of each row, or take the first or last of these."""
    if how in ("cls", "pooler"):
        return tokens[:, 0]
    if how == "last":
        return jnp.take_along_axis(tokens, (length - 1)[:, None, None], axis=1)[:, 0]
    own = jnp.arange(tokens.shape[1]) < length[:, None]
    # where, not a product: a row of padding may hold anything
    return jnp.where(own[..., None], tokens, 0).sum(1) / length[:, None].astype(tokens.dtype)
