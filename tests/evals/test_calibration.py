import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from nml_jax.evals.baselines import find_baselines
from nml_jax.evals.calibration import COLDEST, HOTTEST, bin_rows, compute_confidences, find_temperature


def softmax(z):
    odds = np.exp(z - z.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_is_that_of_the_lowest_loss(scale):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5000, 4)) * 1.5
    labels = (rng.random((5000, 1)) > softmax(z).cumsum(1)).sum(1)  # drawn from these probabilities
    found = find_temperature((scale * z).astype(np.float32), labels)
    assert found == pytest.approx(scale, rel=0.1)
    own = minimize_scalar(lambda t: log_loss(labels, softmax(scale * z / t)), (0.2, 5.0), method="brent", tol=1e-10)
    assert found == pytest.approx(own.x, rel=1e-5)


def test_a_temperature_has_bounds():
    z = np.array([[2.0, 0], [0, 3.0]])
    assert find_temperature(z, np.array([0, 1])) == COLDEST  # all right: the surer, the better
    assert find_temperature(z, np.array([1, 0])) == HOTTEST
    assert find_temperature(np.zeros((3, 2)), np.array([1, 0, 1])) == HOTTEST
    assert find_temperature(np.array([[1e5, 0.0], [1e5, 0.0], [0.0, 1e5]]), np.array([0, 1, 1])) == HOTTEST


def test_bins_by_hand():
    confidences = np.repeat([0.6, 0.9], [20, 40])
    right = np.concatenate([np.arange(20) < 10, np.arange(40) < 38])
    found = bin_rows(confidences, right, bins=3)
    np.testing.assert_allclose(found.confidence, [0.6, 0.9, 0.9])
    np.testing.assert_allclose(found.accuracy, [0.5, 0.95, 0.95])  # of equal confidence: the average, in any order
    np.testing.assert_allclose(found.share, 1 / 3)
    assert found.error == pytest.approx((0.1 + 0.05 + 0.05) / 3)
    shuffled = np.random.default_rng(0).permutation(60)
    assert bin_rows(confidences[shuffled], right[shuffled], bins=3).error == pytest.approx(found.error)


def test_few_rows_have_few_bins():
    assert len(bin_rows(np.linspace(0.5, 1, 9), np.ones(9, bool)).share) == 1
    assert len(bin_rows(np.linspace(0.5, 1, 45), np.ones(45, bool)).share) == 4
    found = bin_rows(np.linspace(0.5, 1, 1000), np.ones(1000, bool))
    assert len(found.share) == 15
    assert np.ptp(found.share) <= 1e-3 + 1e-12
    assert found.error == pytest.approx(0.25, abs=1e-3)


def test_calibrated_rows_have_a_small_error_and_too_sure_ones_a_large_one():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(20_000, 3)) * 2
    labels = (rng.random((20_000, 1)) > softmax(z).cumsum(1)).sum(1)
    errors = []
    for scaled in (z, 3 * z):
        confidences = compute_confidences(scaled)
        np.testing.assert_allclose(confidences, softmax(scaled).max(1))
        errors.append(bin_rows(confidences, scaled.argmax(1) == labels).error)
    assert errors[0] < 0.015 < 0.1 < errors[1]


def test_baselines_by_hand():
    found = find_baselines([60, 30, 10])
    assert found.answer == 0
    assert found.majority["accuracy"] == pytest.approx(0.6)
    for score in (found.majority["mean_per_class"], found.chance["accuracy"], found.chance["mean_per_class"]):
        assert score == pytest.approx(1 / 3)
    assert found.majority["macro_f1"] == pytest.approx(2 * 60 / 160 / 3)
    f1 = [2 * (n / 3) / (n + 100 / 3) for n in (60, 30, 10)]
    assert found.chance["macro_f1"] == pytest.approx(np.mean(f1))
    assert found.chance["log_loss"] == pytest.approx(np.log(3))
    assert found.majority["log_loss"] == pytest.approx(-sum(p * np.log(p) for p in (0.6, 0.3, 0.1)))
    assert found.best("log_loss") == found.majority["log_loss"]
    assert found.best("accuracy") == pytest.approx(0.6)
    assert find_baselines([5, 0]).majority["log_loss"] == 0
