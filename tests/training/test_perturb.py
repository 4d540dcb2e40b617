"""NoisyTune and NEFTune: their size, what they perturb, and that zero changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.training import perturb

KEY = jax.random.key(3)
TREE = {
    "conv": {"kernel": 2.0 + jax.random.normal(jax.random.key(0), (3, 3, 16, 32))},
    "dense": {"kernel": jax.random.normal(jax.random.key(1), (64, 32)), "bias": jnp.arange(32.0)},
    "twin": {"kernel": jax.random.normal(jax.random.key(1), (64, 32))},
    "constant": {"kernel": jnp.full((8, 8), 0.3)},
}


def test_noisytune_is_uniform_on_the_scale_of_each_matrix():
    out = perturb.noisytune(TREE, KEY, 0.4)
    for name in ("conv", "dense"):
        W = np.float64(TREE[name]["kernel"])
        added = (np.float64(out[name]["kernel"]) - W) / W.std()
        assert np.abs(added).max() <= 0.2 * (1 + 1e-5)
        assert np.abs(added).max() > 0.199
        np.testing.assert_allclose(added.std(), 0.4 / np.sqrt(12), rtol=0.05)
        assert abs(added.mean()) < 4 * 0.4 / np.sqrt(12 * W.size)


def test_noisytune_leaves_vectors_and_constant_matrices_alone():
    out = perturb.noisytune(TREE, KEY, 0.4)
    np.testing.assert_array_equal(out["dense"]["bias"], TREE["dense"]["bias"])
    np.testing.assert_allclose(out["constant"]["kernel"], TREE["constant"]["kernel"], atol=1e-7)


def test_noisytune_draws_separately_for_every_matrix_and_is_a_function_of_its_key():
    out = perturb.noisytune(TREE, KEY, 0.4)
    assert not np.allclose(out["dense"]["kernel"], out["twin"]["kernel"])  # equal matrices, other draws
    jax.tree.map(np.testing.assert_array_equal, out, perturb.noisytune(TREE, KEY, 0.4))
    assert not np.allclose(out["dense"]["kernel"], perturb.noisytune(TREE, jax.random.key(4), 0.4)["dense"]["kernel"])


def test_noisytune_of_zero_is_the_identity_even_where_it_is_traced():
    out = jax.jit(perturb.noisytune)(TREE, KEY, 0.0)
    jax.tree.map(np.testing.assert_array_equal, out, TREE)


def test_neftune_is_uniform_with_the_bound_of_the_paper():
    noise = np.asarray(perturb.neftune((8, 17), 48, KEY, 5.0, tokens=17))
    bound = 5.0 / np.sqrt(17 * 48)
    assert noise.shape == (8, 17, 48)
    assert noise.dtype == np.float32
    assert 0.999 * bound < np.abs(noise).max() <= bound * (1 + 1e-6)
    np.testing.assert_allclose(noise.std(), bound / np.sqrt(3), rtol=0.02)
    # Its norm over a sequence has the expectation α/√3, whatever the length and the width.
    np.testing.assert_allclose(np.sqrt((noise**2).sum((1, 2))), 5.0 / np.sqrt(3), rtol=0.1)


def test_neftune_of_a_vector_counts_it_as_one_token():
    noise = np.asarray(perturb.neftune((64,), 32, KEY, 2.0))
    bound = 2.0 / np.sqrt(32)
    assert noise.shape == (64, 32)
    assert 0.99 * bound < np.abs(noise).max() <= bound * (1 + 1e-6)
