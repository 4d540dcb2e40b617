"""Batch normalisation over the global batch, or over groups of it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.errors import UserError


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over batch, height and width, with statistics in float32.

    In training, the statistics are those of the global batch: under jit, a mean over a sharded axis is a global mean.
    With `group`, each consecutive group of so many examples has its own statistics. This reproduces the per-device
    statistics of published recipes on any number of devices.

    Running statistics average the groups and are `momentum * old + (1 - momentum) * new`; 0.9 here is PyTorch's 0.1.
    As in PyTorch, the batch is normalised with the biased variance, and the running variance is unbiased
    (n / (n - 1)).

    Raises:
        UserError: in training, the batch is not a multiple of `group`.
    """

    group: int = 0
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Callable[..., jax.Array] = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = x.shape[-1]
        scale = self.param("scale", self.scale_init, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))

        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            group = self.group or x.shape[0]
            if x.shape[0] % group:
                raise UserError(
                    f"a batch of {x.shape[0]} cannot be split into BatchNorm groups of {group} (model.bn_group)",
                    "make the batch a multiple of model.bn_group, or set model.bn_group=0 for the whole batch",
                )
            y = y.reshape(-1, group, *x.shape[1:])
            axes = tuple(range(1, y.ndim - 1))
            mean = jnp.mean(y, axes, keepdims=True)
            var = jnp.mean(jnp.square(y - mean), axes, keepdims=True)
            n = y.size // (y.shape[0] * c)
            for running, new in ((running_mean, mean), (running_var, var * (n / max(n - 1, 1)))):
                average = jnp.mean(new.reshape(-1, c), axis=0)
                running.value = self.momentum * running.value + (1 - self.momentum) * average
        else:
            mean, var = running_mean.value.astype(y.dtype), running_var.value.astype(y.dtype)
        y = (y - mean) * jax.lax.rsqrt(var + self.epsilon) * scale + bias
        return y.reshape(x.shape).astype(self.dtype)
