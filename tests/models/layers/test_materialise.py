import jax
import jax.numpy as jnp
import numpy as np

from nml_jax import runtime
from nml_jax.models.layers.materialise import materialise


def residuals(x: jax.Array) -> jax.Array:
    for _ in range(3):
        x = materialise(x + jnp.sin(x))
    return jnp.sum(x)


def test_it_is_the_identity_and_so_is_its_gradient():
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(materialise(x), x)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(materialise(x)))(x), np.ones(3))
    np.testing.assert_array_equal(jax.vmap(jax.grad(residuals))(x[:, None])[:, 0], jax.grad(residuals)(x))


def test_barriers_reach_the_fusion_of_a_cpu_forward_and_backward(mesh):
    """There are six barriers: three in the forward pass, which the gradient needs, and three in the backward pass."""
    gradient = jax.value_and_grad(residuals)
    compiled = runtime.jit(gradient, mesh).lower(jnp.arange(3.0)).compile()
    assert compiled.as_text().count(" opt-barrier(") == 6
    np.testing.assert_allclose(compiled(jnp.arange(3.0))[1], gradient(jnp.arange(3.0))[1], rtol=1e-6)
    text = jax.jit(gradient).trace(jnp.arange(3.0)).lower(lowering_platforms=("tpu",)).as_text()
    assert "optimization_barrier" not in text, "other compilers get no barrier"
