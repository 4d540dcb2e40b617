"""Test the scores of numbers against scikit-learn and SciPy, and their derivatives against leaving rows out."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from nml_jax.errors import UserError
from nml_jax.evals import correlations as c
from nml_jax.evals.answers import Answers
from nml_jax.evals.metrics import METRICS

THEIRS = {
    "pearson": lambda y, x: stats.pearsonr(y, x)[0],
    "spearman": lambda y, x: stats.spearmanr(y, x)[0],
    "r2": sk.r2_score,
    "rmse": sk.root_mean_squared_error,
}


def draw(seed: int, n: int, spread: float) -> Answers:
    """Draw scores with ties, as of STS-B, and predictions of them in float32, some rounded."""
    rng = np.random.default_rng(seed)
    y = rng.choice([0, 0.2, 0.5, 1, 3.8, 5], n)
    x = np.float32(y + spread * rng.normal(size=n))
    return Answers(y, np.round(x) if seed % 2 else x)


@pytest.mark.parametrize("name", c.SCORES)
def test_scores_are_those_of_the_libraries(name: str):
    for seed in range(12):
        own = draw(seed, (2, 5, 100, 3000)[seed % 4], (0.1, 1, 20)[seed % 3])
        y, x = own.labels, np.float64(own.predictions)
        if np.ptp(x) and np.ptp(y):
            want = THEIRS[name](y, x)
            assert c.SCORES[name](own) == pytest.approx(want, abs=1e-12, rel=1e-12)
    large = Answers(np.array([1e200, 3e200, 2e200]), np.array([1e-200, 2e-200, 3e-200]))
    assert c.pearson(large) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("name", c.SCORES)
def test_shares_are_derivatives_of_the_score(name: str):
    own, score, share = draw(3, 400, 1), METRICS[name].score, METRICS[name].share
    values = share(own).values
    whole = score(own)
    assert values.mean() == pytest.approx(whole, abs=1e-12)
    rows = range(0, 400, 7)
    without = [score(Answers(*(np.delete(x, i) for x in own[:2]))) for i in rows]
    np.testing.assert_allclose(values[rows], 400 * whole - 399 * np.array(without), atol=0.03)


def test_constant_numbers_leave_correlations_undefined():
    y, same = np.array([1.0, 2.0, 4.0]), np.full(3, 2.0)
    found = c.compute_numbers(Answers(y, same))
    assert found == {"pearson_undefined": 1, "spearman_undefined": 1, "r2": pytest.approx(1 - 5 / (14 / 3)),
                     "rmse": pytest.approx(np.sqrt(5 / 3))}  # fmt: skip
    assert c.r2(Answers(same, y)) is None
    assert c.pearson(Answers(same, y)) is None
    assert not c.share_pearson(Answers(y, same)).values.any()
    assert not c.share_spearman(Answers(y, same)).values.any()
    with pytest.raises(UserError, match="nothing to score"):
        c.pearson(Answers(y[:0], y[:0]))
