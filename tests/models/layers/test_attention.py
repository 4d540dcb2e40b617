"""Attention in float32, by JAX's own function, and in float64, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.models.layers.attention import attend


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-13)])
def test_attention(causal: bool, dtype: str, tolerance: float):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 5, 3, 4)) * 3
    expected = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = slice(t + 1) if causal else slice(None)
        scores = k[b, seen, h] @ q[b, t, h] / 2
        odds = np.exp(scores - scores.max())
        expected[b, t, h] = odds @ v[b, seen, h] / odds.sum()
    with jax.enable_x64(dtype == "float64"):
        found = attend(*(jnp.asarray(x, dtype) for x in (q, k, v)), causal=causal)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
