import importlib.util
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from nml_jax.errors import UserError
from nml_jax.models.heads import mlp
from nml_jax.objectives import nmtune, nmtune_single
from nml_jax.objectives.nmtune import PRESETS, Weights
from nml_jax.objectives.step import Step

SHAPES = [(4, 9), (6, 6), (9, 4), (1, 5), (3, 1)]


# The terms as the papers write them, in float64: D×D covariance, a full SVD.


def consistency(F, Z):
    F, Z = np.float64(F), np.float64(Z)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (F, Z)]
    return ((unit[0] - unit[1]) ** 2).sum(-1).mean()


def covariance(Z):
    Z = np.float64(Z)
    C = (Z - Z.mean(0)).T @ (Z - Z.mean(0)) / (len(Z) - 1)
    return ((C - np.diag(np.diag(C))) ** 2).sum() / len(C)


def singular(Z, top):
    s = np.linalg.svd(np.float64(Z), compute_uv=False)
    return -s[:top].mean() / s.sum()


def svd(Z):
    return np.linalg.svd(np.float64(Z), full_matrices=False)


def consistency_gradient(F, Z):
    F, Z = np.float64(F), np.float64(Z)
    f, z = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (F, Z))
    return 2 / len(Z) * ((f * z).sum(-1, keepdims=True) * z - f) / np.linalg.norm(Z, axis=-1, keepdims=True)


def covariance_gradient(Z):
    Z = np.float64(Z)
    Z = Z - Z.mean(0)
    C = Z.T @ Z / (len(Z) - 1)
    return 4 * Z @ (C - np.diag(np.diag(C))) / (len(Z) - 1) / Z.shape[1]


def singular_gradient(Z, top, factors=None):
    U, s, Vt = factors or svd(Z)
    rank = (s > 1e-12 * s[0]).sum()
    top = min(top, len(s))
    largest = 1.0 * (np.arange(len(s)) < top)
    g = -largest / top / s.sum() + s[:top].mean() / s.sum() ** 2
    return (U[:, :rank] * g[:rank]) @ Vt[:rank]


def numerical_gradient(f, x, eps=1e-6):
    out = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[i] = eps
        out[i] = (f(x + step) - f(x - step)) / (2 * eps)
    return out


_consistency = jax.jit(jax.value_and_grad(nmtune.consistency, argnums=1), static_argnames="per_dim")
_covariance = jax.jit(jax.value_and_grad(nmtune.covariance))
_singular = jax.jit(jax.value_and_grad(nmtune.singular), static_argnums=1)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(got, want, rel=1e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=rel * max(np.abs(want).max(), 1e-3))


@pytest.mark.parametrize("shape", SHAPES)
def test_consistency(shape):
    F, Z = normal(shape), normal(shape, 1)
    value, gradient = _consistency(F, Z)
    assert value == pytest.approx(consistency(F, Z), rel=1e-5)
    want = numerical_gradient(lambda z: consistency(F, z), np.float64(Z))
    np.testing.assert_allclose(gradient, want, rtol=0, atol=2e-6)
    assert _consistency(F, Z, per_dim=True)[0] == pytest.approx(consistency(F, Z) / shape[1], rel=1e-5)


def test_consistency_leaves_its_target_alone_and_survives_rows_of_zeros():
    F, Z = normal((3, 4)), normal((3, 4), 1)
    assert not np.asarray(jax.jit(jax.grad(nmtune.consistency))(F, Z)).any()
    F[0], Z[1] = 0, 0
    value, gradient = _consistency(F, Z)
    assert value == pytest.approx((1 + 1 + consistency(F[2:], Z[2:])) / 3, rel=1e-5)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[1].any()


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] > 1])
def test_covariance(shape):
    Z = normal(shape) + 3
    value, gradient = _covariance(Z)
    assert value == pytest.approx(covariance(Z), rel=1e-4, abs=1e-6)
    assert_close(gradient, numerical_gradient(covariance, np.float64(Z)), 1e-4)


def test_covariance_of_one_row_is_zero():
    value, gradient = _covariance(normal((1, 5)))
    assert value == 0
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("top", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular(shape, top):
    Z = normal(shape)
    value, gradient = _singular(Z, top)
    assert value == pytest.approx(singular(Z, top), rel=1e-6)
    assert_close(gradient, singular_gradient(Z, top), 1e-6)
    assert_close(gradient, numerical_gradient(lambda z: singular(z, top), np.float64(Z)), 1e-6)


@pytest.mark.parametrize("top", [1, 5])
@pytest.mark.parametrize("shape", [(32, 64), (32, 32), (64, 32)])
@pytest.mark.parametrize("difference", [1e-1, 1e-3, 1e-5, 1e-7])
def test_singular_with_near_duplicate_rows(shape, difference, top):
    """σmin/σ₁ falls to rounding, where a float32 Gram matrix gives a gradient that is wrong by half its size."""
    Z = normal(shape)
    Z[1::2] = Z[::2] + difference * Z[1::2]
    value, gradient = _singular(Z, top)
    assert value == pytest.approx(singular(Z, top), rel=1e-6)
    assert_close(gradient, singular_gradient(Z, top), 1e-5)


@pytest.mark.parametrize("top", [1, 5])
@pytest.mark.parametrize("shape", [(8, 12), (8, 8), (12, 8)])
def test_singular_of_rank_deficient_features(shape, top):
    """Directions of σ = 0 have no gradient; the others have the exact one."""
    integers = np.random.default_rng(0).integers(1, 9, (2, max(shape)))
    for Z in (
        np.outer(integers[0, : shape[0]], integers[1, : shape[1]]),
        np.ones(shape),
        np.repeat(normal(shape)[::2], 2, axis=0)[: shape[0]],
    ):
        value, gradient = _singular(np.float32(Z), top)
        if np.linalg.matrix_rank(Z) == 1 and top == 5:  # values of zero count as values
            assert value == pytest.approx(-1 / 5, rel=1e-5)
        assert value == pytest.approx(singular(Z, top), rel=1e-5)
        assert_close(gradient, singular_gradient(Z, top), 1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
@pytest.mark.parametrize("scale", [0, 1e-30, 1e-10, 1e10])
def test_singular_at_any_scale(shape, scale):
    Z = normal(shape)
    value, gradient = _singular(np.float32(scale) * Z, 1)
    if scale == 0:
        assert value == 0
        assert not np.asarray(gradient).any()
    else:
        assert value == pytest.approx(singular(Z, 1), rel=1e-6)
        assert_close(np.float64(gradient) * scale, singular_gradient(Z, 1), 1e-5)


def test_nan_is_not_lost():
    Z = normal((4, 6))
    Z[0, 0] = np.nan
    value, gradient = _singular(Z, 1)
    assert np.isnan(value)
    assert np.isnan(gradient).any()


def test_singular_under_transformations():
    Z = normal((3, 4, 6))
    want = np.stack([singular_gradient(z, 2) for z in Z])

    def gradient(z):
        return jax.grad(lambda z: 7 * nmtune.singular(z, 2))(z) / 7

    def scanned(Z):
        return jax.lax.scan(lambda carry, z: (carry, gradient(z)), 0, Z)[1]

    assert_close(jax.jit(jax.vmap(gradient))(Z), want, 1e-6)
    assert_close(jax.jit(scanned)(Z), want, 1e-6)
    assert_close(jax.jit(jax.vmap(scanned))(Z[None]), want[None], 1e-6)


def draw(rng, shape):
    """Draw a float32 matrix of one of many kinds."""
    rows, dim = shape
    kind = rng.integers(10)
    Z = rng.normal(size=shape)
    if kind == 1:  # after a ReLU
        Z = np.maximum(Z + 0.3, 0)
    elif kind == 2:  # a mean far from zero
        Z += 100 * rng.normal(size=dim)
    elif kind == 3:  # some features vary much more than others
        Z *= 10 ** rng.uniform(-3, 3, dim)
    elif kind == 4:  # near-duplicate rows, as of two views
        Z[rows // 2 :] = Z[: rows - rows // 2] + 10 ** rng.uniform(-7, -1) * Z[rows // 2 :]
    elif kind == 5:  # of low rank, up to rounding
        rank = rng.integers(1, 4)
        Z = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, dim))
    elif kind == 6:  # a spectrum that falls off
        U, _, Vt = svd(Z)
        Z = (U * np.exp(-rng.uniform(0, 1) * np.arange(U.shape[1]))) @ Vt
    elif kind == 7:  # nothing at all, in all rows or some
        Z[rng.integers(0, 2, rows) * rng.integers(0, 2) == 0] = 0
    elif kind == 8:  # constant features
        Z[:, rng.integers(0, 2, dim) == 0] = 1
    return (Z * 10 ** rng.uniform(-3, 3)).astype(np.float32)


SIDES = {
    (2, 2): 80, (2, 40): 80, (3, 5): 80, (5, 3): 80, (4, 4): 80, (16, 16): 80, (16, 31): 80, (24, 12): 80, (40, 2): 80,
    (32, 33): 60, (33, 32): 60, (8, 300): 60, (17, 130): 40, (64, 64): 20, (130, 20): 20, (130, 130): 10,
    (128, 300): 10,
}  # fmt: skip


@pytest.fixture
def one_blas_thread():
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(params=["double", "single"])
def arithmetic(request, monkeypatch):
    """The rules of CPUs and GPUs, then those of TPUs, both on this CPU."""
    if request.param == "single":
        monkeypatch.setattr(nmtune, "SINGLE", ("cpu",))
    return request.param


@pytest.mark.usefixtures("one_blas_thread")
@pytest.mark.parametrize("shape", SIDES)
def test_against_float64_on_many_matrices(shape, arithmetic):
    """Gradients of 1,000 matrices are right to a share of their largest entry, and always finite.

    In float64, to 1e-5, or to 1e-4 if σmin/σ₁ is below 0.05. In float32, to 1e-4; the singular term's only if σmin/σ₁
    is at least 0.05, below which its value is right to 5e-3.
    """
    double = arithmetic == "double"
    rel = 1e-5 if double else 1e-4

    @jax.jit
    def all_terms(F, Z):
        terms = {
            "sum": lambda Z: nmtune.consistency(F, Z),
            "mean": lambda Z: nmtune.consistency(F, Z, per_dim=True),
            "cov": nmtune.covariance,
            "top1": lambda Z: nmtune.singular(Z, 1),
            "top5": lambda Z: nmtune.singular(Z, 5),
        }
        return {name: jax.value_and_grad(term)(Z) for name, term in terms.items()}

    rng = np.random.default_rng(shape)
    for i in range(SIDES[shape]):
        F, Z = draw(rng, shape), draw(rng, shape)
        if i % 5 == 0:  # a head that has come close to F
            Z = (F * (1 + 1e-3 * rng.normal(size=shape))).astype(np.float32)
        got = jax.device_get(all_terms(F, Z))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
        if F.any(1).all() and Z.any(1).all():
            near(got["sum"], (consistency(F, Z), consistency_gradient(F, Z)), rel)
            near(got["mean"], (consistency(F, Z) / shape[1], consistency_gradient(F, Z) / shape[1]), rel)
        peak = 0 if double else np.abs(Z).max()  # of float32's mean of a constant column, rounding is left
        near(got["cov"], (covariance(Z), covariance_gradient(Z)), rel, (1e-7 * peak**4, 1e-7 * peak**3))
        if Z.any():
            factors = svd(Z)
            s = factors[1]
            for top in (1, 5):
                want = -s[:top].mean() / s.sum(), singular_gradient(Z, top, factors)
                steep = s[-1] < 0.05 * s[0]
                if double:
                    near(got[f"top{top}"], want, 1e-4 if steep else 1e-5)
                elif steep:
                    assert got[f"top{top}"][0] == pytest.approx(want[0], rel=5e-3)
                else:  # with `top` values or fewer the gradient is zero, and rounding is left
                    near(got[f"top{top}"], want, rel, (0, 1e-6 / s.sum()))


def near(got, want, rel=1e-5, small=(0.0, 0.0)):
    """Compare to `rel` of the value and of the gradient's largest entry, down to `small` and rounding of float64."""
    np.testing.assert_allclose(got[0], want[0], rtol=rel, atol=small[0] + 1e-12)
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=rel * np.abs(want[1]).max() + small[1] + 1e-12)


def test_a_rough_decomposition_is_mended():
    """A TPU's eigenvectors may be off in the fifth digit."""
    Z = normal((40, 24))
    gram = jnp.float32(np.float64(Z).T @ Z)
    eigenvalues, q = np.linalg.eigh(np.float64(gram))
    rough = np.float32(q + 1e-5 * normal(q.shape, 1))
    mended, directions = nmtune_single.refine(gram, jnp.float32(eigenvalues), jnp.asarray(rough))
    np.testing.assert_allclose(mended, eigenvalues, rtol=0, atol=1e-6 * eigenvalues[-1])
    assert np.abs(rough.T @ gram @ rough - np.diag(eigenvalues)).max() > 1e-5 * eigenvalues[-1]
    assert np.abs(np.float64(directions.T) @ gram @ directions - np.diag(eigenvalues)).max() < 1e-6 * eigenvalues[-1]
    assert np.abs(np.float64(directions.T) @ directions - np.eye(24)).max() < 1e-6


@pytest.mark.parametrize("scale", [0, 1e-38, 1e-30, 1e9])
def test_float32_at_any_scale(scale, monkeypatch):
    monkeypatch.setattr(nmtune, "SINGLE", ("cpu",))
    F, Z = normal((6, 4)), normal((6, 4), 1)
    for term in (lambda Z: nmtune.consistency(F, Z), nmtune.covariance, lambda Z: nmtune.singular(Z, 2)):
        value, gradient = jax.jit(jax.value_and_grad(term))(np.float32(scale) * Z)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


# One view, two rows. F/‖F‖ = (0.6, 0.8), (0, 1) and Z/‖Z‖ = (1, 0), (0, 1): the squares are 0.16 + 0.64 and 0.
# Z − mean = ±(0.5, −1), so C = ((0.5, −1), (−1, 2)) and COV = 2/2. σ = 2, 1.
ONE = np.float32([[[3, 4]], [[0, 1]]]), np.float32([[[1, 0]], [[0, 2]]])


def total(F, Z, weights):
    """Call the penalty as training does: with traced weights and a static form."""
    form = Weights(*(float(x != 0) if isinstance(x, float) else x for x in weights))
    traced = Weights(*(jnp.float32(x) if isinstance(x, float) else 0 for x in weights))
    # logits, labels, head and key play no part
    return nmtune.penalty(Step(F, Z, None, None, None, None), form, traced)  # pyright: ignore[reportArgumentType]


def test_preset_paper_by_hand():
    assert total(*ONE, PRESETS["paper"]) == pytest.approx(0.01 * (0.4 + 1 - 2 / 3), rel=1e-6)


def test_preset_code_with_one_view_by_hand():
    # MSE is divided by D = 2, and of two singular values the mean of the five largest is 1.5
    assert total(*ONE, PRESETS["code"]) == pytest.approx(1.0 * 0.2 + 0.04 * 1 + 0.001 * -1.5 / 3, rel=1e-6)


# Two views. Z of view 2, (0, 0) and (0, 1), against F of view 1, (0.6, 0.8) and (0, 1): squares 1 and 0. The rows of Z
# less their mean (1, 1) are ±(1, 1), ±(1, 0), so C_12 = 2/3 and COV = 2·(4/9)/2. ZᵀZ = ((8, 6), (6, 6)), σ² = 7 ± √37.
TWO = np.float32([[[3, 4], [5, -7]], [[0, 1], [2, 9]]]), np.float32([[[2, 2], [0, 0]], [[2, 1], [0, 1]]])


def test_preset_code_with_two_views_by_hand():
    want = 1.0 * (1 + 0) / 2 / 2 + 0.04 * 4 / 9 + 0.001 * -1 / 2
    assert total(*TWO, PRESETS["code"]) == pytest.approx(want, rel=1e-6)


def test_preset_paper_with_two_views_by_hand():
    F, Z = TWO
    mse = (2 * consistency(F[:, 0], Z[:, 0]) + 1 + consistency(F[1:, 1], Z[1:, 1])) / 4  # against its own; one is zero
    large, small = np.sqrt(7 + np.sqrt(37)), np.sqrt(7 - np.sqrt(37))
    assert total(F, Z, PRESETS["paper"]) == pytest.approx(0.01 * (mse + 4 / 9 - large / (large + small)), rel=1e-6)


def test_weights_of_zero_leave_nothing():
    assert total(*TWO, Weights()) == 0


def test_loss_is_cross_entropy_and_penalty():
    logits, labels = np.log(np.float32([[[1, 3], [1, 1]], [[1, 1], [3, 1]]])), np.int32([1, 0])
    loss = jax.jit(nmtune.loss, static_argnames="weights")(*TWO, logits, labels, weights=PRESETS["code"])
    assert loss == pytest.approx(
        0.490414627 + float(total(*TWO, PRESETS["code"])), rel=1e-6
    )  # −ln of 3/4, 1/2, 1/2, 3/4


@pytest.mark.parametrize("weights", [*PRESETS.values(), Weights(mse=2.0, cov=3.0, svd=4.0, top=2)])
@pytest.mark.usefixtures("arithmetic")
def test_gradient_of_the_whole_is_finite_for_degenerate_features(weights):
    F = normal((3, 2, 4))
    gradient = jax.jit(jax.grad(lambda Z: total(F, Z, weights)))
    for Z in (np.zeros((3, 2, 4)), np.ones((3, 2, 4)), np.repeat(normal((3, 1, 4)), 2, axis=1)):
        assert np.isfinite(gradient(np.float32(Z))).all()


def test_terms_map_over_settings_with_the_features_in_common():
    F, Z = normal((4, 2, 6)), normal((3, 4, 2, 6), 1)
    both = jax.value_and_grad(lambda z: total(F, z, PRESETS["code"]))
    values, gradients = jax.jit(jax.vmap(both))(Z)
    for i, (value, gradient) in enumerate(map(jax.jit(both), Z)):
        assert values[i] == pytest.approx(float(value), rel=1e-6)
        assert_close(gradients[i], gradient, 1e-6)


def train_as_released(weights):
    """Return the losses of the released procedure's 50 steps, and those that PyTorch had with `code`."""
    path = Path(__file__).with_name("golden_released.py")
    spec = typing.cast(typing.Any, importlib.util.spec_from_file_location(path.stem, path))
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    flat, features, labels = golden.arrays()
    model = mlp.make_head(mlp.Form(mlp=True, width=golden.WIDTH), golden.CLASSES)
    params, state = model.init(jax.random.key(0), golden.DIM)
    params = jax.tree.map_with_path(lambda path, x: flat["/".join(k.key for k in path)].reshape(x.shape), params)
    optimizer = optax.adamw(
        lambda step: golden.LR * (1 + jnp.cos(jnp.pi * step / golden.STEPS)) / 2, weight_decay=golden.WEIGHT_DECAY
    )

    def loss(params, state, F, label):
        outputs, state = model.apply(params, state, F.reshape(-1, golden.DIM), train=True)
        Z, logits = (outputs[name].reshape(*F.shape[:2], -1) for name in ("features", "logits"))
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label[:, None]).mean()
        return entropy + total(F, Z, weights), state

    @jax.jit
    def run(params, state):
        def step(carry, batch):
            params, state, opt_state = carry
            (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params, state, *batch)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), state, opt_state), value

        return jax.lax.scan(step, (params, state, optimizer.init(params)), (features, labels.astype(np.int32)))[1]

    return run(params, state), load_file(golden.FILE)["losses"]


@pytest.mark.usefixtures("arithmetic")
def test_code_preset_follows_the_released_procedure():
    """50 steps from the same weights on the same batches give PyTorch's losses, to 1e-3 in float32."""
    ours, theirs = train_as_released(PRESETS["code"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_both_arithmetics_train_alike(monkeypatch):
    double, _ = train_as_released(PRESETS["paper"])
    monkeypatch.setattr(nmtune, "SINGLE", ("cpu",))
    single, _ = train_as_released(PRESETS["paper"])
    assert (single != double).any()
    np.testing.assert_allclose(single, double, rtol=1e-3)


def test_names_of_presets():
    assert nmtune.resolve_weights("code", views=1) == (PRESETS["code"], "code/1view")
    assert nmtune.resolve_weights("code", views=2) == (PRESETS["code"], "code")
    assert nmtune.resolve_weights("paper", views=1) == (PRESETS["paper"], "paper")
    free = Weights(mse=0.5, top=3)
    assert nmtune.resolve_weights(free, views=1) == (free, "mse=0.5,cov=0,svd=0,per_dim=0,cross_view=0,top=3")
    with pytest.raises(UserError, match=r"'papers'.*\n.*paper, code"):
        nmtune.resolve_weights("papers", views=1)


def test_overrides_replace_the_values_of_a_preset():
    assert nmtune.resolve_weights("paper", 1, svd=0.1, top=None) == (
        PRESETS["paper"]._replace(svd=0.1),
        "paper,svd=0.1",
    )
    assert nmtune.resolve_weights("paper", 1, svd=0.01)[1] == "paper"
    assert nmtune.resolve_weights("code", 1, cov=0, top=2)[1] == "code/1view,cov=0,top=2"
    assert nmtune.resolve_weights("code", 1, cross_view=False)[1] == "code,cross_view=0"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ({"mse": -1.0}, "mse is -1.0\n.*finite number of at least 0"),
        ({"svd": float("nan")}, "svd is nan"),
        ({"cov": float("inf")}, "cov is inf"),
        ({"mse": True}, "mse is True"),
        ({"mse": "much"}, "mse is 'much'"),
        ({"top": 0}, "top is 0\n.*integer of at least 1"),
        ({"top": 1.5}, "top is 1.5"),
        ({"per_dim": 1}, "per_dim is 1\n.*True or False"),
        ({"mcse": 1.0}, "no weight 'mcse'\n.*mse, cov, svd"),
    ],
)
def test_overrides_out_of_range(override, text):
    with pytest.raises(UserError, match=text):
        nmtune.resolve_weights("paper", 1, **override)
