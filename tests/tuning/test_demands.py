"""What heads are to be good at: a metric that decides, weights of classes, and groups that stay together."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import f1_score, log_loss, recall_score

from nml_jax import NMTuneClassifier
from nml_jax.data.class_weights import find_class_weights
from nml_jax.tuning import descent, patient, probes, select, streamed
from nml_jax.tuning.holdout import Demands
from nml_jax.tuning.trainers import make_trainer
from nml_jax.tuning.trainers.trainer import Problem
from tests.tuning.test_select import D, K, blobs, config
from tests.tuning.test_streamed import Disk

NAMES = range(K)


def imbalanced(n=400, seed=0, distance=1.0):
    """Draw three overlapping classes with 80, 15 and 5 % of the rows."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(K, n, p=[0.8, 0.15, 0.05])
    labels[:K] = range(K)
    return (rng.normal(size=(n, D)) + distance * np.eye(K, D)[labels]).astype(np.float32), labels


def fit(method, train=None, *, demands, **changes):
    features, labels = train or imbalanced()
    how = {"method": method, "preset": None, "num_classes": K, "config": config(**changes), "seed": 0}
    return select.fit(features, labels, **how, demands=demands)


@pytest.mark.parametrize("wanted", ["balanced", {0: 3.0, 2: 10.0}])
def test_weighted_probes_are_those_of_scikit_learn(wanted):
    (X, y), (test, _) = imbalanced(), imbalanced(50, seed=1)
    weights = find_class_weights(wanted, y, NAMES)
    assert weights is not None
    for c in (0.01, 1.0):
        want = LogisticRegression(C=c, class_weight=wanted, tol=1e-8, max_iter=10_000).fit(X, y)
        got = fit("lbfgs", cs=(c,), demands=Demands(class_weights=weights))
        odds = np.exp(got.outputs(test)[1].astype(float))
        np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), want.predict_proba(test), atol=2e-3)
        head = NMTuneClassifier("linear", C=c, class_weight=wanted, standardize=False).fit(X, y)
        np.testing.assert_allclose(head.predict_proba(test), want.predict_proba(test), atol=2e-3)
    for alpha in (0.1, 100.0):
        want = RidgeClassifier(alpha=alpha, class_weight=wanted).fit(X, y)
        got = fit("ridge", alphas=(alpha,), demands=Demands(class_weights=weights))
        np.testing.assert_allclose(got.outputs(test)[1], want.decision_function(test), atol=1e-4)


def test_weighted_ridge_of_fewer_rows_than_features():
    X, y = np.random.default_rng(0).normal(size=(9, 20)), np.arange(9) % 3
    weights = np.array([1.0, 5.0, 0.2])[y]
    (got,) = probes.fit_ridge(X, y, (0.5,), num_classes=3, weights=weights)
    want = RidgeClassifier(alpha=0.5).fit(X, y, weights)
    np.testing.assert_allclose(got(X), want.decision_function(X), atol=1e-4)


@pytest.mark.parametrize("method", ["linear", "mlp"])
def test_weights_raise_the_recall_of_rare_classes(method):
    (X, y), (test, truth) = imbalanced(), imbalanced(1000, seed=1)
    weights = find_class_weights("balanced", y, NAMES)
    one = {"lrs": (0.05,), "weight_decays": (0.0,), "epochs": 10}
    recalls = []
    for own in (None, weights):
        demands = Demands(class_weights=own)
        heads = [fit(method, demands=demands, **one)]
        how = {"method": method, "num_classes": K, "config": config(**one), "seeds": (0,), "demands": demands}
        heads += streamed.fit_seeds(Disk(X[:, None]), y.astype(np.int32), shard=150, **how)
        recalls.append([recall_score(truth, head.outputs(test)[1].argmax(1), average="macro") for head in heads])
    assert (np.subtract(*recalls[::-1]) > 0.1).all()  # in memory, and streamed


def test_heads_by_gradient_take_the_weights_as_they_are():
    X, y = imbalanced()
    demands = Demands(class_weights=np.array([1.0, 2.0, 8.0]))
    trainer = make_trainer(Problem(X[:, None], y, "mlp", None, K, config(), demands))
    np.testing.assert_array_equal(trainer.bank.weights, np.float32([1, 2, 8])[y])


def test_the_metric_decides_the_setting():
    X, y = imbalanced(300, distance=0.6)
    found = {}
    for metric in ("accuracy", "macro_f1", "mean_per_class", "log_loss"):
        result = fit("lbfgs", (X, y), cs=(1e-4, 1e-2, 1.0, 100.0), demands=Demands(metric))
        best = max(result.validation, key=lambda v: (-v[metric] if metric == "log_loss" else v[metric], -v["loss"]))
        assert result.hyper == {"C": best["C"]}
        found[metric] = result
    assert len({result.hyper["C"] for result in found.values()}) > 1
    plain = fit("lbfgs", (X, y), cs=(1e-4, 1e-2, 1.0, 100.0), demands=Demands())
    assert plain.hyper == found["accuracy"].hyper
    kept, held_out = Demands().hold_out(y, 0.2, 0)
    own = fit("lbfgs", (X[kept], y[kept]), cs=(1.0,), demands=Demands())
    logits = own.outputs(X[held_out])[1].astype(float)
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    values = [next(v for v in found[m].validation if v["C"] == 1)[m] for m in ("macro_f1", "log_loss")]
    want = [f1_score(y[held_out], logits.argmax(1), average="macro"), log_loss(y[held_out], odds, labels=range(K))]
    assert values == pytest.approx(want, abs=1e-4)


def test_the_metric_decides_the_probe_that_heads_start_from():
    X, y = imbalanced(300, distance=0.6)
    every = np.arange(300)
    cs = (1e-4, 1e-2, 1.0, 100.0)
    chosen = {m: patient.choose_probe(X, y, (every[:200], every[200:]), num_classes=K, cs=cs, demands=Demands(m))
              for m in ("", "accuracy", "log_loss", "mean_per_class")}  # fmt: skip
    assert chosen[""][1] == chosen["accuracy"][1]
    assert chosen["log_loss"][1] != chosen["mean_per_class"][1]
    recalls = [recall_score(y[200:], probe(X[200:]).argmax(1), average="macro") for probe, _ in chosen.values()]
    assert max(recalls) == recalls[3] > recalls[2]


@pytest.mark.parametrize(
    ("metric", "best"),
    [("", 3), ("log_loss", 3), ("macro_f1", 2), ("accuracy", 4)],
)
def test_the_metric_decides_when_training_stops(monkeypatch, metric, best):
    scores = [  # epoch by epoch
        {"loss": 0.9, "log_loss": 0.9, "macro_f1": 0.4, "accuracy": 0.5},
        {"loss": 0.8, "log_loss": 0.8, "macro_f1": 0.7, "accuracy": 0.5},
        {"loss": 0.7, "log_loss": 0.7, "macro_f1": 0.6, "accuracy": 0.6},
        {"loss": 0.9, "log_loss": 0.9, "macro_f1": 0.6, "accuracy": 0.8},
        {"loss": 0.8, "log_loss": 0.8, "macro_f1": 0.7, "accuracy": 0.7},
        {"loss": 0.9, "log_loss": 0.9, "macro_f1": 0.7, "accuracy": 0.7},
    ]
    monkeypatch.setattr(descent, "advance", lambda spec, carry, *rest: carry)
    monkeypatch.setattr(patient.Training, "_fetch", lambda self: f"head {self.done}")
    spec = descent.Spec(None, None, K, 8, False)
    following = iter(scores)
    how = {"horizon": 6, "score": lambda head: Demands(metric).rank(next(following))}
    training = patient.Training(spec, None, None, None, 8, **how)
    assert training.run(6, 2) == f"head {best}"
    assert training.done == best + 2
    assert training.losses == [one["loss"] for one in scores[: best + 2]]


def test_rows_of_a_group_are_never_split_up():
    """Every row is there twice, with a label that says nothing: only a copy in training could tell it."""
    X = np.repeat(np.random.default_rng(0).normal(size=(60, 1, D)).astype(np.float32), 2, axis=0)
    y, groups = np.repeat(np.arange(60) % K, 2), np.repeat(np.arange(60), 2)
    several = {"method": "knn", "num_classes": K, "config": config(ks=(1, 15), validation=0.4), "seeds": (0, 1)}
    free, bound = (select.fit_seeds(X, y, **several, demands=Demands(groups=own)) for own in (np.arange(120), groups))
    for one, other in zip(free, bound, strict=True):
        first = one.validation[0]["accuracy"], other.validation[0]["accuracy"]
        assert first[0] > 0.5 > first[1]
    kept, held_out = Demands(groups=groups).hold_out(y, 0.4, 0)
    assert set(groups[kept]).isdisjoint(groups[held_out])
    assert len(kept) + len(held_out) == 120


def test_groups_of_a_sample_are_those_of_its_rows():
    X, y = blobs(300)
    groups = np.arange(300) // 5
    how = {"method": "linear", "num_classes": K, "seeds": (0,), "demands": Demands(groups=groups)}
    (result,) = streamed.fit_seeds(Disk(X), y.astype(np.int32), shard=100, config=config(lrs=(0.1, 0.01)), **how)
    assert len(result.validation) == 4
