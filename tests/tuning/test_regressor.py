"""Test the scikit-learn regressor: scikit-learn's own checks, its numbers, its file."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from nml_jax import NMTuneClassifier, NMTuneRegressor


def draw(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    return X, 100 + 20 * (X @ [1, -1, 0, 0, 2, 0]) + rng.normal(size=n)


@parametrize_with_checks([NMTuneRegressor(method="ridge")])
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([NMTuneRegressor(epochs=3)])
def test_scikit_learn_accepts_nmtune(estimator, check):
    check(estimator)


def test_ridge_is_that_of_scikit_learn():
    X, y = draw()
    own = NMTuneRegressor(method="ridge", standardize=False, alphas=(3.0,)).fit(X, y)
    np.testing.assert_allclose(own.predict(X), Ridge(alpha=3.0).fit(X, y).predict(X), rtol=1e-4)
    assert own.hyper_ == {"alpha": 3.0}


def test_nmtune_is_saved_loaded_and_never_taken_for_a_classifier(tmp_path: Path):
    X, y = draw()
    own = NMTuneRegressor(epochs=2, learning_rates=(1e-3,), random_state=0).fit(X, y)
    assert own.score(*draw(seed=1)) > 0.98
    own.save(tmp_path / "head.safetensors")
    loaded = NMTuneRegressor.load(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(loaded.predict(X), own.predict(X))
    assert loaded.head_.classes == ("target",)
    with pytest.raises(ValueError, match="load it with NMTuneRegressor"):
        NMTuneClassifier.load(tmp_path / "head.safetensors")
    NMTuneClassifier(method="linear", C=1.0).fit(X, y > 100).save(tmp_path / "classes.safetensors")
    with pytest.raises(ValueError, match="load it with NMTuneClassifier"):
        NMTuneRegressor.load(tmp_path / "classes.safetensors")


@pytest.mark.parametrize(("keys", "words"), [
    ({"method": "lbfgs"}, "ridge instead of lbfgs"), ({"method": "knn"}, "ridge or mlp instead of knn"),
    ({"method": "svr"}, "no method 'svr'"), ({"metric": "accuracy"}, "metric='accuracy'"), ({"epochs": 0}, "epochs=0"),
    ({"alphas": ()}, "alphas"), ({"learning_rates": (-1.0,)}, "learning_rates"), ({"validation_fraction": 1}, "share"),
    ({"weights": {"nothing": 1.0}}, "nothing"),
])  # fmt: skip
def test_bad_arguments(keys: dict, words: str):
    with pytest.raises(ValueError, match=words):
        NMTuneRegressor(**keys).fit(*draw(20))
