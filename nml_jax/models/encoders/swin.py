"""Swin Transformer: Liu et al. 2021 (arXiv 2103.14030), in the layout and with the padding of timm."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.models.encoders.vit import TIMM, Mlp, Style
from nml_jax.models.layers.attention import attend
from nml_jax.models.layers.checks import check_heads, check_patches, check_size
from nml_jax.models.layers.initializers import normal, uniform_fan_in
from nml_jax.models.layers.materialise import materialise


def index_positions(window: int) -> np.ndarray:
    """Return for every pair (query, key) of a window the row of its relative position in the table, int [T, T].

    A window has T = window² places, row by row. The row is (Δrow + window − 1)(2·window − 1) + Δcolumn + window − 1,
    where Δ is the query's place minus the key's.
    """
    rows, columns = np.divmod(np.arange(window * window), window)
    down, right = (place[:, None] - place[None, :] + window - 1 for place in (rows, columns))
    return down * (2 * window - 1) + right


def find_regions(side: int, window: int, shift: int) -> np.ndarray:
    """Return for every place of every window the region that it comes from, int [windows, T].

    A map of `side`² places that was rolled by −shift consists of 3x3 regions, which were not all neighbours before.
    """
    places = np.arange(side)
    part = (places >= side - window).astype(int) + (places >= side - shift)
    regions = 3 * part[:, None] + part[None, :]
    windows = side // window
    return regions.reshape(windows, window, windows, window).swapaxes(1, 2).reshape(windows**2, window**2)


class PositionBias(nn.Module):
    """What a head adds to its scores for every relative position, as [heads, T, T]. One table row per position."""

    heads: int
    window: int

    @nn.compact
    def __call__(self) -> jax.Array:
        table = self.param("bias", normal(0.02), ((2 * self.window - 1) ** 2, self.heads))
        return jnp.moveaxis(table[index_positions(self.window)], -1, 0)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, softmax(q kᵀ / √d + position bias) v. [B, n, n, dim] -> same.

    The map is rolled by −shift before it is cut into windows, and back. Then a window may hold places that were not
    neighbours: 100 is subtracted from their scores. A map whose side is not a multiple of the window is filled up
    with zeros after the roll, and these places are keys as any other.
    """

    heads: int
    window: int
    shift: int
    dtype: Any
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, _, d = x.shape
        count = -(-n // self.window)
        side = count * self.window
        x = jnp.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = jnp.pad(x, [(0, 0), (0, side - n), (0, side - n), (0, 0)])
        qkv = nn.Dense(3 * d, kernel_init=self.style.qkv, dtype=self.dtype, name="qkv")(x)
        # Every head of every window is a head of its own: [B, T, windows · heads, d / heads].
        parts = (count, self.window, count, self.window)
        qkv = qkv.reshape(b, *parts, 3, self.heads, d // self.heads).transpose(5, 0, 2, 4, 1, 3, 6, 7)
        q, k, v = qkv.reshape(3, b, self.window**2, count**2 * self.heads, d // self.heads)
        y = attend(q, k, v, bias=self._make_bias(side))
        y = y.reshape(b, self.window, self.window, count, count, d).transpose(0, 3, 1, 4, 2, 5)
        y = nn.Dense(d, kernel_init=self.style.proj, dtype=self.dtype, name="proj")(y.reshape(b, side, side, d))
        y = y[:, :n, :n]
        return jnp.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y

    def _make_bias(self, side: int) -> jax.Array:
        """Return what is added to the scores, [1, windows · heads, T, T]."""
        bias = PositionBias(self.heads, self.window, name="position")()
        bias = jnp.broadcast_to(bias, ((side // self.window) ** 2, *bias.shape))
        if self.shift:
            regions = jnp.asarray(find_regions(side, self.window, self.shift))
            bias = bias - 100 * (regions[:, None, :, None] != regions[:, None, None, :])
        return bias.reshape(1, -1, *bias.shape[2:]).astype(jnp.promote_types(self.dtype, jnp.float32))


class Block(nn.Module):
    """A pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x)). [B, n, n, dim] -> same."""

    heads: int
    window: int
    shift: int
    drop_path: float
    dtype: Any
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        # One draw per example and branch: stochastic depth (arXiv 1603.09382), scaled to keep the expectation.
        drop = [nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3)) for _ in range(2)]
        norm1, norm2 = (self.style.make_norm(name, self.dtype) for name in ("norm1", "norm2"))
        attention = WindowAttention(self.heads, self.window, self.shift, self.dtype, self.style, name="attn")
        x = materialise(x)
        x = materialise(x + drop[0](attention(norm1(x)), deterministic=not train))
        return x + drop[1](Mlp(self.dtype, self.style, name="mlp")(norm2(x)), deterministic=not train)


class Merge(nn.Module):
    """Every 2x2 places become one of twice the width, [B, n, n, dim] -> [B, ⌈n/2⌉, ⌈n/2⌉, 2·dim].

    The four are concatenated in the order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column). An odd map is filled up with
    zeros.
    """

    dtype: Any
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, _, d = x.shape
        half = -(-n // 2)
        x = jnp.pad(x, [(0, 0), (0, n % 2), (0, n % 2), (0, 0)])
        x = x.reshape(b, half, 2, half, 2, d).transpose(0, 1, 3, 4, 2, 5).reshape(b, half, half, 4 * d)
        x = self.style.make_norm("norm", self.dtype)(x)
        return nn.Dense(2 * d, use_bias=False, kernel_init=self.style.fc1, dtype=self.dtype, name="reduction")(x)


class Swin(nn.Module):
    """A Swin Transformer with `blocks[i - 1]` blocks in stage i = 1, 2, ...

    Stage i has width·2^(i-1) channels and heads·2^(i-1) heads. Every stage but the first begins with a merge, which
    halves height and width. Every second block shifts its windows by half their side. A map no larger than the window
    is one window of its own size, and is not shifted; so the shapes of the position tables depend on `image_size`.

    Fields are the keys of `config.model` in configs/common.py. Normalised images float32 [B, S, S, 3] become

        features        float32 [B, D]           mean over the last map after the final norm; timm's `pre_logits`
        logits          float32 [B, num_classes] unless num_classes is 0
        stem_map        dtype [B, n, n, width]   patches after their norm, n = image_size / patch
        stage{i}_map    dtype [B, h, h, C]       output of stage i = 1, 2, ..., before the final norm
        stem, stage{i}  float32 [B, C]           the same maps, averaged over height and width

    Raises:
        UserError: the image cannot be cut into patches, the width cannot be split over the heads, or, when called, the
            images have another size.
    """

    num_classes: int
    image_size: int
    width: int
    blocks: tuple[int, ...]
    heads: int
    patch: int = 4
    window: int = 7
    epsilon: float = 1e-5
    drop_path: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_patches(self.image_size, self.patch)
        check_heads(self.width, self.heads, "width", "heads")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_size(x, self.image_size)
        style = TIMM._replace(epsilon=self.epsilon)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            kernel_init=uniform_fan_in,
            dtype=self.dtype,
            name="patch",
        )(x)
        x = style.make_norm("patch_norm", self.dtype)(x)
        maps = {"stem": x}
        for i, count in enumerate(self.blocks):
            if i:
                x = Merge(self.dtype, style, name=f"stage{i + 1}_merge")(x)
            for j in range(count):
                x = self._make_block(i, j, x.shape[1], style)(x, train)
            maps[f"stage{i + 1}"] = x

        outputs = {f"{name}_map": value for name, value in maps.items()}
        outputs |= {name: jnp.mean(value.astype(wide), axis=(1, 2)) for name, value in maps.items()}
        outputs["features"] = jnp.mean(style.make_norm("norm", wide)(x), axis=(1, 2))
        if self.num_classes:
            outputs["logits"] = nn.Dense(self.num_classes, kernel_init=normal(0.02), name="head")(outputs["features"])
        return outputs

    def _make_block(self, stage: int, index: int, side: int, style: Style) -> nn.Module:
        """Make a block of a stage, both counted from 0, for a map of `side`² places."""
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        window = min(self.window, side)
        shift = window // 2 if index % 2 and side > window else 0
        before = sum(self.blocks[:stage]) + index
        rate = self.drop_path * before / max(sum(self.blocks) - 1, 1)
        name = f"stage{stage + 1}_block{index}"
        return block(self.heads * 2**stage, window, shift, rate, self.dtype, style, name=name)
