"""Depthwise convolution, in a form of its own on CPUs."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.models.layers.initializers import Initializer, normal_depthwise

Pads = tuple[tuple[int, int], tuple[int, int]]  # zeros (above, below), (left, right)


def pad_equally(side: int) -> Callable[[int, int, int], Pads]:
    """Return the padding side // 2 on all four sides, as PyTorch's convolutions have it, as a function like `pad_same`.

    Args:
        side: side of the kernel.
    """
    return lambda height, width, stride: ((side // 2, side // 2), (side // 2, side // 2))


def pad_same(side: int) -> Callable[[int, int, int], Pads]:
    """Return TensorFlow's padding "SAME" as a function of a map's height and width and of the stride.

    The output has ⌈n / stride⌉ places. An odd number of zeros has the larger part below and on the right.
    """

    def pad(n: int, stride: int) -> tuple[int, int]:
        total = max((math.ceil(n / stride) - 1) * stride + side - n, 0)
        return total // 2, total - total // 2

    return lambda height, width, stride: (pad(height, stride), pad(width, stride))


PADDINGS = {"symmetric": pad_equally, "same": pad_same}  # the values of config.model.padding


def convolve_depthwise(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    """Convolve each channel with a kernel of its own: [B, H, W, C], [k, k, 1, C] -> [B, H', W', C], all of one dtype.

    On a CPU, XLA's own depthwise convolution takes 5 to 40 times as long as the sum over the kernel's k² places of
    shifted copies. So CPUs get that sum, with a barrier against fusion at both ends, and other devices XLA's own. The
    sum is at least in float32.
    """
    native = partial(_convolve, stride=stride, pads=pads)
    return jax.lax.platform_dependent(x, kernel, cpu=partial(_shift_and_add, stride=stride, pads=pads), default=native)


def _convolve(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


def _shift_and_add(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    side, channels = kernel.shape[0], x.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))
    height, width = ((n - side) // stride + 1 for n in x.shape[1:3])
    total = jnp.zeros((), wide)
    for i, j in itertools.product(range(side), repeat=2):
        ends = (len(x), i + (height - 1) * stride + 1, j + (width - 1) * stride + 1, channels)
        shifted = jax.lax.slice(x, (0, i, j, 0), ends, (1, stride, stride, 1))
        total = total + shifted.astype(wide) * kernel[i, j, 0].astype(wide)
    return jax.lax.optimization_barrier(total.astype(x.dtype))


class DepthwiseConv(nn.Module):
    """A depthwise convolution with a square kernel [side, side, 1, C], see `convolve_depthwise`.

    Fields:
        padding: a key of PADDINGS.
        bias: add a number per channel.
    """

    side: int
    stride: int = 1
    padding: str = "symmetric"
    bias: bool = False
    init: Initializer = normal_depthwise
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", self.init, (self.side, self.side, 1, channels))
        pads = PADDINGS[self.padding](self.side)(x.shape[1], x.shape[2], self.stride)
        x = convolve_depthwise(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, pads=pads)
        if self.bias:
            x = x + self.param("bias", nn.initializers.zeros, (channels,)).astype(self.dtype)
        return x
