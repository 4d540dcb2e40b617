import jax
import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.objectives import nmtune
from nml_jax.objectives.nmtune import PRESETS, Weights

SHAPES = [(4, 9), (6, 6), (9, 4), (1, 5), (3, 1)]


# The terms as the papers write them, in float64: D×D covariance, a full SVD.


def consistency(F, Z):
    F, Z = np.float64(F), np.float64(Z)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (F, Z)]
    return ((unit[0] - unit[1]) ** 2).sum(-1).mean()


def covariance(Z):
    Z = np.float64(Z)
    C = (Z - Z.mean(0)).T @ (Z - Z.mean(0)) / (len(Z) - 1)
    return sum(C[i, j] ** 2 for i in range(len(C)) for j in range(len(C)) if i != j) / len(C)


def singular(Z, top):
    s = np.linalg.svd(np.float64(Z), compute_uv=False)
    return -s[:top].mean() / s.sum()


def singular_gradient(Z, top, rank=None):
    U, s, Vt = np.linalg.svd(np.float64(Z), full_matrices=False)
    rank = rank or len(s)
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
_loss = jax.jit(nmtune.loss, static_argnames="weights")


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
@pytest.mark.parametrize("difference", [1e-1, 1e-3, 1e-5])
def test_singular_with_near_duplicate_rows(shape, difference, top):
    """σmin/σ₁ down to the floor, where a float32 Gram matrix gives a gradient that is wrong by half its size."""
    Z = normal(shape)
    Z[1::2] = Z[::2] + difference * Z[1::2]
    value, gradient = _singular(Z, top)
    assert value == pytest.approx(singular(Z, top), rel=1e-6)
    s = np.linalg.svd(np.float64(Z), compute_uv=False)
    assert_close(gradient, singular_gradient(Z, top, rank=(s > nmtune.FLOOR * s[0]).sum()), 1e-4)


@pytest.mark.parametrize("top", [1, 5])
@pytest.mark.parametrize("shape", [(8, 12), (8, 8), (12, 8)])
def test_singular_of_rank_deficient_features(shape, top):
    """Directions of σ = 0 have no gradient; those that are there have the exact one."""
    ones = np.ones(shape, np.float32)
    for Z, rank in (
        (np.outer(normal(shape[0]), normal(shape[1], 1)), 1),
        (ones, 1),
        (np.repeat(normal(shape)[::2], 2, axis=0)[: shape[0]], min(shape[0] // 2, shape[1])),
    ):
        Z = Z.astype(np.float32)
        value, gradient = _singular(Z, top)
        if rank < 5 < len(Z) and top == 5:  # values of zero count as values
            assert value == pytest.approx(-1 / 5, rel=1e-5)
        assert value == pytest.approx(singular(Z, top), rel=1e-5)
        assert_close(gradient, singular_gradient(Z, top, rank), 1e-5)


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


# One view, two rows. F/‖F‖ = (0.6, 0.8), (0, 1) and Z/‖Z‖ = (1, 0), (0, 1): the squares are 0.16 + 0.64 and 0.
# Z − mean = ±(0.5, −1), so C = ((0.5, −1), (−1, 2)) and COV = 2/2. σ = 2, 1. CE = −(ln 0.75 + ln 0.5)/2.
ONE = {
    "F": np.float32([[[3, 4]], [[0, 1]]]),
    "Z": np.float32([[[1, 0]], [[0, 2]]]),
    "logits": np.log(np.float32([[[1, 3]], [[1, 1]]])),
    "labels": np.int32([1, 0]),
}
CE = 0.490414627


def test_preset_paper_by_hand():
    assert _loss(**ONE, weights=PRESETS["paper"]) == pytest.approx(CE + 0.01 * (0.4 + 1 - 2 / 3), rel=1e-6)


def test_preset_code_with_one_view_by_hand():
    # MSE is divided by D = 2, and of two singular values the mean of the five largest is 1.5
    want = CE + 1.0 * 0.2 + 0.04 * 1 + 0.001 * -1.5 / 3
    assert _loss(**ONE, weights=PRESETS["code"]) == pytest.approx(want, rel=1e-6)


# Two views. Z of view 2, (0, 0) and (0, 1), against F of view 1, (0.6, 0.8) and (0, 1): squares 1 and 0. The rows of Z
# less their mean (1, 1) are ±(1, 1), ±(1, 0), so C_12 = 2/3 and COV = 2·(4/9)/2. ZᵀZ = ((8, 6), (6, 6)), σ² = 7 ± √37.
TWO = {
    "F": np.float32([[[3, 4], [5, -7]], [[0, 1], [2, 9]]]),
    "Z": np.float32([[[2, 2], [0, 0]], [[2, 1], [0, 1]]]),
    "logits": np.log(np.float32([[[1, 3], [1, 1]], [[1, 1], [3, 1]]])),
    "labels": np.int32([1, 0]),
}


def test_preset_code_with_two_views_by_hand():
    # CE: −ln of 3/4, 1/2, 1/2, 3/4
    want = CE + 1.0 * (1 + 0) / 2 / 2 + 0.04 * 4 / 9 + 0.001 * -1 / 2
    assert _loss(**TWO, weights=PRESETS["code"]) == pytest.approx(want, rel=1e-6)


def test_preset_paper_with_two_views_by_hand():
    unit = {"F": TWO["F"][:, :1], "Z": TWO["Z"][:, :1]}, {"F": TWO["F"][1:, 1:], "Z": TWO["Z"][1:, 1:]}
    mse = (2 * consistency(**unit[0]) + 1 + consistency(**unit[1])) / 4  # every row against its own; one row is zero
    large, small = np.sqrt(7 + np.sqrt(37)), np.sqrt(7 - np.sqrt(37))
    want = CE + 0.01 * (mse + 4 / 9 - large / (large + small))
    assert _loss(**TWO, weights=PRESETS["paper"]) == pytest.approx(want, rel=1e-6)


def test_weights_of_zero_are_cross_entropy():
    assert _loss(**TWO, weights=Weights()) == pytest.approx(CE, rel=1e-6)


@pytest.mark.parametrize("weights", [*PRESETS.values(), Weights(mse=2, cov=3, svd=4, top=2)])
def test_gradient_of_the_whole_is_finite_for_degenerate_features(weights):
    F, labels = normal((3, 2, 4)), np.int32([0, 1, 1])
    gradient = jax.jit(jax.grad(lambda Z: nmtune.loss(F, Z, Z[..., :2], labels, weights=weights)))
    for Z in (np.zeros((3, 2, 4)), np.ones((3, 2, 4)), np.repeat(normal((3, 1, 4)), 2, axis=1)):
        assert np.isfinite(gradient(np.float32(Z))).all()


def test_names_of_presets():
    assert nmtune.weights("code", views=1) == (PRESETS["code"], "code/1view")
    assert nmtune.weights("code", views=2) == (PRESETS["code"], "code")
    assert nmtune.weights("paper", views=1) == (PRESETS["paper"], "paper")
    free = Weights(mse=0.5, top=3)
    assert nmtune.weights(free, views=1) == (free, "mse=0.5,cov=0,svd=0,per_dim=0,cross_view=0,top=3")
    with pytest.raises(UserError, match=r"'papers'.*\n.*paper, code"):
        nmtune.weights("papers", views=1)
