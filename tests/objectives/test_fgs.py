import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.objectives import fgs
from nml_jax.objectives.fgs import Weights
from nml_jax.objectives.lgm import perturb
from nml_jax.objectives.step import Step

KEY = jax.random.key(3)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def penalty(F, W, weights):
    """Compute the penalty of the linear map Z = F W."""
    form = Weights(*(float(x != 0) if isinstance(x, float) else x for x in weights))
    traced = Weights(*(jnp.float32(x) if isinstance(x, float) else "" for x in weights))

    def head(F):
        Z = jnp.matmul(F, W, precision="highest")
        return Z, Z[..., :2]

    labels = np.zeros(len(F), np.int32)
    return fgs.penalty(Step(F, *head(F), labels, head, KEY), form, traced)


def both(weights):
    return jax.jit(jax.value_and_grad(lambda W, F: penalty(F, W, weights)))


def want_variance(F, Z, target):
    """Compute the value and the gradient by Z in float64."""
    F, Z, shape = np.float64(F).reshape(-1, F.shape[-1]), np.float64(Z).reshape(-1, Z.shape[-1]), Z.shape
    mean = F.var(0, ddof=1).mean()
    std = np.sqrt(Z.var(0, ddof=1) / mean + 1e-4)
    gradient = (std < target) * (Z.mean(0) - Z) / (len(Z) - 1) / mean / std / Z.shape[1]
    return np.maximum(target - std, 0).mean(), gradient.reshape(shape)


def test_variance_by_hand():
    # variances of F: 4 and 0, 2 on average; of Z 1/2 and 0
    F, Z = np.float32([[[0, 5]], [[2, 5]], [[4, 5]]]), np.float32([[[0, 1]], [[1, 1]], [[np.sqrt(0.25), 1]]])
    want = (1 - np.sqrt(0.25 / 2 + 1e-4) + 1 - 0.01) / 2
    assert fgs.variance(F, Z) == pytest.approx(want, rel=1e-6)
    assert fgs.variance(F, 10 * F) == pytest.approx(
        (1 - 0.01) / 2, rel=1e-6
    )  # a feature that varies enough adds nothing


@pytest.mark.parametrize("shape", [(2, 1, 7), (16, 2, 5), (4, 2, 64), (64, 2, 130), (130, 1, 20)])
def test_variance_against_float64_on_many_inputs(shape):
    """Values and gradients are right to 1e-5 at any scale, on 200 inputs of each shape."""
    function = jax.jit(jax.value_and_grad(fgs.variance, argnums=1))
    rng = np.random.default_rng(shape)
    for i in range(200):
        scale = 10 ** rng.uniform(-3, 3)
        F, Z = (x.astype(np.float32) for x in scale * rng.normal(size=(2, *shape)))
        Z = (Z, np.maximum(Z, 0), Z + 3 * scale, Z * 10 ** rng.uniform(-2, 1, shape[-1]), np.ones(shape))[i % 5]
        Z = np.float32(Z)
        value, gradient = function(F, Z, 1.3)
        expected = want_variance(F, Z, 1.3)
        assert value == pytest.approx(expected[0], rel=1e-5, abs=5e-7)  # some ulp of the target, where all is near it
        np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-5 * np.abs(expected[1]).max() + 1e-12)


@pytest.mark.parametrize("scale", ["feature", "one"])
def test_terms_of_a_linear_head(scale):
    F, W = normal((8, 2, 5)), normal((5, 5), 1)
    step = Step(F, None, None, None, None, KEY)  # pyright: ignore[reportArgumentType]
    moved = np.float64(perturb(step, 0.3, scale))

    def value(W):
        Z, other = np.float64(F) @ W, moved @ W
        return (unit(Z) - unit(other)) ** 2, want_variance(F, Z, 2.0)[0], (unit(Z) - unit(np.float64(F))) ** 2

    consistency, variance, distillation = value(np.float64(W))
    want = 2 * consistency.sum(-1).mean() + 3 * variance + 4 * distillation.sum(-1).mean()
    weights = Weights(2.0, 3.0, 4.0, noise=0.3, scale=scale, target=2.0)
    assert both(weights)(W, F)[0] == pytest.approx(want, rel=1e-5)


def test_the_gradient_of_consistency_goes_through_the_perturbed_features_alone():
    F, W = normal((8, 2, 5)), normal((5, 5), 1)
    moved = np.float64(perturb(Step(F, None, None, None, None, KEY), 0.3, "feature"))  # pyright: ignore
    gradient = np.asarray(both(Weights(1.0, 0.0, 0.0, noise=0.3))(W, F)[1])
    fixed, numerical = unit(np.float64(F) @ np.float64(W)), np.zeros((5, 5))
    for i in np.ndindex(5, 5):
        values = []
        for eps in (1e-6, -1e-6):
            near = np.float64(W)
            near[i] += eps
            values.append(((unit(moved @ near) - fixed) ** 2).sum(-1).mean())
        numerical[i] = (values[0] - values[1]) / 2e-6
    np.testing.assert_allclose(gradient, numerical, rtol=0, atol=1e-5 * np.abs(numerical).max())


def test_no_noise_no_consistency():
    value, gradient = both(Weights(1.0, 0.0, 0.0, noise=0.0))(
        normal((4, 2, 5), 1)[0, 0][None].repeat(5, 0), normal((8, 2, 5))
    )
    assert value == pytest.approx(0, abs=1e-12)
    assert np.isfinite(gradient).all()


def test_degenerate_features_keep_it_finite():
    W = normal((5, 5))
    for F in (np.zeros((4, 2, 5)), np.ones((4, 2, 5)), normal((1, 1, 5))):
        for W_ in (W, np.zeros((5, 5), np.float32)):
            value, gradient = both(Weights())(W_, np.float32(F))
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()
