from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nml_jax.objectives import skd
from nml_jax.objectives.skd import Weights
from nml_jax.objectives.step import Step

_penalty = jax.jit(skd.penalty, static_argnames="form")


def split_form(weights):
    """Return (form, weights) as training passes them."""
    form = Weights(*(float(x != 0) if isinstance(x, float) else x for x in weights))
    return form, Weights(*(jnp.float32(x) if isinstance(x, float) else 0 for x in weights))


def penalty(Z, logits, weights):
    # F, labels, head and key play no part
    return _penalty(Step(None, Z, logits, None, None, None), *split_form(weights))  # pyright: ignore[reportArgumentType]


def want(x, weights):
    """Compute value and gradient of one array [B, V, N] in float64, from the derivatives of the two moments."""
    x, shape = np.float64(x).reshape(-1, x.shape[-1]), x.shape
    x = x if weights.axis == "row" else x.T
    c = x - x.mean(-1, keepdims=True)
    std = np.sqrt((c**2).mean(-1, keepdims=True))
    u = c / std
    s, k = (u**3).mean(-1, keepdims=True), (u**4).mean(-1, keepdims=True)
    ds, dk = (3 * (u**2 - 1 - s * u) / std / x.shape[-1], 4 * (u**3 - s - k * u) / std / x.shape[-1])
    low_s, low_k = (np.maximum(1 - (s / weights.skew_target) ** 2, 0), np.maximum(1 - k / weights.kurtosis_target, 0))
    value = weights.skew * (low_s**2).mean() + weights.kurtosis * (low_k**2).mean()
    gradient = weights.skew * 2 * low_s * -2 * s / weights.skew_target**2 * ds
    gradient = (gradient + weights.kurtosis * 2 * low_k * -dk / weights.kurtosis_target) / len(x)
    return value, (gradient if weights.axis == "row" else gradient.T).reshape(shape)


def test_moments_are_those_of_scipy():
    x = np.random.default_rng(0).gamma(2, size=(5, 40)).astype(np.float32)
    skewness, kurtosis = skd.compute_moments(x)
    np.testing.assert_allclose(skewness, stats.skew(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(kurtosis, stats.kurtosis(x, axis=1, fisher=False), rtol=1e-5)


def test_by_hand():
    # (0, 0, 0, 4): mean 1, std √3, s = (3·(−1) + 27)/(4·3√3) = 2/√3 and k = (3 + 81)/(4·9) = 7/3. (0, 1): s = 0, k = 1
    Z, logits = np.float32([[[0, 0, 0, 4]]]), np.float32([[[0, 1]]])
    weights = Weights(skew=2.0, kurtosis=3.0, skew_target=2.0, kurtosis_target=7.0, logits=False)
    value = 2 * (1 - 4 / 3 / 4) ** 2 + 3 * (1 - 1 / 3) ** 2
    assert penalty(Z, logits, weights) == pytest.approx(value, rel=1e-6)
    both = value + 2 + 3 * (1 - 1 / 7) ** 2
    assert penalty(Z, logits, weights._replace(logits=True)) == pytest.approx(both, rel=1e-6)
    assert penalty(Z, logits, weights._replace(skew_target=1.0, kurtosis_target=2.0, logits=False)) == 0  # all are met
    assert penalty(Z, logits, weights._replace(skew_target=0.0, kurtosis_target=0.0)) == 0


@pytest.mark.parametrize("axis", ["row", "batch"])
@pytest.mark.parametrize("shape", [(4, 1, 7), (16, 2, 5), (3, 2, 64), (64, 2, 130), (130, 1, 20)])
def test_against_float64_on_many_inputs(shape, axis):
    """Values are right to 1e-5 and gradients to 1e-4 at any scale; long tails cost float32 the fifth digit."""
    weights = Weights(skew=1.0, kurtosis=0.5, axis=axis, logits=False)
    both = jax.jit(jax.value_and_grad(lambda Z: penalty(Z, None, weights)))
    rng = np.random.default_rng(shape)
    for i in range(100):
        Z = rng.normal(size=shape)
        Z = (Z, np.maximum(Z + 1, 0), Z**3, np.exp(Z), Z + 10)[i % 5] * 10 ** rng.uniform(-3, 3)
        Z = Z.astype(np.float32)
        if np.ptp(Z, axis=2 if axis == "row" else (0, 1)).min() == 0:
            continue
        value, gradient = both(Z)
        expected = want(Z, weights)
        # 4 at most; near their targets the hinges lose digits, as any difference does
        assert value == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-4 * np.abs(expected[1]).max())


@pytest.mark.parametrize("axis", ["row", "batch"])
def test_what_does_not_vary_has_no_gradient(axis):
    both = jax.jit(jax.value_and_grad(partial(penalty, weights=Weights(1.0, 1.0, axis=axis)), argnums=(0, 1)))
    for fill in (0, 0.1, 1e4):
        value, gradients = both(np.full((3, 2, 6), fill, np.float32), np.full((3, 2, 4), fill, np.float32))
        assert value == pytest.approx(4, rel=1e-6)  # the largest there is: two terms of Z and two of the logits
        assert not any(np.asarray(g).any() for g in gradients)
    Z = np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32)
    Z[0], Z[:, :, 2] = 7, 1  # a constant row and a constant feature among others
    value, gradients = both(Z, Z)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)
    assert np.abs(gradients[0]).max() < 10


def test_a_step_against_the_gradient_makes_logits_more_peaked():
    logits = np.random.default_rng(0).normal(size=(8, 1, 10)).astype(np.float32)
    weights = Weights(skew=0.0, kurtosis=1.0)
    gradient = jax.grad(lambda x: penalty(np.ones((8, 1, 4), np.float32), x, weights))(logits)
    before, after = (
        skd.compute_moments(logits)[1],
        skd.compute_moments(logits - 0.1 * gradient / jnp.abs(gradient).max())[1],
    )
    assert (after > before).all()
