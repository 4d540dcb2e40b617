"""Initialisers of weights, with Linen's signature `(key, shape, dtype) -> array`.

Every draw is flat and then reshaped. The values are the same, but on a CPU XLA compiles a four-dimensional draw four to
five times as slowly: for a ResNet-50, this is the difference between seconds and most of a minute.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]


_undrawn = contextvars.ContextVar("_undrawn", default=False)


@contextlib.contextmanager
def leave_undrawn() -> Iterator[None]:
    """Return zeros in place of every draw, for whoever traces only shapes: tracing the draws takes half the time."""
    token = _undrawn.set(True)
    try:
        yield
    finally:
        _undrawn.reset(token)


def _draw(sample: Initializer, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draw flat, then reshape."""
    if _undrawn.get():
        return jnp.zeros(shape, dtype)
    return sample(key, (math.prod(shape),), dtype).reshape(shape)


def normal(std: float) -> Initializer:
    """Make an initialiser that draws from N(0, std²).

    timm's `trunc_normal_(std=0.02)` is the same, because it cuts at ±2, 100 standard deviations away.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return std * _draw(jax.random.normal, key, shape, dtype)

    return init


def kaiming_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw from N(0, 2 / fan_out) for a kernel [..., in, out] (He et al. 2015, arXiv 1502.01852, the backward form)."""
    fan_out = math.prod(shape) // shape[-2]
    return math.sqrt(2 / fan_out) * _draw(jax.random.normal, key, shape, dtype)


def normal_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw from N(0, 1 / fan_in) for a kernel [..., in, out]."""
    return _draw(jax.random.normal, key, shape, dtype) / math.sqrt(math.prod(shape[:-1]))


def xavier_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw from U(-a, a), a² = 6 / (k·in + k·out), for a kernel [..., in, out] of k cells (Glorot & Bengio 2010)."""
    fans = math.prod(shape[:-2]) * sum(shape[-2:])
    return (2 * _draw(jax.random.uniform, key, shape, dtype) - 1) * math.sqrt(6 / fans)


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw from U(-a, a), a² = 3 / fan_in, for a kernel [..., in, out]: PyTorch's `kaiming_uniform_` with a=1."""
    return (2 * _draw(jax.random.uniform, key, shape, dtype) - 1) * math.sqrt(3 / math.prod(shape[:-1]))


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw from U(-1/√fan_in, 1/√fan_in) for a kernel [..., in, out]: PyTorch's default for linear layers."""
    fan_in = math.prod(shape[:-1])
    return (2 * _draw(jax.random.uniform, key, shape, dtype) - 1) / math.sqrt(fan_in)


def normal_depthwise(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw from N(0, 2 / k²) for a depthwise kernel [k, k, 1, C]: `kaiming_normal` of each channel by itself."""
    return math.sqrt(2 / math.prod(shape[:-1])) * _draw(jax.random.normal, key, shape, dtype)


def uniform_fan_out(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw from U(-1/√out, 1/√out) for a kernel [in, out], as EfficientNet's classifier starts."""
    return (2 * _draw(jax.random.uniform, key, shape, dtype) - 1) / math.sqrt(shape[-1])
