"""A factor for every channel of a residual branch."""

import flax.linen as nn
import jax


class LayerScale(nn.Module):
    """A factor per channel, which starts at `initial` (Touvron et al. 2021, arXiv 2103.17239). [..., C] -> same."""

    initial: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],)).astype(x.dtype)
