"""The model that stands for an embeddings service: the vectors of texts come from elsewhere, and are the features."""

import flax.linen as nn
import jax


class Vectors(nn.Module):
    """Vectors as they are. It has no parameters. float32 [B, D] -> features float32 [B, D]."""

    def __call__(self, vector: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        del train
        return {"features": vector}
