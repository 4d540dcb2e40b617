import jax
import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.models.heads import head

B, D, K, W = 7, 6, 3, 2


def features(rows=B, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)


def made(method, seed=0, width=W):
    model = head(method, num_classes=K, width=width)
    return model, *model.init(jax.random.key(seed), D)


def shuffled(tree, seed=1):
    """The tree with positive random values everywhere, so that no parameter is at a value that hides it."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), tree)


def by_hand(params, F, mean=None, var=None):
    """Z and logits in float64; batch statistics unless running ones are given."""
    params = jax.tree.map(np.float64, params)
    h = F @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    mean = h.mean(0) if mean is None else mean
    var = ((h - h.mean(0)) ** 2).mean(0) if var is None else var
    h = (h - mean) / np.sqrt(var + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    h = np.maximum(h, 0) @ params["dense2"]["kernel"] + params["dense2"]["bias"]
    Z = params["scale"] * h + F
    return Z, Z @ params["classifier"]["kernel"] + params["classifier"]["bias"]


@pytest.mark.parametrize(
    ("method", "width", "count"),
    [
        ("linear", 4, D * K + K),
        ("mlp", 4, (D * 24 + 24) + 2 * 24 + (24 * D + D) + D + (D * K + K)),
        ("nmtune", 2, (D * 12 + 12) + 2 * 12 + (12 * D + D) + D + (D * K + K)),
    ],
)
def test_number_of_parameters(method, width, count):
    _, params, _ = made(method, width=width)
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))


def test_initial_values():
    model = head("mlp", num_classes=50, width=4)
    params, state = model.init(jax.random.key(0), 100)
    for part, name, bound in (
        ("classifier", "kernel", np.sqrt(6 / 100)),  # Kaiming-uniform
        ("dense1", "kernel", 1 / 10), ("dense1", "bias", 1 / 10),  # PyTorch's default
        ("dense2", "kernel", 1 / 20), ("dense2", "bias", 1 / 20),
    ):  # fmt: skip
        x = np.asarray(params[part][name])
        assert 0.97 * bound < np.abs(x).max() <= bound
        assert np.abs(x.mean()) < 0.2 * bound
        assert x.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert not np.asarray(params["classifier"]["bias"]).any()
    assert (params["scale"] == 1).all()
    assert (params["norm"]["scale"] == 1).all()
    assert not np.asarray(params["norm"]["bias"]).any()
    assert (state["norm"]["var"] == 1).all()
    assert not np.asarray(state["norm"]["mean"]).any()
    assert (model.init(jax.random.key(1), 100)[0]["dense1"]["kernel"] != params["dense1"]["kernel"]).mean() > 0.99


def test_linear():
    model, params, state = made("linear")
    params = shuffled(params)
    F = features()
    outputs, new_state = model.apply(params, state, F, train=True)
    np.testing.assert_array_equal(outputs["features"], F)
    want = F @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(outputs["logits"], want, rtol=1e-5)
    assert new_state == state == {}


@pytest.mark.parametrize("method", ["mlp", "nmtune"])
def test_mlp_in_training(method):
    model, params, state = made(method)
    params, state = shuffled(params), shuffled(state, 2)
    F = features()
    outputs, new_state = model.apply(params, state, F, train=True)
    Z, logits = by_hand(params, F)
    np.testing.assert_allclose(outputs["features"], Z, rtol=1e-4)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4)
    h = F @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    for name, batch in (("mean", h.mean(0)), ("var", h.var(0, ddof=1))):  # PyTorch's running variance is unbiased
        np.testing.assert_allclose(new_state["norm"][name], 0.9 * state["norm"][name] + 0.1 * batch, rtol=1e-5)


def test_mlp_in_evaluation():
    model, params, state = made("mlp")
    params, state = shuffled(params), shuffled(state, 2)
    F = features()
    outputs, new_state = model.apply(params, state, F, train=False)
    Z, logits = by_hand(params, F, **state["norm"])
    np.testing.assert_allclose(outputs["features"], Z, rtol=1e-4)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, new_state, state)
    alone, _ = model.apply(params, state, F[:1], train=False)
    np.testing.assert_allclose(alone["logits"], outputs["logits"][:1], rtol=1e-5)


def test_statistics_of_the_input_standardise_it():
    model, params, state = made("nmtune")
    params, state = shuffled(params), shuffled(state, 2)
    F = features()
    mean, scale = features(1, 3)[0], np.linspace(1, 3, D, dtype=np.float32)
    want, _ = model.apply(params, state, (F - mean) / scale, train=True)
    given = {**state, "input": {"mean": mean, "scale": scale}}
    got, new_state = model.apply(params, given, F, train=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    np.testing.assert_array_equal(new_state["input"]["mean"], mean)


def test_a_single_row_is_finite():
    model, params, state = made("mlp")
    outputs, new_state = model.apply(params, state, features(1), train=True)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((outputs, new_state)))


def test_an_unknown_method():
    with pytest.raises(UserError, match=r"'mpl'.*\n.*linear, mlp, nmtune"):
        head("mpl", num_classes=K)
