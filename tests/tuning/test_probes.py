"""Probes agree with scikit-learn's, and with solutions by hand."""

import math

import numpy as np
import pytest
import threadpoolctl
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from nml_jax.errors import UserError
from nml_jax.tuning import neighbours, probes
from nml_jax.tuning.neighbours import fit_knn
from nml_jax.tuning.probes import fit_lbfgs, fit_ridge

CS = (0.01, 100.0, 1.0, 0.1)  # not in order
ALPHAS = (10.0, 0.1, 1000.0)
KS = (5, 1, 8)
FITS = {"lbfgs": (fit_lbfgs, (1.0, 0.1)), "ridge": (fit_ridge, (1.0, 10.0)), "knn": (fit_knn, (1, 3))}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Use one BLAS and OpenMP thread: matrices this small gain nothing from a second one."""
    with threadpoolctl.threadpool_limits(1):
        yield


def blobs(n: int = 200, d: int = 10, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw overlapping classes with correlated features that are off centre, float32, each class present."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % k)
    mixing = np.random.default_rng(1).standard_normal((d, d)) * np.arange(1, d + 1) ** -0.5
    means = np.random.default_rng(2).standard_normal((k, d))
    return ((means[labels] + rng.standard_normal((n, d))) @ mixing + 3).astype(np.float32), labels


def probabilities(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def fit_reference(X, y, c) -> LogisticRegression:
    return LogisticRegression(C=c, solver="newton-cholesky", tol=1e-8).fit(X.astype(np.float64), y)


# --- logistic regression


@pytest.mark.parametrize(("n", "d", "k"), [(200, 10, 4), (30, 50, 3), (120, 8, 2)])
def test_logistic_agrees_with_scikit_learn(n, d, k):
    (X, y), (T, _) = blobs(n, d, k), blobs(100, d, k, seed=5)
    for c, probe in zip(CS, fit_lbfgs(X, y, CS, num_classes=k, tol=1e-8), strict=True):
        sklearn = fit_reference(X, y, c)
        got = probe(T)
        assert got.dtype == np.float32
        np.testing.assert_allclose(probabilities(got), sklearn.predict_proba(T), rtol=0, atol=1e-3)
        close = np.partition(sklearn.predict_proba(T), -2, axis=1)
        clear = close[:, -1] - close[:, -2] > 2e-3
        np.testing.assert_array_equal(got.argmax(1)[clear], sklearn.predict(T)[clear])


def test_logistic_at_its_default_tolerance():
    (X, y), (T, _) = blobs(), blobs(seed=5)
    for c, probe in zip(CS, fit_lbfgs(X, y, CS, num_classes=4), strict=True):
        assert np.abs(probabilities(probe(T)) - fit_reference(X, y, c).predict_proba(T)).max() < 1e-2


def test_logistic_of_two_points_by_hand():
    """x = ∓1: by symmetry b = 0 and w, the difference of the columns, solves w = 2C/(1 + eʷ)."""
    for c in (0.3, 2.0):
        (probe,) = fit_lbfgs([[-1.0], [1.0]], [0, 1], [c], num_classes=2, tol=1e-10)
        w = 1.0
        for _ in range(200):
            w += 0.2 * (2 * c / (1 + math.exp(w)) - w)
        np.testing.assert_allclose(probe.kernel, [[-w / 2, w / 2]], rtol=1e-3)  # the precision of float32 on two rows
        np.testing.assert_allclose(probe.bias, [0, 0], atol=1e-5)


def test_logistic_scales_like_its_formula():
    """Features times s, and C over s², give the same scores, even if float32 alone would lose them."""
    X, y = blobs()
    (plain,) = fit_lbfgs(X, y, [0.1], num_classes=4, tol=1e-7)
    for s in (1e-12, 1e12):
        scaled = X.astype(np.float64) * s
        (probe,) = fit_lbfgs(scaled, y, [0.1 / s**2], num_classes=4, tol=1e-7)
        np.testing.assert_allclose(probabilities(probe(scaled)), probabilities(plain(X)), atol=1e-3)


def test_logistic_with_a_feature_of_a_large_scale():
    X, y = blobs()
    wide = np.column_stack([X, 1e5 * np.random.default_rng(3).standard_normal(len(X))])
    (probe,) = fit_lbfgs(wide, y, [1.0], num_classes=4, tol=1e-8)
    want = fit_reference(wide, y, 1.0).predict_proba(wide)
    np.testing.assert_allclose(probabilities(probe(wide)), want, rtol=0, atol=1e-3)


def test_a_grid_gives_the_same_as_single_fits():
    X, y = blobs()
    for c, probe in zip(CS, fit_lbfgs(X, y, CS, num_classes=4, tol=1e-8), strict=True):
        (alone,) = fit_lbfgs(X, y, [c], num_classes=4, tol=1e-8)
        np.testing.assert_allclose(probe(X), alone(X), atol=5e-3 * np.abs(alone(X)).max())


def test_logistic_of_separable_rows_stays_finite():
    X, y = np.repeat([[0.0, 1], [1, 0], [-1, -1]], 4, axis=0), np.repeat([0, 1, 2], 4)
    cs = (1e8, 1e-8, 1.0, 1e8)
    for probe in fit_lbfgs(X, y, cs, num_classes=3):
        assert all(np.isfinite(part).all() for part in probe)
    assert (fit_lbfgs(X, y, cs, num_classes=3)[0](X).argmax(1) == y).all()


def test_logistic_that_does_not_converge_is_logged(capsys):
    X, y = blobs()
    fit_lbfgs(X, y, [1e3], num_classes=4, max_iter=1)
    assert "C=1000 has not converged after 1 iterations" in capsys.readouterr().err


# --- ridge


@pytest.mark.parametrize(("n", "d", "k"), [(200, 10, 4), (30, 50, 3), (120, 8, 2), (1, 3, 2)])
def test_ridge_agrees_with_scikit_learn(n, d, k):
    (X, y), (T, _) = blobs(n, d, k), blobs(100, d, k, seed=5)
    if n == 1:
        (probe,) = fit_ridge(X, y, [1.0], num_classes=k)
        np.testing.assert_allclose(probe(T), [[1, -1]] * 100, atol=1e-6)
        return
    for alpha, probe in zip(ALPHAS, fit_ridge(X, y, ALPHAS, num_classes=k), strict=True):
        sklearn = RidgeClassifier(alpha=alpha).fit(X.astype(np.float64), y)
        want = sklearn.decision_function(T)
        want = np.column_stack([-want, want]) if k == 2 else want
        np.testing.assert_allclose(probe(T), want, atol=2e-5 * max(1, np.abs(want).max()))
        np.testing.assert_array_equal(probe(T).argmax(1), sklearn.predict(T))


def test_ridge_of_two_points_by_hand():
    """x = ∓1, targets ∓1: w = 2/(2 + α), b = 0."""
    for alpha, probe in zip((0.0, 2.0), fit_ridge([[-1.0], [1.0]], [0, 1], (0.0, 2.0), num_classes=2), strict=True):
        np.testing.assert_allclose(probe.kernel, [[-2 / (2 + alpha), 2 / (2 + alpha)]], rtol=1e-6)
        np.testing.assert_allclose(probe.bias, [0, 0], atol=1e-7)


def test_ridge_without_penalty_is_the_shortest_least_squares():
    X, y = blobs(20, 40, 3)
    X = np.column_stack([X, X[:, :2]])  # columns that repeat, rows fewer than columns
    (probe,) = fit_ridge(X, y, [0.0], num_classes=3)
    centred, targets = X - X.mean(0, dtype=float), np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    want = np.linalg.pinv(centred) @ (targets - targets.mean(0))
    np.testing.assert_allclose(probe.kernel, want, atol=1e-5 * np.abs(want).max())


# --- k-NN


@pytest.mark.parametrize("block", [8192, 64])
def test_knn_agrees_with_scikit_learn(monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    (X, y), (T, _) = blobs(), blobs(110, seed=5)
    for k, probe in zip(KS, fit_knn(X, y, KS, num_classes=4), strict=True):
        got = probe(T)
        sklearn = KNeighborsClassifier(k, metric="cosine").fit(X.astype(np.float64), y)
        np.testing.assert_array_equal(np.floor(got), np.rint(k * sklearn.predict_proba(T)))
        if k == 1:
            np.testing.assert_array_equal(got.argmax(1), sklearn.predict(T))


def test_knn_by_hand():
    angles = np.array([0.0, 0.3, 0.9, 3.0])
    X, y = np.stack([np.cos(angles), np.sin(angles)], 1) * [[1], [20], [0.5], [3]], [2, 0, 0, 1]
    one, two, three, four = fit_knn(X, y, (1, 2, 3, 9), num_classes=3)
    point = 7 * np.array([[np.cos(0.12), np.sin(0.12)]])
    assert [probe(point).argmax() for probe in (one, two, three, four)] == [2, 2, 0, 0]
    np.testing.assert_allclose(two(point), [[1 + 1 / 3, 0, 1 + 2 / 3]])  # a tie, broken by the rank of the nearest
    assert np.floor(four(point)).sum() == 4  # all rows there are


def test_equally_near_rows_count_in_order(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 8)
    X, y = np.ones((21, 2)), np.arange(21)[::-1] % 3
    (probe,) = fit_knn(X, y, (1,), num_classes=3)
    np.testing.assert_array_equal(probe(np.ones((5, 2))).argmax(1), [2] * 5)


def test_knn_does_not_depend_on_the_scale():
    """Squares of such numbers are beyond float32."""
    X, y = blobs()
    (plain,) = fit_knn(X, y, (3,), num_classes=4)
    for scale in (1e30, 1e-30):
        moved = X.astype(np.float64) * scale
        (probe,) = fit_knn(moved, y, (3,), num_classes=4)
        np.testing.assert_array_equal(probe(moved), plain(X))
    (probe,) = fit_knn(np.vstack([X, np.zeros((1, 10))]), np.append(y, 0), (1,), num_classes=4)
    np.testing.assert_array_equal(probe(X * np.float32(1e30)).argmax(1), y)


# --- all


@pytest.mark.parametrize("name", FITS)
def test_a_class_without_rows_is_never_predicted(name):
    fit, grid = FITS[name]
    X, y = blobs(k=3)
    for probe, without in zip(fit(X, 2 * y, grid, num_classes=6), fit(X, y, grid, num_classes=3), strict=True):
        got = probe(X)
        assert got.shape == (200, 6)
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(got.argmax(1), 2 * without(X).argmax(1))


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize(
    ("X", "y"),
    [
        (np.ones((6, 3)), [0, 1, 1, 0, 1, 1]),  # constant features: the larger class
        (np.zeros((3, 5)), [1, 1, 0]),  # and fewer rows than features
        (np.eye(4, 2), [1, 1, 1, 1]),  # one class
        (np.ones((1, 4)), [1]),  # one row
        (np.ones((2, 4), np.float16), [1, 1]),
    ],
)
def test_degenerate_rows(name, X, y):
    fit, grid = FITS[name]
    for probe in fit(X, y, grid, num_classes=2):
        scores = probe(X)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        if not (name == "knn" and len(X) == 6):  # one row that is 0 is nearest there
            np.testing.assert_array_equal(scores.argmax(1), 1)


@pytest.mark.parametrize("name", FITS)
def test_input_is_not_changed(name):
    fit, grid = FITS[name]
    for n, d in ((40, 6), (6, 40)):
        X, y = blobs(n, d)
        X = X.astype(np.float64)
        before = X.copy()
        fit(X, y, grid, num_classes=4)[0](X)
        np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones(3)}, r"features \(3,\) and labels \(3,\)"),
        ({"features": np.ones((0, 2)), "labels": np.zeros(0, int)}, r"features \(0, 2\)"),
        ({"labels": [0, 1]}, r"labels \(2,\)"),
        ({"labels": [0, 1, 2]}, "from 0 to 2"),
        ({"labels": [0, 1, -1]}, "from -1 to 1"),
        ({"labels": [0.0, 1.0, 1.0]}, "dtype float64"),
        ({"features": [[0.0], [np.nan], [1.0]]}, "row 1 of the features"),
        ({"features": [[0.0], [1.0], [-np.inf]]}, "row 2 of the features"),
        ({"grid": ()}, "is not a valid value"),
        ({"grid": (-1,)}, "=-1 is not a valid value"),
        ({"grid": (np.nan,)}, "=nan is not a valid value"),
    ],
)
def test_bad_calls(name, change, message):
    fit, grid = FITS[name]
    arguments = {"features": [[0.0], [1.0], [2.0]], "labels": [0, 1, 1], "grid": grid} | change
    with pytest.raises(UserError, match=message):
        fit(arguments.pop("features"), arguments.pop("labels"), arguments.pop("grid"), num_classes=2, **arguments)


def test_a_solution_is_remembered_for_the_same_rows_labels_and_grid(monkeypatch):
    solved = []

    def fit(X, y, cs, *, num_classes, weights):
        solved.append(tuple(cs))
        return [f"{len(solved)}"]

    monkeypatch.setattr(probes, "fit_lbfgs", fit)
    probes._solved.clear()
    X, y = blobs(20)
    first = probes.solve_once(X, y, (0.1,), num_classes=4)
    assert probes.solve_once(X.copy(), y.copy(), (0.1,), num_classes=4) is first
    others = [(X + 1, y, 4), (X[:, ::-1], y, 4), (X, y[::-1], 4), (X, y, 5), (X[:19], y[:19], 4)]
    for rows, labels, k in others:
        assert probes.solve_once(rows, labels, (0.1,), num_classes=k) is not first
    one, two = (probes.solve_once(X, y, (0.1,), num_classes=4, weights=own) for own in (np.ones(20), 1 + np.ones(20)))
    assert len({id(each) for each in (first, one, two)}) == 3
    for i in range(probes.REMEMBERED):  # the oldest are forgotten
        probes.solve_once(X, y, (1.0 + i,), num_classes=4)
    assert len(probes._solved) == probes.REMEMBERED
    assert probes.solve_once(X, y, (0.1,), num_classes=4) is not first
    assert len(solved) == 2 + len(others) + 2 + probes.REMEMBERED
    probes._solved.clear()
