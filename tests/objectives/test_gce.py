"""The generalised cross-entropy against its formula and gradient in float64, and where probabilities are 0 and 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.objectives.step import compute_losses, generalise
from nml_jax.tuning.holdout import Demands

LOGITS = np.float32([[[2, -1, 0.5]], [[-3, 4, 0]], [[0, 0, 0]]])
LABELS = np.array([0, 2, 1])


def lose(logits, q, labels=LABELS):
    return generalise(compute_losses(logits, labels), q)


def want(logits, q):
    """Compute (1 − p^q)/q and its gradient −p^q·(onehot − p) in float64."""
    x = np.float64(logits[:, 0])
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    own = p[np.arange(len(p)), LABELS]
    gradient = -(own[:, None] ** q) * (np.eye(3)[LABELS] - p)
    return ((1 - own**q) / q if q else -np.log(own))[:, None], gradient[:, None]


@pytest.mark.parametrize("q", [0.0, 1e-3, 0.3, 0.7, 1.0])
def test_value_and_gradient(q):
    value, gradient = want(LOGITS, q)
    traced = jax.jit(lose)(LOGITS, q)
    np.testing.assert_allclose(traced, value, rtol=2e-6)
    np.testing.assert_allclose(jax.grad(lambda x: lose(x, jnp.float32(q)).sum())(LOGITS), gradient, rtol=1e-5)
    np.testing.assert_allclose(Demands(q=q).compute_losses(LOGITS[:, 0], LABELS), value[:, 0], rtol=1e-12)


def test_by_hand():
    # logits (ln 3, 0): p = 3/4 of the first class; q = 1/2: (1 − √3/2)·2 = 2 − √3
    logits = np.log(np.float32([[[3, 1]]]))
    assert lose(logits, 0.5, np.array([0]))[0, 0] == pytest.approx(2 - np.sqrt(3), rel=1e-5)
    assert lose(logits, 1.0, np.array([1]))[0, 0] == pytest.approx(3 / 4, rel=1e-6)  # half the absolute error: 1 − p


def test_at_q_0_it_is_the_cross_entropy_bit_by_bit():
    def grad(f):
        return jax.grad(lambda x: f(x).sum())(LOGITS)

    np.testing.assert_array_equal(lose(LOGITS, 0.0), compute_losses(LOGITS, LABELS))
    np.testing.assert_array_equal(grad(lambda x: lose(x, 0.0)), grad(lambda x: compute_losses(x, LABELS)))


@pytest.mark.parametrize("q", [1e-6, 0.7, 1.0])
def test_probabilities_of_0_and_1(q):
    logits = np.float32([[[1e4, -1e4]], [[-1e4, 1e4]]])
    value, gradient = jax.value_and_grad(lambda x: lose(x, jnp.float32(q), np.array([0, 0])).sum())(logits)
    assert value == pytest.approx(-np.expm1(-2e4 * q) / q, rel=1e-5)  # p = e^−20000 in the second row
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[1, 0, 0], -np.exp(-2e4 * q), rtol=1e-3)
    np.testing.assert_array_equal(gradient[0], 0)
