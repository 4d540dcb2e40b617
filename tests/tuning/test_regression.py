"""Test heads that predict a number: against scikit-learn, by hand, and in every method."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from configs import common, features
from nml_jax.data.stratify import bin_scores, hold_out
from nml_jax.errors import UserError
from nml_jax.evals.metrics import METRICS
from nml_jax.objectives import lgm
from nml_jax.objectives.step import Step, compute_losses
from nml_jax.tuning import head_file, probes, regression, select, streamed
from nml_jax.tuning.holdout import Demands, score_held_out
from nml_jax.tuning.methods import METHODS

REGRESSES = [(name, preset) for name, m in METHODS.items() if m.regresses
             for preset in (("paper", "code") if name == "nmtune" else (None,))]  # fmt: skip


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw features with a mean, and targets far from mean 0 and variance 1, linear in them with little noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)) * [1, 5, 0.2, 1, 1, 1] + 3
    y = 500 + 40 * (X - 3) @ [1, -0.2, 4, 0, 0.5, 0] + 4 * rng.normal(size=n)
    return X.astype(np.float32), y


def make_config(kind: str = "fresh", **keys: Any) -> Any:
    config = (features if kind == "probe" else common).get_config().tune.copy_and_resolve_references()
    config.unlock()
    config.update({"epochs": 20, "batch": 32, "lrs": (0.03,), "weight_decays": (0.0,), "alphas": (0.1, 1.0, 10.0),
                   "width": 2, "standardize": True, **keys})  # fmt: skip
    return config


X, Y = draw(240, 0)
TEST, WANTED = draw(120, 1)


@pytest.mark.parametrize(("method", "preset", "kind"), [
    *((*each, "fresh") for each in REGRESSES), ("linear", None, "probe"), ("mlp", None, "probe"),
])  # fmt: skip
def test_every_method_predicts_targets_in_their_own_unit(method: str, preset: str | None, kind: str):
    config = make_config(kind)
    result = select.fit(X, Y, method=method, preset=preset, num_classes=1, config=config, seed=0, demands=Demands("r2"))
    found = result.outputs(TEST)[1]
    assert found.shape == (120, 1)
    errors = found[:, 0] - WANTED
    assert 1 - (errors**2).mean() / WANTED.var() > 0.9
    assert abs(errors.mean()) < 8  # of a standard deviation of 60


def test_ridge_is_that_of_scikit_learn():
    for alpha in (0.0, 0.5, 30.0):
        (own,) = probes.fit_ridge(X, Y, [alpha], num_classes=1)
        want = Ridge(alpha=alpha).fit(np.float64(X), Y)
        np.testing.assert_allclose(own.kernel[:, 0], want.coef_, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(own.bias[0], want.intercept_, rtol=1e-5)


def test_a_chosen_ridge_is_refit_on_all_rows_and_restored():
    config = make_config(standardize=False)
    result = select.fit(X, Y, method="ridge", num_classes=1, config=config, seed=0, demands=Demands("pearson"))
    want = Ridge(alpha=result.hyper["alpha"]).fit(np.float64(X), Y).predict(np.float64(TEST))
    np.testing.assert_allclose(result.outputs(TEST)[1][:, 0], want, rtol=1e-4)
    assert {"loss", "pearson", "alpha"} == {*result.validation[0]}
    best = max(result.validation, key=lambda each: each["pearson"])
    assert best["alpha"] == result.hyper["alpha"]


def test_heads_start_at_the_probe_and_keep_its_penalty():
    config = make_config("probe", epochs=1, lrs=(1e-9,), patience=0, halving=False, widen=False, refit=True)
    how: dict[str, Any] = {"num_classes": 1, "config": config, "seed": 0, "demands": Demands("r2")}
    mlp, ridge = (select.fit(X, Y, method=method, **how) for method in ("mlp", "ridge"))
    assert mlp.hyper["alpha"] == ridge.hyper["alpha"]
    np.testing.assert_allclose(mlp.outputs(TEST)[1], ridge.outputs(TEST)[1], rtol=1e-4)


def test_the_loss_is_half_the_squared_error():
    outputs = jnp.array([[[1.0], [2.0]], [[0.0], [-1.0]]])
    np.testing.assert_allclose(compute_losses(outputs, jnp.array([3.0, 1.0])), [[2.0, 0.5], [0.5, 2.0]])
    logits = jnp.array([[[0.0, 0.0]]])
    np.testing.assert_allclose(compute_losses(logits, jnp.array([1])), [[np.log(2)]], rtol=1e-6)


def test_lgm_matches_gradients_of_the_squared_error():
    rng = np.random.default_rng(0)
    F, w, labels = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 1, 3), (3, 1), (4,)))

    def head(F: jax.Array) -> tuple[jax.Array, jax.Array]:
        return F, F @ w

    step = Step(F, F, F @ w, labels, head, jax.random.key(1))
    form = lgm.Weights()
    moved = lgm.perturb(step, form.noise, form.scale)
    # g(t) = (t·w − y) w, so that g(t) − g(t̂) = ((t − t̂)·w) w
    want = form.match * jnp.abs((F - moved) @ w).mean() * jnp.linalg.norm(w)
    np.testing.assert_allclose(lgm.penalty(step, form, form), want, rtol=1e-5)


def test_held_out_scores_are_spread_over_the_range():
    scores = np.random.default_rng(0).exponential(size=500).astype(np.float32)
    bins = bin_scores(scores)
    assert np.bincount(bins).tolist() == [50] * 10
    assert (np.diff(bins[np.argsort(scores)]) >= 0).all()
    kept, held = hold_out(bins, 0.2, 0)
    assert np.bincount(bins[held]).tolist() == [10] * 10
    assert sorted([*kept, *held]) == list(range(500))
    assert np.bincount(bin_scores(np.repeat([1, 2], 50).astype(np.float32))).tolist() == [50, 50]
    assert not bin_scores(np.arange(19, dtype=np.float32)).any()  # too few to tell apart
    assert bin_scores(np.array([4, 2])).tolist() == [4, 2]


def test_scores_of_held_out_rows():
    demands, y = Demands("pearson"), np.array([1.0, 2.0, 4.0], np.float32)
    found = demands.score(np.array([[2.0], [4.0], [8.0]]), y)
    assert found == {"loss": pytest.approx((1 + 4 + 16) / 6), "pearson": pytest.approx(1)}
    constant = demands.score(np.full((3, 1), 2.0), y)
    assert constant["pearson"] == -np.inf  # undefined, so the worst
    assert Demands("rmse").score(np.full((3, 1), np.nan), y)["rmse"] == np.inf
    assert METRICS["rmse"].way == -1


def test_training_in_shards_gives_the_same_units():
    class Whole:
        views, dim = 1, 6

        def __len__(self) -> int:
            return len(X)

        def rows(self, index: np.ndarray) -> np.ndarray:
            return X[index][:, None]

        def read(self) -> np.ndarray:
            return X[:, None]

        def blocks(self, size: int):
            for i in range(0, len(X), size):
                yield i, X[i : i + size, None]

    config = make_config(batch=16)
    for method in ("ridge", "linear", "mlp"):
        how: dict[str, Any] = {"method": method, "num_classes": 1, "config": config, "seeds": (0,)}
        (result,) = streamed.fit_seeds(Whole(), Y.astype(np.float32), shard=120, demands=Demands("r2"), **how)
        errors = result.outputs(TEST)[1][:, 0] - WANTED
        assert 1 - (errors**2).mean() / WANTED.var() > 0.9, method


def test_a_saved_head_predicts_numbers(tmp_path: Path):
    result = select.fit(X, Y, method="ridge", num_classes=1, config=make_config(), seed=0, demands=Demands("r2"))
    head: Any = result.head
    head_file.TunedHead(head.form, head.params, head.state, ("rating",)).save(tmp_path / "h.safetensors")
    loaded = head_file.load(tmp_path / "h.safetensors")
    assert loaded.predicts_numbers
    assert loaded.classes == ("rating",)
    np.testing.assert_array_equal(loaded.outputs(TEST)[1], head.outputs(TEST)[1])
    with pytest.raises(UserError, match="predicts numbers, so it has no probabilities"):
        loaded.probabilities(np.zeros((1, 1)))
    assert score_held_out(loaded, TEST[:, None], WANTED.astype(np.float32), Demands("r2"))["r2"] > 0.9


@pytest.mark.parametrize(("y", "words"), [
    (np.full(240, 2.5), "every training target is 2.5"),
    (np.where(np.arange(240) == 7, np.nan, Y), "row 7 has the target nan"),
    (np.where(np.arange(240) == 3, np.inf, Y), "row 3 has the target inf"),
    (np.zeros(240, np.int32), "num_classes=1 is less than 2"),
])  # fmt: skip
def test_bad_targets(y: np.ndarray, words: str):
    with pytest.raises(UserError, match=words):
        select.fit(X, y, method="ridge", num_classes=1, config=make_config(), seed=0, demands=Demands("r2"))


def test_methods_that_classify_say_what_to_use_instead():
    with pytest.raises(UserError, match="lbfgs and knn predicts classes") as e:
        regression.check_methods(("lbfgs", "mlp", "knn"))
    assert "ridge instead of lbfgs" in e.value.cure
