"""Two towers and one space: CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP (Zhai et al. 2023, 2303.15343)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.models.encoders.resnet import ResNet
from nml_jax.models.layers.initializers import normal_fan_in
from nml_jax.models.text.clip_text import TextTransformer


class Projected(nn.Module):
    """A tower whose features are also projected and scaled to length 1: the output "embedding", float32 [B, embed_dim].

    The projection's parameters stand beside the tower's own, as "projection".
    """

    tower: nn.Module
    embed_dim: int
    bias: bool

    def setup(self) -> None:
        nn.share_scope(self, self.tower)
        self.projection = nn.Dense(self.embed_dim, use_bias=self.bias, kernel_init=normal_fan_in)

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        outputs = self.tower(x, train=train)
        y = self.projection(outputs["features"])
        # The floor is on the squared norm, so that the gradient at 0 is finite.
        norm = jnp.sqrt(jnp.maximum(jnp.sum(y * y, axis=1, keepdims=True), 1e-24))
        return {**outputs, "embedding": y / norm}


class Clip(nn.Module):
    """An image and a text tower, of which a call runs those that it has an input for, and the scale of their logits.

    Normalised images float32 [B, S, S, 3] become "features", "embedding" and whatever else the image tower returns,
    token ids int [B, L] become "text_features" and "text_embedding"; each is described at its tower. Always there:

        logit_scale  float32 []  exp of the parameter of that name
        logit_bias   float32 []  where `bias` is a number

    The logits themselves, logit_scale · <embedding, text_embedding> + logit_bias, are the objective's. Nothing clamps
    the scale here: the optimiser does (config.optimizer.clamp), which after every step leaves the parameter within
    [0, ln 100], as open_clip does.

    Fields:
        image, text: the towers, `Projected`.
        log_scale, bias: initial values of the two parameters; None: there is no bias.
    """

    image: nn.Module
    text: nn.Module
    log_scale: float
    bias: float | None

    @nn.compact
    def __call__(self, image: jax.Array | None, text: jax.Array | None, *, train: bool) -> dict[str, jax.Array]:
        outputs = {}
        if image is not None:
            outputs |= self.image(image, train=train)
        if text is not None:
            outputs |= {f"text_{name}": value for name, value in self.text(text, train=train).items()}
        outputs["logit_scale"] = jnp.exp(self.param("logit_scale", nn.initializers.constant(self.log_scale), ()))
        if self.bias is not None:
            outputs["logit_bias"] = self.param("logit_bias", nn.initializers.constant(self.bias), ())
        return outputs


def make(
    *,
    tower: nn.Module,
    embed_dim: int,
    text_context: int,
    text_vocab: int,
    text_width: int,
    text_depth: int,
    text_heads: int,
    logit_scale: float,
    logit_bias: float | None = None,
    quick_gelu: bool = False,
    remat: bool = False,
    dtype: Any = jnp.float32,
) -> Clip:
    """`Clip` from an image tower without a head and the keys of `config.model` in configs/common.py."""
    text = TextTransformer(text_context, text_vocab, text_width, text_depth, text_heads, quick_gelu, remat, dtype)
    # CLIP's ResNet alone has a biased projection: it is the output of its attention pool.
    bias = isinstance(tower, ResNet) and tower.clip
    return Clip(Projected(tower, embed_dim, bias), Projected(text, embed_dim, False), logit_scale, logit_bias)
