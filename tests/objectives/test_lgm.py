import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.objectives import lgm
from nml_jax.objectives.lgm import Weights, perturb
from nml_jax.objectives.step import Step

KEY = jax.random.key(3)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def at(F, labels=None, head=None):
    return Step(F, None, None, labels, head, KEY)  # pyright: ignore[reportArgumentType]


def linear(params, F):
    Z = jnp.matmul(F, params["kernel"], precision="highest")
    return Z, Z


def mlp(params, F):
    """Apply two layers with BatchNorm over all rows and views, as in training."""
    h = jnp.matmul(F, params["first"], precision="highest")
    rows = h.reshape(-1, h.shape[-1])
    h = jax.nn.relu((h - rows.mean(0)) / jnp.sqrt(rows.var(0) + 1e-5) + params["shift"])
    return F, jnp.matmul(h, params["second"], precision="highest")


def both(head, weights):
    """Compile the value and the gradient by the head's parameters, float32."""
    form = Weights(*(float(x != 0) if isinstance(x, float) else x for x in weights))
    traced = Weights(*(jnp.float32(x) if isinstance(x, float) else 0 for x in weights))

    def penalty(params, F, labels):
        return lgm.penalty(at(F, labels, lambda F: head(params, F)), form, traced)

    return jax.jit(jax.value_and_grad(penalty))


def want_linear(W, F, moved, labels, squared):
    """Compute value and gradient in float64 for logits F W.

    There, g(t) = (softmax − one-hot) Wᵀ, so g(t) − g(t̂) = (p − p̂) Wᵀ.
    """
    W, rows = np.float64(W), [np.float64(x).reshape(-1, x.shape[-1]) for x in (F, moved)]
    p = [np.exp(x @ W - (x @ W).max(1, keepdims=True)) for x in rows]
    p = [x / x.sum(1, keepdims=True) for x in p]
    difference = p[0] - p[1]
    away = difference @ W.T
    norm = np.linalg.norm(away, axis=1, keepdims=True)
    outer = (2 * away if squared else away / np.where(norm > 0, norm, 1)) / len(away)  # ∂ value / ∂ away
    gradient = outer.T @ difference
    for x, q, sign in zip(rows, p, (1, -1), strict=True):
        back = sign * outer @ W  # ∂ value / ∂ p
        gradient = gradient + x.T @ (q * (back - (q * back).sum(1, keepdims=True)))
    return (norm**2 if squared else norm).mean(), gradient


@pytest.mark.parametrize(
    ("shape", "squared"),
    [
        ((2, 1, 3, 2), True),
        ((16, 2, 8, 5), False),
        ((8, 2, 64, 3), True),
        ((64, 2, 30, 10), False),
        ((32, 1, 100, 7), False),
    ],
)
def test_of_a_linear_head_on_many_inputs(shape, squared):
    """Values and gradients are right to 1e-5 for inputs of any scale with logits near 1, on 200 of each shape."""
    *sides, classes = shape
    function = both(linear, Weights(match=1.0, noise=0.5, squared=squared))
    noisy = jax.jit(lambda F: perturb(at(F), 0.5, "feature"))
    rng = np.random.default_rng(shape)
    for i in range(200):
        F = rng.normal(size=sides)
        F = (F, np.maximum(F, 0), F + 1, np.repeat(F[:, :1], sides[1], 1))[i % 4].astype(np.float32)
        W, labels = rng.normal(size=(sides[-1], classes)) / sides[-1] ** 0.5, rng.integers(0, classes, sides[0])
        scale = np.float32(2.0 ** rng.integers(-10, 11))
        F, W = F * scale, W.astype(np.float32) / scale
        value, gradient = function({"kernel": W}, F, labels.astype(np.int32))
        expected = want_linear(W, F, noisy(F), labels, squared)
        floor = 1e-7 * float(
            np.abs(W).max()
        )  # where predictions hardly move, their difference is what float32 leaves of it
        assert value == pytest.approx(expected[0], rel=1e-5, abs=floor)
        atol = 1e-5 * np.abs(expected[1]).max() + (floor if squared else 1e-7)
        np.testing.assert_allclose(gradient["kernel"], expected[1], rtol=0, atol=atol)


@pytest.mark.parametrize("scale", ["feature", "one"])
def test_through_batch_norm_against_float64(scale):
    """Compare gradients of gradients of the batch's summed cross-entropy with the same in float64."""
    F, labels = normal((12, 2, 6)), np.arange(12, dtype=np.int32) % 3
    params = {"first": normal((6, 9), 1), "shift": normal((9,), 2), "second": normal((9, 3), 3)}
    value, gradient = both(mlp, Weights(match=1.0, noise=0.5, scale=scale))(params, F, labels)
    moved = np.asarray(perturb(at(F), 0.5, scale))

    def entropy(F, params):
        return -jnp.take_along_axis(jax.nn.log_softmax(mlp(params, F)[1]), labels[:, None, None], -1).sum()

    def want(params, F, moved):
        g, other = jax.grad(entropy)(F, params), jax.grad(entropy)(moved, params)
        return jnp.linalg.norm(g - other, axis=-1).mean()

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, F, moved))
        expected = jax.device_get(jax.jit(jax.value_and_grad(want))(*wide))
    assert expected[0].dtype == np.float64
    assert value == pytest.approx(expected[0], rel=1e-5)
    for name, g in gradient.items():
        np.testing.assert_allclose(g, expected[1][name], rtol=0, atol=1e-5 * np.abs(expected[1][name]).max())


def test_perturbation():
    F = normal((4000, 2, 3)) * np.float32([1, 10, 0])
    moved = np.asarray(perturb(at(F), 0.2, "feature")) - F
    np.testing.assert_allclose(moved.std((0, 1)), [0.2, 2, 0], rtol=0.05)
    np.testing.assert_allclose((np.asarray(perturb(at(F), 0.2, "one")) - F).std((0, 1)), 0.2, rtol=0.05)


def test_equal_gradients_have_none():
    F, labels = normal((4, 2, 6)), np.int32([0, 1, 2, 0])
    params = {"kernel": normal((6, 3), 1)}
    for weights, inputs, kernel in (
        (Weights(noise=0.0), F, params),  # nothing is perturbed
        (Weights(), np.ones_like(F), params),  # nothing varies
        (Weights(), F, {"kernel": np.zeros((6, 3), np.float32)}),  # every gradient is zero
        (Weights(), 1e6 * F, {"kernel": 1e3 * params["kernel"]}),  # most predictions are saturated
    ):
        value, gradient = both(linear, weights)(kernel, inputs, labels)
        assert np.isfinite(gradient["kernel"]).all()
        if inputs is F or not inputs.std():
            assert value == 0
            assert not np.asarray(gradient["kernel"]).any()


def test_left_out_where_its_weight_is_zero():
    assert lgm.penalty(at(None), Weights(match=0.0), Weights(match=0.0)) == 0
