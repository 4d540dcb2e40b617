"""NMTuneClassifier passes scikit-learn's checks and does what its documentation says."""

import dataclasses
import math
import pickle

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from nml_jax import spectrum
from nml_jax.models.heads.mlp import make_head
from nml_jax.tuning import descent, methods, patient
from nml_jax.tuning.classifier import METHODS, NMTuneClassifier, fitting
from nml_jax.tuning.classifier.fitting import Fitting, Rows, split_rows
from nml_jax.tuning.holdout import Demands

N, D, K = 120, 8, 3
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "rows are drawn into minibatches, as of scikit-learn's SGD",
}


def blobs(n=N, seed=0, classes=None, distance=2.0):
    """Draw Gaussian classes whose means are axes times `distance`."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % K)
    X = rng.normal(size=(n, D)) + distance * np.eye(K, D)[codes]
    return X.astype(np.float32), codes if classes is None else np.array(classes)[codes]


X, Y = blobs()
TEST, ANSWER = blobs(300, seed=1)


def make(**changes):
    """Make a small classifier without terms, so that most tests share one compiled program."""
    return NMTuneClassifier(
        **{"method": "mlp", "epochs": 10, "batch_size": 32, "learning_rate": 0.01, "random_state": 0, **changes}
    )


def list_expected_failures(estimator):
    return EXPECTED


@parametrize_with_checks([NMTuneClassifier(method="linear", epochs=12)], expected_failed_checks=list_expected_failures)
def test_scikit_learn_checks_a_linear_head(estimator, check):
    check(estimator)


@pytest.mark.slow  # every one of its shapes takes seconds to compile
@parametrize_with_checks(
    [NMTuneClassifier(), *(NMTuneClassifier(method=method) for method in ("mlp", "skd", "fgs", "lgm"))],
    expected_failed_checks=list_expected_failures,
)
def test_scikit_learn_checks_every_head(estimator, check):
    check(estimator)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method):
    model = make(method=method, learning_rate=0.1 if method.startswith("linear") else 0.01).fit(X, Y)
    assert model.score(TEST, ANSWER) > 0.8
    proba = model.predict_proba(TEST)
    assert proba.shape == (len(TEST), K)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(TEST), model.classes_[proba.argmax(1)])
    logits = model.decision_function(TEST)
    np.testing.assert_array_equal(logits.argmax(1), proba.argmax(1))
    Z, bare = model.transform(TEST), model.head_.params["classifier"]
    assert (Z.shape, Z.dtype) == (TEST.shape, np.float32)
    np.testing.assert_allclose(Z @ bare["kernel"] + bare["bias"], logits, rtol=1e-4, atol=1e-4)


def test_the_released_schedule():
    model = NMTuneClassifier("mlp", epochs=30, batch_size=64, early_stopping=False, random_state=0).fit(X, Y)
    assert model.n_iter_ == 30
    assert model.score(TEST, ANSWER) > 0.8


def test_in_a_pipeline_a_grid_and_cross_validation():
    linear = make(method="linear", learning_rate=0.1, early_stopping=False)  # of 60 rows six would be held out
    pipeline = make_pipeline(StandardScaler(), linear)
    assert cross_val_score(pipeline, X, Y, cv=2).min() > 0.7
    search = GridSearchCV(pipeline, {"nmtuneclassifier__learning_rate": [1e-7, 1e-1]}, cv=2).fit(X, Y)
    assert search.best_params_ == {"nmtuneclassifier__learning_rate": 1e-1}
    assert search.score(TEST, ANSWER) > 0.8
    copy = clone(make(weights={"svd": 0.5}, width=2))
    assert (copy.weights, copy.width) == ({"svd": 0.5}, 2)
    assert not hasattr(copy, "head_")


@pytest.mark.parametrize(
    "classes",
    [
        (3, -5, 9),
        ("dog", "ant", "cat"),
        np.array(["dog", "ant", "cat"], object),
        (2.0, -1.0, 7.0),
    ],
)
def test_classes_of_any_dtype(classes, tmp_path):
    _, y = blobs(classes=classes)
    model = make().fit(X, y)
    np.testing.assert_array_equal(model.classes_, np.unique(np.array(classes)))
    assert model.predict(TEST).dtype == y.dtype
    _, answer = blobs(300, seed=1, classes=classes)
    assert (model.predict(TEST) == answer).mean() > 0.8
    for copy in (pickle.loads(pickle.dumps(model)), round_trip(model, tmp_path)):
        np.testing.assert_array_equal(copy.predict(TEST), model.predict(TEST))
        np.testing.assert_array_equal(copy.predict_proba(TEST), model.predict_proba(TEST))


def round_trip(model, folder):
    model.save(folder / "head.safetensors")
    return NMTuneClassifier.load(str(folder / "head.safetensors"))


def test_two_classes_have_one_column_of_decisions(tmp_path):
    two = Y < 2
    for classes in ((False, True), ("no", "yes")):
        y = np.array(classes)[Y[two]]
        model = make().fit(X[two], y)
        decision = model.decision_function(TEST)
        assert decision.shape == (len(TEST),)
        np.testing.assert_array_equal(model.predict(TEST), np.where(decision > 0, classes[1], classes[0]))
        p = model.predict_proba(TEST)[:, 1]
        np.testing.assert_allclose(p, 1 / (1 + np.exp(-np.float64(decision))), rtol=1e-4, atol=1e-6)
        loaded = round_trip(model, tmp_path)
        np.testing.assert_array_equal(loaded.predict(TEST), model.predict(TEST))
        assert loaded.predict(TEST).dtype == model.predict(TEST).dtype


def test_a_head_from_a_file_is_whole(tmp_path):
    model = make(standardize=False).fit(X, Y)
    loaded = round_trip(model, tmp_path)
    assert (loaded.method, loaded.standardize, loaded.n_features_in_) == ("mlp", False, D)
    np.testing.assert_array_equal(loaded.transform(TEST), model.transform(TEST))
    assert loaded.fit(X, Y).score(TEST, ANSWER) > 0.6  # and can be fitted again
    with pytest.raises(ValueError, match="there is no head at"):
        NMTuneClassifier.load(tmp_path / "none")
    with pytest.raises(ValueError, match="features"):
        loaded.predict(TEST[:, 1:])


def test_arguments_of_numpy_types_as_a_grid_leaves_them(tmp_path):
    arguments = {"width": 2, "depth": 1, "epochs": 3, "batch_size": 32, "patience": 2, "learning_rate": 0.01}
    numpy_types = {name: np.array(value)[()] for name, value in arguments.items()} | {"residual": np.bool_(True)}
    model = make(**numpy_types).fit(X, Y)
    assert model.get_params()["width"] is numpy_types["width"]  # stored as given
    want = make(**arguments).fit(X, Y).predict_proba(TEST)
    np.testing.assert_array_equal(round_trip(model, tmp_path).predict_proba(TEST), want)


def test_dates_are_classes_but_not_in_a_file(tmp_path):
    for unit in ("D", "ns"):
        days = np.array(["2020-01-01", "2020-01-02", "2020-01-03"], f"datetime64[{unit}]")
        model = make(method="linear", learning_rate=0.1).fit(X, days[Y])
        assert (model.predict(TEST) == days[ANSWER]).mean() > 0.8
        with pytest.raises(ValueError, match=r"cannot be saved with the class .*2020-01-01.*astype\(str\)"):
            model.save(tmp_path / "head.safetensors")


def test_names_of_columns(tmp_path):
    import pandas as pd

    frame, test = (pd.DataFrame(x, columns=[f"f{i}" for i in range(D)]) for x in (X, TEST))
    model = make(method="linear").fit(frame, Y)
    loaded = round_trip(model, tmp_path)
    assert loaded.head_.columns == tuple(frame.columns)
    np.testing.assert_array_equal(loaded.predict(test), model.predict(test))
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(test[test.columns[::-1]])


def test_scores_of_a_ridge_probe_are_no_probabilities(tmp_path):
    head = make(method="linear", learning_rate=0.1).fit(X, Y).head_
    dataclasses.replace(head, about={"method": "ridge"}).save(tmp_path / "head")
    model = NMTuneClassifier.load(tmp_path / "head")
    assert model.score(TEST, ANSWER) > 0.8
    with pytest.raises(ValueError, match="the scores of a ridge head are not logits"):
        model.predict_proba(TEST)


def compute_loss(model, X, y):
    logits = np.float64(model.head_.outputs(X)[1])
    return -(logits[np.arange(len(y)), y] - np.log(np.exp(logits).sum(1))).mean()


def test_warm_start_continues():
    hard, y = blobs(distance=1.0)
    once = make(epochs=2, learning_rate=1e-3, early_stopping=False).fit(hard, y)
    twice = clone(once).set_params(warm_start=True).fit(hard, y)
    first = compute_loss(twice, hard, y)
    assert first == pytest.approx(compute_loss(once, hard, y))
    assert compute_loss(twice.fit(hard, y), hard, y) < first - 0.05
    names = np.array(["a", "b", "c"])[y]
    other, alone = twice.fit(hard, names), clone(once).fit(hard, names)  # other classes: another head
    np.testing.assert_array_equal(other.predict_proba(hard), alone.predict_proba(hard))
    cold = clone(once).fit(hard, y).fit(hard, y)
    np.testing.assert_array_equal(cold.predict_proba(hard), once.predict_proba(hard))


@pytest.mark.parametrize("unit", [1e15, 1e-15])
def test_features_of_any_scale(unit):
    assert (
        make(method="linear", learning_rate=0.1).fit(X * np.float32(unit), Y).score(TEST * np.float32(unit), ANSWER)
        > 0.8
    )


@pytest.mark.parametrize(
    ("changes", "data", "why"),
    [
        ({}, (0 * X + 1, Y), "constant"),
        ({}, (X, 0 * Y), "one class"),
        ({}, (X[:, :3], np.full(N, "one")), "one class"),
        ({"epochs": 0}, (X, Y), "epochs=0"),
        ({"learning_rate": 1e30}, (X, np.array(["x", "y", "z"])[Y]), "diverged"),
    ],
)
def test_a_refit_that_fails_changes_nothing(changes, data, why):
    model = make(method="linear", learning_rate=0.1).fit(X, Y)
    before = {name: value for name, value in vars(model).items() if name.endswith("_")}
    with pytest.raises(ValueError, match=why):
        model.set_params(**changes).fit(*data)
    assert all(getattr(model, name) is value for name, value in before.items())
    assert model.score(TEST, ANSWER) > 0.8
    new = make(**{"method": "linear", "learning_rate": 0.1, **changes})
    with pytest.raises(ValueError, match=why):
        new.fit(*data)
    with pytest.raises(NotFittedError):
        new.predict(TEST)


def test_a_loaded_classifier_continues(tmp_path):
    model = make(method="nmtune", preset="code", width=2, norm="layer", epochs=2).fit(X, Y)
    loaded = round_trip(model, tmp_path)
    assert {name: getattr(loaded, name) for name in ("method", "preset", "width", "depth", "residual", "norm")} == {
        "method": "nmtune", "preset": "code", "width": 2, "depth": 1, "residual": True, "norm": "layer",
    }  # fmt: skip
    loaded.set_params(warm_start=True, learning_rate=1e-12, epochs=1).fit(X, Y)
    np.testing.assert_allclose(loaded.predict_proba(TEST), model.predict_proba(TEST), atol=1e-5)


def test_a_path_that_cannot_be_written_is_a_value_error(tmp_path):
    model = make(method="linear", epochs=1).fit(X, Y)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file.* give a path in a folder that can be written to"):
        model.save(tmp_path / "file" / "head.safetensors")


def test_labels_of_bytes_raise_an_error_with_a_cure():
    with pytest.raises(ValueError, match=r"bytes.*astype\(str\)"):
        make().fit(X, np.array([b"a", b"b", b"c"])[Y])


def test_random_state_decides_everything():
    runs = [make(random_state=s).fit(X, Y).predict_proba(TEST) for s in (3, 3, 4, None, None)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-3
    assert np.abs(runs[3] - runs[4]).max() > 1e-3
    state = np.random.RandomState(7)
    drawn = make(random_state=state)
    first, second = drawn.fit(X, Y).predict_proba(TEST), drawn.fit(X, Y).predict_proba(TEST)
    assert np.abs(first - second).max() > 1e-3  # the state has moved on
    again = make(random_state=np.random.RandomState(7)).fit(X, Y).predict_proba(TEST)
    np.testing.assert_array_equal(first, again)


def test_rows_of_weight_zero_are_ignored_and_only_proportions_count():
    weights = np.where(np.arange(N) % 4 == 0, 0.0, 1 + np.arange(N) % 2)
    kept = weights > 0
    model = make(epochs=5)
    want = clone(model).fit(X[kept], Y[kept], weights[kept]).predict_proba(TEST)
    np.testing.assert_array_equal(clone(model).fit(X, Y, weights).predict_proba(TEST), want)
    poisoned = np.where(kept[:, None], X, 1e6)
    np.testing.assert_array_equal(clone(model).fit(poisoned, Y, weights).predict_proba(TEST), want)
    np.testing.assert_array_equal(clone(model).fit(X, Y, 8 * weights).predict_proba(TEST), want)
    np.testing.assert_allclose(clone(model).fit(X, Y, 10 * weights).predict_proba(TEST), want, atol=1e-3)
    assert np.abs(clone(model).fit(X[kept], Y[kept]).predict_proba(TEST) - want).max() > 1e-3


def test_heavy_rows_win():
    """If one point has two labels, the heavier one is predicted."""
    twice, labels = np.concatenate([X, X]), np.concatenate([Y, (Y + 1) % K])
    weights = np.concatenate([np.full(N, 0.1), np.full(N, 1.0)])
    model = make(early_stopping=False).fit(twice, labels, weights)
    assert model.score(TEST, (ANSWER + 1) % K) > 0.8


def test_early_stopping_stops_and_keeps_the_best_epoch():
    noise = np.random.default_rng(5).integers(0, K, N)  # nothing to learn: the loss rises soon
    model = make(epochs=60, patience=2, validation_fraction=0.2).fit(X, noise)
    assert model.n_iter_ < 60
    assert len(model.validation_loss_) == model.n_iter_
    assert int(np.argmin(model.validation_loss_)) == model.n_iter_ - 3
    short = make(epochs=60, patience=1, validation_fraction=0.2).fit(X, noise)
    assert short.n_iter_ <= model.n_iter_
    full = make(epochs=12, early_stopping=False).fit(X, noise)
    assert (full.n_iter_, full.validation_loss_) == (12, [])


def test_the_validation_part_is_not_trained_on():
    """Other features in it change the validation loss, but not what the first epoch learns."""
    model = make(epochs=1, standardize=False, validation_fraction=0.2)
    first = model.fit(X, Y)
    _, held = split_rows(model, Y, int(np.random.RandomState(0).randint(2**31 - 1)))
    assert len(held) == 24
    other = X.copy()
    other[held] = -other[held]
    second = clone(model).fit(other, Y)
    for a, b in zip(jax.tree.leaves(first.head_.params), jax.tree.leaves(second.head_.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.validation_loss_ != second.validation_loss_


def test_default_schedule():
    """Few rows get as many epochs as make 200 steps, and a patience of 75 steps. Many rows get 5 epochs and 3."""
    model = NMTuneClassifier(method="linear", start="fresh", early_stopping=False, random_state=0).fit(X, Y)
    assert model.n_iter_ == 100  # of 120 rows, 64 in a step
    assert model.score(TEST, ANSWER) > 0.8


def test_a_linear_head_is_the_tuned_logistic_regression():
    model = NMTuneClassifier("linear", random_state=0, calibrate=False).fit(3 * X + 1, Y)
    assert model.C_ in patient.CS
    assert model.n_iter_ == 0
    want = make_pipeline(StandardScaler(), LogisticRegression(C=model.C_, tol=1e-8, max_iter=1000)).fit(3 * X + 1, Y)
    np.testing.assert_allclose(model.predict_proba(TEST), want.predict_proba(TEST), atol=2e-3)
    weights = 0.5 + np.arange(N) % 3
    weighted = NMTuneClassifier("linear", C=0.1).fit(X, Y, weights)
    scaled = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=1000))
    scaled.fit(X, Y, logisticregression__sample_weight=weights / weights.mean())
    np.testing.assert_allclose(weighted.predict_proba(TEST), scaled.predict_proba(TEST), atol=2e-3)
    assert NMTuneClassifier("linear").fit(np.eye(3), ["a", "b", "c"]).C_ == 0.01  # nothing can be held out


@pytest.mark.parametrize("method", ["mlp", "nmtune"])
def test_a_head_starts_at_the_probe_and_gets_no_worse_in_validation(method):
    model = NMTuneClassifier(method, epochs=3, learning_rate=0.0, start="probe", C=0.1, random_state=0)
    start = model.fit(*blobs(300)).head_  # a rate of 0 trains nothing
    np.testing.assert_array_equal(start.params["scale"], 0)
    assert model.validation_loss_[0] == pytest.approx(model.validation_loss_[-1])
    tuned = clone(model).set_params(learning_rate=None).fit(*blobs(300))
    assert min(tuned.validation_loss_) < model.validation_loss_[0] + 1e-6
    assert tuned.score(TEST, ANSWER) > 0.8
    assert tuned.head_.form.width == methods.choose_width(D, 270) == 4


def test_a_head_leaves_the_probe_where_that_is_shown_to_help(monkeypatch):
    """No linear head sees where the classes change sides. At the careful rate 300 steps are too few to learn it."""
    rng = np.random.default_rng(0)
    F = rng.normal(size=(1500, D)).astype(np.float32)
    y = (F[:, 0] > 0) ^ (F[:, 1] > 0.8)
    linear, head = (NMTuneClassifier(name, random_state=0).fit(F[:900], y[:900]) for name in ("linear", "mlp"))
    assert linear.score(F[900:], y[900:]) < 0.82
    assert head.score(F[900:], y[900:]) > linear.score(F[900:], y[900:]) + 0.05
    monkeypatch.setattr(fitting, "ERRORS", math.inf)
    careful = clone(head).fit(F[:900], y[:900])
    assert head.score(F[900:], y[900:]) > careful.score(F[900:], y[900:]) + 0.03


def test_a_gain_must_be_more_than_scale_and_chance():
    labels = np.arange(200) % K
    first = np.float32(np.eye(K)[labels] + np.random.default_rng(0).normal(size=(200, K)))
    rows = Rows(X, labels, np.ones(200), Demands(), np.arange(0), np.arange(200))
    fitting = Fitting(NMTuneClassifier("mlp"), rows, K, 0)
    assert not fitting._is_better(3 * first, first)
    assert not fitting._is_better(first + np.float32(np.random.default_rng(1).normal(0, 0.1, size=(200, K))), first)
    assert fitting._is_better(first + np.float32(0.5 * np.eye(K)[labels]), first)
    few = rows._replace(weights=np.where(labels == 0, 1.0, 1e-6))
    better = first + np.float32(0.5 * np.eye(K)[labels] * (labels > 0)[:, None])
    assert fitting._is_better(better, first)
    assert not Fitting(NMTuneClassifier("mlp"), few, K, 0)._is_better(better, first)  # better where nothing weighs


def test_a_head_from_the_probe_is_fitted_again_on_all_rows():
    """A rate of 0 trains nothing: what is left is the probe of all rows, with the penalty that `linear` chooses."""
    F, y = blobs(300, distance=1.0)
    same = {"random_state": 0, "calibrate": False}
    linear = NMTuneClassifier("linear", **same).fit(F, y)
    model = NMTuneClassifier("mlp", start="probe", epochs=2, learning_rate=0.0, **same).fit(F, y)
    assert model.C_ == linear.C_
    assert len(model.validation_loss_) == model.n_iter_ == 2
    np.testing.assert_allclose(model.predict_proba(TEST), linear.predict_proba(TEST), atol=1e-4)


def test_the_penalty_is_the_most_accurate_on_enough_held_out_rows(monkeypatch):
    F, y = blobs(300, distance=1.0)
    drawn, held = patient.hold_out, []

    def draw(labels, share, seed):
        held.append(drawn(labels, share, seed)[1])
        return drawn(labels, share, seed)

    monkeypatch.setattr(patient, "hold_out", draw)
    c, _ = patient.choose_penalty(F, y, num_classes=K, seed=7)
    assert len(held) == patient.MOST  # 60 rows each are never enough
    hits = {}
    for value in sorted({*patient.CS, c}):
        own = make_pipeline(LogisticRegression(C=value, tol=1e-6, max_iter=500))
        train = [np.setdiff1d(np.arange(300), rows) for rows in held]
        hits[value] = sum((own.fit(F[a], y[a]).predict(F[b]) == y[b]).sum() for a, b in zip(train, held, strict=True))
    assert hits[c] >= max(hits.values()) - 2  # solvers differ a little
    monkeypatch.setattr(patient, "ENOUGH", 100)
    held.clear()
    patient.choose_penalty(F, y, num_classes=K, seed=7)
    assert len(held) == 2


@pytest.mark.parametrize(("cs", "want"), [((0.1, 1.0, 10.0), 0.01), ((1e-8, 1e-6), 1e-4), ((1e-4, 1e-3, 0.01), 1e-3)])
def test_a_penalty_at_the_edge_is_compared_with_one_beyond_it(cs, want):
    """Two noisy classes, of which the rarer one is only predicted if the penalty is weak; C = 0.1 fits noise."""
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.3).astype(int)
    F = rng.normal(size=(400, 60)) + 0.6 * np.eye(1, 60) * y[:, None]
    c, _ = patient.choose_penalty(np.float32(F), y, num_classes=2, seed=0, cs=cs)
    assert c == pytest.approx(want)


@pytest.mark.parametrize(
    ("scores", "strongest", "weights", "best"),
    [
        ([9, 9, 9], [0.1, 0.1, 0.0, 0.3], None, 0),  # 0.025 above the lowest loss, whose error is 0.054
        ([9, 9, 9], [0.1, 0.1, 0.1, 0.3], None, 1),  # 0.05 above, and the error is 0.043
        ([9, 9, 9], [0.1, 0.1, 0.1, 0.3], [1, 1, 1, 0], 0),
        ([8, 8, 9], [0.0, 0.0, 0.0, 0.0], None, 2),  # the score goes first
        ([8 + 1e-12, 8, 7], [0.5, 0.5, 0.5, 0.5], None, 1),  # a tie in spite of rounding
    ],
)
def test_of_equal_penalties_the_strongest_that_costs_no_likelihood(monkeypatch, scores, strongest, weights, best):
    losses = np.array([strongest, [0.1, 0.1, 0.1, 0.1], [0.2, 0.1, 0.1, 0.1]])
    monkeypatch.setattr(patient, "find_temperature", lambda logits, labels: 1.0)
    monkeypatch.setattr(patient, "compute_losses", lambda logits, labels: logits)
    assert patient.pick_penalty(scores, losses, np.zeros(4, int), weights and np.array(weights)) == best


def test_a_penalty_that_only_shrinks_logits_costs_nothing():
    logits = np.random.default_rng(0).normal(size=(50, K))
    labels = (logits + np.random.default_rng(1).normal(size=(50, K))).argmax(1)
    assert patient.pick_penalty([1, 1, 1], [0.2 * logits, logits, 3 * logits], labels) == 0
    assert patient.pick_penalty([1, 1, 1], [-logits, logits, 3 * logits], labels) == 1


@pytest.mark.parametrize("distance", [2.5, 40.0])
@pytest.mark.parametrize("method", ["linear", "mlp"])
def test_probabilities_are_calibrated_although_accuracy_chooses_the_penalty(distance, method):
    """Where all penalties are right, the strongest would leave probabilities near chance."""
    F, y = blobs(600, distance=distance)
    test, truth = blobs(2000, seed=1, distance=distance)
    model = NMTuneClassifier(method, random_state=0).fit(F, y)
    right, sure = (model.predict(test) == truth).mean(), model.predict_proba(test).max(1).mean()
    assert sure == pytest.approx(right, abs=0.03)
    assert model.head_.temperature != 1


def test_progress_is_printed(capsys):
    make(verbose=1, epochs=2, start="probe").fit(*blobs(300))
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("mlp: probe solved, C=")
    assert "mlp: epoch 2 of 2, validation loss" in said[2]
    make(epochs=1).fit(X, Y)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("dim", "rows", "hidden"), [(8, 300, 32), (1536, 3000, 192), (1536, 10**6, 768), (768, 600, 96)]
)
def test_the_width_grows_with_the_rows(dim, rows, hidden):
    assert methods.choose_width(dim, rows) * dim == hidden


def test_fitting_twice_compiles_once():
    def count() -> list[int]:
        return [f.__wrapped__._cache_size() for f in (descent.advance, descent.begin)] + [descent._apply._cache_size()]

    make(method="nmtune", learning_rate=0.02).fit(X, Y)
    sizes = count()
    make(method="nmtune", learning_rate=0.05, weight_decay=0.1, epochs=3, weights={"svd": 0.3}, random_state=4).fit(
        X[:99], Y[:99]
    )
    assert count() == sizes


def test_the_spectra():
    model = make(compute_spectrum=True).fit(5 * X + 3, Y)
    F = (X - X.mean(0, dtype=np.float64)) / X.std(0, dtype=np.float64)
    s = {"F": spectrum.singular_values(F), "Z": spectrum.singular_values(model.transform(5 * X + 3))}
    for name, values in s.items():
        want = {"sve": spectrum.sve(values), "lsvr": spectrum.lsvr(values), "top_share": spectrum.top_share(values),
                "effective_rank": spectrum.effective_rank(values)}  # fmt: skip
        assert model.spectrum_[name] == pytest.approx(want, rel=1e-4)
    assert model.n_features_in_ == D
    assert not hasattr(model.set_params(compute_spectrum=False).fit(X, Y), "spectrum_")
    np.testing.assert_array_equal(model.get_feature_names_out(), [f"z{i}" for i in range(D)])
    linear = make(method="linear").fit(5 * X + 3, Y)
    np.testing.assert_allclose(linear.transform(5 * X + 3), F, atol=1e-4)


def test_architecture_and_weights_reach_the_head():
    model = make(width=2, depth=2, residual=False, norm="layer").fit(X, Y)
    assert model.head_.form._asdict() == {"mlp": True, "width": 2, "depth": 2, "residual": False, "norm": "layer"}
    outputs, _ = make_head(model.head_.form, K).apply(model.head_.params, model.head_.state, TEST, train=False)
    np.testing.assert_allclose(model.decision_function(TEST), outputs["logits"], rtol=1e-4, atol=1e-4)
    plain = make().fit(X, Y).predict_proba(TEST)
    np.testing.assert_allclose(
        make(method="nmtune", weights={"mse": 0.0, "cov": 0.0, "svd": 0.0}).fit(X, Y).predict_proba(TEST),
        plain,
        atol=1e-5,
    )
    assert np.abs(make(method="nmtune", weights={"svd": 1.0}).fit(X, Y).predict_proba(TEST) - plain).max() > 1e-3


def test_constant_features_and_a_class_of_one_row():
    constant = X.copy()
    constant[:, 2] = 4.0
    y = Y.copy()
    y[y == 2] = 1
    y[0] = 2  # one row of this class: it is never held out
    model = make().fit(constant, y)
    assert list(model.classes_) == [0, 1, 2]
    assert np.isfinite(model.predict_proba(TEST)).all()
    single = make().fit(np.eye(3), ["a", "b", "c"])  # nothing can be held out
    assert single.validation_loss_ == []


def spoil(value, row=17):
    bad = X.astype(np.float64)
    bad[row, 2] = value
    return bad


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"method": "svm"}, "'svm'.*linear, mlp, nmtune"),
        ({"method": "lbfgs"}, "'lbfgs'"),
        ({"method": "nmtune", "preset": "papers"}, "'papers'.*paper, code"),
        ({"method": "nmtune", "weights": {"sdv": 1}}, "'sdv'.*mse, cov, svd"),
        ({"method": "nmtune", "weights": {"svd": -1.0}}, r"svd is -1\.0"),
        ({"method": "nmtune", "weights": {"svd": np.nan}}, "svd is nan"),
        ({"method": "mlp", "weights": {"svd": 1.0}}, "mlp has no terms"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2.5}, r"epochs=2\.5"),
        ({"batch_size": -3}, "batch_size=-3"),
        ({"patience": 0}, "patience=0"),
        ({"learning_rate": -0.1}, r"learning_rate=-0\.1"),
        ({"learning_rate": np.inf}, "learning_rate=inf"),
        ({"learning_rate": "fast"}, "learning_rate='fast'"),
        ({"weight_decay": np.nan}, "weight_decay=nan"),
        ({"validation_fraction": 0.0}, r"validation_fraction=0\.0"),
        ({"validation_fraction": 1}, "validation_fraction=1"),
        ({"validation_fraction": "some"}, "validation_fraction='some'"),
        ({"width": 0}, "width=0"),
        ({"C": 0.0}, r"C=0\.0.*above 0"),
        ({"start": "zero"}, "start='zero'"),
        ({"start": "probe", "residual": False}, "residual=False exclude"),
        ({"start": "probe", "warm_start": True}, "warm_start=True exclude"),
        ({"compute_spectrum": 1}, "compute_spectrum=1"),
        ({"gce_q": 1.5}, r"gce_q=1\.5.*from 0 to 1"),
        ({"depth": 0}, "depth=0"),
        ({"norm": "group"}, "'group'.*batch, layer, none"),
        ({"random_state": "seed"}, "seed"),
        ({"method": "linear", "preset": "papers"}, "'papers'.*paper, code"),
        ({"residual": "False"}, "residual='False'.*True or False"),
        ({"standardize": 1}, "standardize=1"),
        ({"early_stopping": "no"}, "early_stopping='no'"),
        ({"warm_start": None}, "warm_start=None"),
        ({"method": "nmtune", "weights": "svd"}, "weights='svd'.*by name"),
        ({"epochs": True}, "epochs=True"),
        ({"learning_rate": True}, "learning_rate=True"),
        ({"learning_rate": 1j}, "learning_rate=1j"),
        ({"learning_rate": 1e38}, "diverged"),
    ],
)
def test_invalid_arguments(arguments, cause):
    with pytest.raises(ValueError, match=cause) as e:
        make(**arguments).fit(X, Y)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("X", "y", "weights", "cause"),
    [
        (spoil(np.nan), Y, None, "row 17 of X holds NaN, 1 rows"),
        (spoil(-np.inf), Y, None, "row 17 of X holds -inf"),
        (spoil(1e300), Y, None, r"row 17 of X holds 1e\+300"),
        (X, Y[:-1], None, "inconsistent numbers of samples"),
        (X, np.zeros(N), None, r"one class: \[0\.0\]"),
        (X, np.random.default_rng(0).normal(size=N), None, "continuous"),
        (X, Y, np.zeros(N), "zero"),
        (X, Y, -np.ones(N), "[Nn]egative"),
        (X, Y, (Y == 1).astype(float), r"one class: \[1\]"),
        (X[0], Y, None, "1D array"),
        (np.ones((N, 3)), Y, None, "X: every feature is constant"),
        (np.zeros((N, 3)), Y, None, "X: every feature is constant"),
        (np.where(np.arange(N)[:, None] < 9, X, 0), Y, np.where(np.arange(N) < 9, 0, 1), "every feature is constant"),
    ],
)
def test_data_that_do_not_fit(X, y, weights, cause):
    with pytest.raises(ValueError, match=cause):
        make().fit(X, y, weights)


def test_prediction_needs_a_fit_and_finite_features():
    with pytest.raises(NotFittedError):
        make().predict(X)
    with pytest.raises(NotFittedError):
        make().save("nowhere")
    model = make().fit(X, Y)
    with pytest.raises(ValueError, match="row 17 of X holds NaN"):
        model.predict(spoil(np.nan))


@pytest.mark.parametrize("method", ["linear", "nmtune"])
def test_calibrated_probabilities_and_the_same_predictions(method):
    """The penalty is nearly off, so that a head is far too sure of rows that it has not seen."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 900)
    X = rng.normal(size=(900, 40)) + 0.4 * y[:, None] * np.eye(1, 40)
    heads = [
        NMTuneClassifier(method, C=1e3, validation_fraction=0.3, random_state=0, calibrate=on).fit(X[:250], y[:250])
        for on in (False, True)
    ]
    plain, warm = (head.predict_proba(X[250:]) for head in heads)
    np.testing.assert_array_equal(heads[0].predict(X), heads[1].predict(X))
    assert heads[1].head_.temperature > 1.3
    assert log_loss(y[250:], warm) < log_loss(y[250:], plain) - 0.02
    np.testing.assert_allclose(heads[1].predict_log_proba(X[250:]), np.log(warm), rtol=1e-9)


def test_calibration_needs_rows_to_validate_on():
    X, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 2
    with pytest.raises(ValueError, match="needs rows to validate on"):
        NMTuneClassifier("mlp", calibrate=True, early_stopping=False, epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="there is no class 'c'; the classes are 'a', 'b'"):
        NMTuneClassifier("linear", class_weight={"c": 2}).fit(X, np.array(["a", "b"])[y])
