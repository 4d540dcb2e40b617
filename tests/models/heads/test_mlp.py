import jax
import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form, Head, make_head

B, D, K, W = 7, 6, 3, 2
LINEAR, MLP = Form(mlp=False), Form(mlp=True, width=W)


def features(rows=B, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)


def make(form, seed=0):
    """Make a head, whose `apply` is compiled as a whole: that is quicker than one operation after another."""
    model = make_head(form, K)
    params, state = model.init(jax.random.key(seed), D)
    return Head(model.init, jax.jit(model.apply, static_argnames="train")), params, state


def randomise(tree, seed=1):
    """Fill the tree with positive random values, so that no parameter has a value that hides it."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), tree)


def randomise_signs(params):
    """Fill the tree with random values of both signs, so that about half of the ReLUs are at zero."""
    rng = np.random.default_rng(4)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)


def compute_by_hand(form, params, state, F, *, train):
    """Compute Z and logits in float64; BatchNorm uses the batch's statistics in training, else the running ones."""
    params, state = jax.tree.map(np.float64, (params, state))
    h = F
    for i in range(1, form.depth + 1):
        norm = "norm" if i == 1 else f"norm{i}"
        h = h @ params[f"dense{i}"]["kernel"] + params[f"dense{i}"]["bias"]
        if form.norm == "layer":
            h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
        elif form.norm == "batch":
            mean, var = (h.mean(0), h.var(0)) if train else (state[norm]["mean"], state[norm]["var"])
            h = (h - mean) / np.sqrt(var + 1e-5)
        if form.norm != "none":
            h = h * params[norm]["scale"] + params[norm]["bias"]
        h = np.maximum(h, 0)
    last = params[f"dense{form.depth + 1}"]
    Z = params["scale"] * (h @ last["kernel"] + last["bias"]) + (F if form.residual else 0)
    return Z, Z @ params["classifier"]["kernel"] + params["classifier"]["bias"]


@pytest.mark.parametrize(
    ("form", "count"),
    [
        (LINEAR, D * K + K),
        (Form(True, width=4), (D * 24 + 24) + 2 * 24 + (24 * D + D) + D + (D * K + K)),
        (Form(True, width=2), (D * 12 + 12) + 2 * 12 + (12 * D + D) + D + (D * K + K)),
        (Form(True, 2, depth=3), (D * 12 + 12) + 2 * (12 * 12 + 12) + 3 * 2 * 12 + (12 * D + D) + D + (D * K + K)),
        (Form(True, 1, residual=False, norm="layer"), (D * D + D) + 2 * D + (D * D + D) + D + (D * K + K)),
        (Form(True, 1, norm="none"), (D * D + D) + (D * D + D) + D + (D * K + K)),
    ],
)
def test_number_of_parameters(form, count):
    _, params, _ = make(form)
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))


def test_initial_values():
    model = make_head(Form(mlp=True, width=4), 50)
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
    model, params, state = make(LINEAR)
    params = randomise(params)
    F = features()
    outputs, new_state = model.apply(params, state, F, train=True)
    np.testing.assert_array_equal(outputs["features"], F)
    want = F @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(outputs["logits"], want, rtol=1e-5)
    assert new_state == state == {}


FORMS = [
    MLP,
    Form(True, 3, depth=2),
    Form(True, W, depth=2, residual=False),
    Form(True, W, depth=2, norm="layer"),
    Form(True, W, depth=2, residual=False, norm="none"),
    Form(True, W, norm="layer", residual=False),
]


@pytest.mark.parametrize("form", FORMS)
def test_mlp_in_training(form):
    model, params, state = make(form)
    params, state = randomise_signs(params), randomise(state, 2)
    F = features()
    outputs, new_state = model.apply(params, state, F, train=True)
    Z, logits = compute_by_hand(form, params, state, F, train=True)
    np.testing.assert_allclose(outputs["features"], Z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-5)
    if form.norm != "batch":
        assert new_state == state == {}
        return
    h = F @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    for name, batch in (("mean", h.mean(0)), ("var", h.var(0, ddof=1))):  # PyTorch's running variance is unbiased
        want = 0.9 * state["norm"][name] + 0.1 * batch
        np.testing.assert_allclose(new_state["norm"][name], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_mlp_in_evaluation(form):
    model, params, state = make(form)
    params, state = randomise_signs(params), randomise(state, 2)
    F = features()
    outputs, new_state = model.apply(params, state, F, train=False)
    Z, logits = compute_by_hand(form, params, state, F, train=False)
    np.testing.assert_allclose(outputs["features"], Z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, new_state, state)
    alone, _ = model.apply(params, state, F[:1], train=False)
    np.testing.assert_allclose(alone["logits"], outputs["logits"][:1], rtol=1e-5, atol=1e-5)


def test_statistics_of_the_input_standardise_it():
    model, params, state = make(MLP)
    params, state = randomise(params), randomise(state, 2)
    F = features()
    mean, scale = features(1, 3)[0], np.linspace(1, 3, D, dtype=np.float32)
    want, _ = model.apply(params, state, (F - mean) / scale, train=True)
    given = {**state, "input": {"mean": mean, "scale": scale}}
    got, new_state = model.apply(params, given, F, train=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    np.testing.assert_array_equal(new_state["input"]["mean"], mean)


def test_a_single_row_is_finite():
    model, params, state = make(MLP)
    outputs, new_state = model.apply(params, state, features(1), train=True)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((outputs, new_state)))


@pytest.mark.parametrize(
    ("form", "cause"),
    [
        (Form(True, norm="group"), r"'group'.*\n.*batch, layer, none"),
        (Form(True, width=0), "width 0 and depth 1"),
        (Form(True, depth=0), "width 4 and depth 0"),
    ],
)
def test_an_impossible_form(form, cause):
    with pytest.raises(UserError, match=cause):
        make_head(form, K)
