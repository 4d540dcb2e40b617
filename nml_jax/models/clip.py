"""Models of two towers with a common embedding space: CLIP (Radford et al. 2021, arXiv 2103.00020)
and SigLIP (Zhai et al. 2023, arXiv 2303.15343).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.models.encoders.resnet import ResNet
from nml_jax.models.encoders.vit import gelu
from nml_jax.models.layers.initializers import normal_fan_in
from nml_jax.models.text.clip_text import TextTransformer


class ProjectedTower(nn.Module):
    """A tower with one more output, "embedding": its features projected to length 1, float32 [B, embed_dim].

    With `hidden_dim`, a linear layer of that width and GELU come before the projection, as the output "hidden". The
    parameters of both are beside the tower's own, as "hidden" and "projection".
    """

    tower: nn.Module
    embed_dim: int
    bias: bool
    hidden_dim: int = 0

    def setup(self) -> None:
        nn.share_scope(self, self.tower)
        if self.hidden_dim:
            self.hidden = nn.Dense(self.hidden_dim, kernel_init=normal_fan_in)
        self.projection = nn.Dense(self.embed_dim, use_bias=self.bias, kernel_init=normal_fan_in)

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        outputs = self.tower(x, train=train)
        y = outputs["features"]
        if self.hidden_dim:
            y = outputs["hidden"] = gelu(self.hidden(y))
        y = self.projection(y)
        # The floor is on the squared norm, so that the gradient at 0 is finite.
        norm = jnp.sqrt(jnp.maximum(jnp.sum(y * y, axis=1, keepdims=True), 1e-24))
        return {**outputs, "embedding": y / norm}


class Clip(nn.Module):
    """An image tower, a text tower and the scale of their logits. A call runs the towers that it has an input for.

    Normalised images float32 [B, S, S, 3] become "features", "embedding" and the other outputs of the image tower.
    Token ids int [B, L] become "text_features" and "text_embedding". Two outputs need no input:

        logit_scale  float32 []  exp of the parameter of that name
        logit_bias   float32 []  unless `bias` is None

    The objective computes the logits, logit_scale · <embedding, text_embedding> + logit_bias. The optimiser clamps the
    scale (config.optimizer.clamp): as in open_clip, the parameter is within [0, ln 100] after every step.

    Fields:
        image, text: the towers, each a `ProjectedTower`.
        log_scale, bias: initial values of the two parameters; None for no bias.
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
    hidden: int = 0,
    quick_gelu: bool = False,
    remat: bool = False,
    dtype: Any = jnp.float32,
) -> Clip:
    """Make a `Clip` from an image tower without a head and the keys of `config.model` in configs/common.py."""
    text = TextTransformer(text_context, text_vocab, text_width, text_depth, text_heads, quick_gelu, remat, dtype)
    # Only the projection of CLIP's ResNet has a bias: it is the output layer of the attention pool.
    image = ProjectedTower(tower, embed_dim, bias=isinstance(tower, ResNet) and tower.clip, hidden_dim=hidden)
    return Clip(image, ProjectedTower(text, embed_dim, bias=False), logit_scale, logit_bias)
