"""Depthwise convolution: both forms against sums in NumPy, their gradients, and who gets which."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.models.layers import depthwise


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int, pads) -> np.ndarray:
    """Sum over the places of the kernel, place by place of the output."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    side = len(kernel)
    height, width = ((n - side) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), height, width, x.shape[-1]))
    for i, j in np.ndindex(height, width):
        window = x[:, i * stride : i * stride + side, j * stride : j * stride + side]
        out[:, i, j] = np.einsum("bhwc,hwc->bc", window, kernel[:, :, 0])
    return out


FORMS = (depthwise._convolve, depthwise.convolve_depthwise)  # XLA's own; what a CPU gets, which is the sum of shifts


@pytest.mark.parametrize("padding", depthwise.PADDINGS)
@pytest.mark.parametrize(("side", "stride", "size"), [(3, 1, (6, 5)), (3, 2, (7, 6)), (5, 2, (6, 7)), (7, 1, (3, 4))])
def test_sums_over_the_kernel(padding: str, side: int, stride: int, size: tuple[int, int], compiled):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(side, side, 1, 3))
    pads = depthwise.PADDINGS[padding](side)(*size, stride)
    want = convolve(x, kernel, stride, pads)
    assert want.shape[1:3] == tuple(-(-n // stride) for n in size), "both paddings keep ⌈n / stride⌉ places"
    with jax.enable_x64(True):
        for form in FORMS:
            found = compiled(partial(form, stride=stride, pads=pads))(x, kernel)
            np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-12)


def test_same_puts_the_larger_part_below_and_right():
    pad = depthwise.pad_same(3)
    assert pad(4, 5, 2) == ((0, 1), (1, 1))
    assert pad(4, 5, 1) == ((1, 1), (1, 1))
    assert depthwise.pad_same(5)(75, 76, 2) == ((2, 2), (1, 2))
    assert depthwise.pad_same(1)(3, 4, 2) == ((0, 0), (0, 0))
    assert depthwise.pad_equally(5)(4, 5, 2) == ((2, 2), (2, 2))


def test_gradients_of_the_forms_agree(compiled):
    rng = np.random.default_rng(0)
    x, kernel, weight = (rng.normal(size=s) for s in ((2, 5, 6, 3), (3, 3, 1, 3), (2, 3, 3, 3)))
    with jax.enable_x64(True):
        found = []
        for form in FORMS:
            convolve = partial(form, stride=2, pads=((1, 1), (1, 1)))
            loss = lambda x, kernel, convolve=convolve: jnp.sum(weight * convolve(x, kernel))  # noqa: E731
            found.append(compiled(jax.grad(loss, (0, 1)))(x, kernel))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-12)


def test_sums_in_bfloat16_are_in_float32():
    x = np.full((1, 3, 3, 1), 1.0)
    x[0, 0, 0] = 256.0  # the next number in bfloat16 is 258, so a narrow sum would stay at 256
    out = depthwise._shift_and_add(jnp.asarray(x, jnp.bfloat16), jnp.ones((3, 3, 1, 1), jnp.bfloat16), stride=1,
                                   pads=((0, 0), (0, 0)))  # fmt: skip
    assert (out.dtype, float(out[0, 0, 0, 0])) == (jnp.bfloat16, 264.0)


def test_only_cpus_shift_and_add():
    shapes = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 2), jnp.float32)
    traced = jax.jit(lambda *a: depthwise.convolve_depthwise(*a, stride=1, pads=((1, 1), (1, 1)))).trace(*shapes)
    texts = {of: traced.lower(lowering_platforms=(of,)).as_text() for of in ("cpu", "tpu", "cuda")}
    assert {of: "stablehlo.convolution" in text for of, text in texts.items()} == {
        "cpu": False,
        "tpu": True,
        "cuda": True,
    }
    assert {of: "optimization_barrier" in text for of, text in texts.items()} == {
        "cpu": True,
        "tpu": False,
        "cuda": False,
    }
