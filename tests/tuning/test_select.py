import re
from functools import partial

import jax
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef

from nml_jax.data.stratify import hold_out
from nml_jax.errors import UserError
from nml_jax.evals import metrics
from nml_jax.models.heads.mlp import Form, make_head
from nml_jax.objectives import nmtune, terms
from nml_jax.tuning import descent, holdout, select, spread
from nml_jax.tuning.descent import Setting, Spec, TrainingSet
from nml_jax.tuning.methods import METHODS
from tests.scenes.head_config import make_tune

N, D, K = 60, 8, 3
LINEAR, MLP = Form(mlp=False), Form(mlp=True, width=2)
CODE, CODE_NUMBERS = terms.split("nmtune", nmtune.PRESETS["code"])
PAPER, PAPER_NUMBERS = terms.split("nmtune", nmtune.PRESETS["paper"])


def config(**changes):
    small = {"epochs": 4, "batch": 16, "lrs": (0.01, 0.1), "weight_decays": (0.0, 1e-2), "cs": (0.1, 1.0),
             "alphas": (1.0, 10.0), "ks": (5, 9)}  # fmt: skip
    return make_tune(**{**small, **changes})


def blobs(n=N, seed=0, distance=3.0, views=1):
    """Draw three Gaussian classes whose means are the first three axes times `distance`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n)
    labels[:K] = range(K)
    features = rng.normal(size=(n, views, D)) + distance * np.eye(K, D)[labels][:, None]
    return features.astype(np.float32), labels


def fit(method="linear", preset=None, *, seed=0, train=None, **changes):
    features, labels = train or blobs()
    return select.fit(
        features, labels, method=method, preset=preset, num_classes=K, config=config(**changes), seed=seed
    )


def score(result, data=None):
    """Return the scores of a head on features [N, 1, D] and labels."""
    features, labels = data or blobs(50, seed=1)
    _, logits = result.outputs(features[:, 0])
    return metrics.compute_scores(metrics.confusion(labels, logits.argmax(1), K))


def bank(features, labels, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights
    return TrainingSet(features, np.int32(labels), np.float32(weights))


def assert_trees(got, want, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


def drop_noise(tree):
    """Drop the bias before BatchNorm, which subtracts it: its gradient is rounding noise, and AdamW amplifies it."""
    params, state = tree
    if "dense1" not in params:
        return params, state
    dense1 = {"kernel": params["dense1"]["kernel"]}
    return params | {"dense1": dense1}, state | {"norm": {"var": state["norm"]["var"]}}


def train_reference(spec, features, labels, setting, n, epochs):
    """Train step by step: optax's AdamW with a learning rate per step, one batch after another."""
    model = make_head(spec.form, spec.num_classes)
    form = nmtune.Weights() if spec.terms is None else spec.terms.form
    weights = form._replace(**setting.numbers)
    for_init, for_order = jax.random.split(jax.random.key(setting.seed))
    params, state = model.init(for_init, features.shape[-1])
    steps = -(-n // spec.batch)

    @jax.jit
    def gradient(params, state, F, label):
        def loss(params):
            outputs, new_state = model.apply(params, state, F.reshape(-1, F.shape[-1]), train=True)
            Z, logits = (outputs[key].reshape(*F.shape[:2], -1) for key in ("features", "logits"))
            return nmtune.loss(F, Z, logits, label, weights=weights), new_state

        return jax.grad(loss, has_aux=True)(params)

    @jax.jit
    def update(params, opt_state, g, lr):
        updates, opt_state = optax.adamw(lr, weight_decay=setting.weight_decay).update(g, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optax.adamw(1.0).init(params)
    for i in range(epochs):
        draws = np.asarray(jax.random.bits(jax.random.fold_in(for_order, i), (len(labels),), "uint32"))
        order = list(setting.rows[np.argsort(draws[:n], kind="stable")])
        order += order[: steps * spec.batch - n]  # the last batch is filled up
        for k in range(steps):
            rows = np.array(order[k * spec.batch : (k + 1) * spec.batch])
            g, state = gradient(params, state, features[rows], labels[rows])
            done = (i * steps + k) / (epochs * steps)
            params, opt_state = update(params, opt_state, g, np.float32(setting.lr * (1 + np.cos(np.pi * done)) / 2))
    return params, state


@pytest.mark.parametrize(
    ("form", "terms", "numbers", "views", "n"),
    [(LINEAR, None, {}, 1, N), (MLP, CODE, CODE_NUMBERS, 2, 41)],
)
def test_a_run_is_adamw_with_a_cosine_step_by_step(form, terms, numbers, views, n):
    features, labels = blobs(views=views)
    spec = Spec(form, terms, K, 16, False)
    setting = Setting(np.random.default_rng(0).permutation(N), 0.01, 0.1, 3, numbers)
    (got,) = spread.train(spec, bank(features, labels), [setting], n, epochs=3)
    want = train_reference(spec, features, labels, setting, n, 3)
    assert_trees(drop_noise(got), drop_noise(want), rtol=0, atol=1e-5)


@pytest.mark.parametrize("q", [0.0, 0.7])
def test_one_full_batch_against_numpy(q):
    """AdamW by its formula, in float64, with decay on the bias too; rows have weights."""
    features, labels = blobs()
    x, y = np.float64(features[:, 0]), np.eye(K)[labels]
    lr, weight_decay, epochs = 0.05, 0.3, 6
    weights = np.linspace(0.5, 1.5, N)
    setting = Setting(np.arange(N), lr, weight_decay, 1, q=q)
    spec = Spec(LINEAR, None, K, N, False, gce=q > 0)
    ((got, _),) = spread.train(spec, bank(features, labels, weights), [setting], N, epochs=epochs)
    start = make_head(LINEAR, K).init(jax.random.split(jax.random.key(1))[0], D)[0]["classifier"]
    p = [np.float64(start["kernel"]), np.full(K, 0.0)]
    m, v = [0 * a for a in p], [0 * a for a in p]
    for t in range(epochs):
        logits = x @ p[0] + p[1]
        P = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        delta = (P - y) * (weights * (P * y).sum(1) ** q / N)[:, None]
        rate = lr * (1 + np.cos(np.pi * t / epochs)) / 2
        for i, g in enumerate((x.T @ delta, delta.sum(0))):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            u = m[i] / (1 - 0.9 ** (t + 1)) / (np.sqrt(v[i] / (1 - 0.999 ** (t + 1))) + 1e-8)
            p[i] = p[i] - rate * (u + weight_decay * p[i])
    np.testing.assert_allclose(got["classifier"]["kernel"], p[0], atol=1e-5)
    np.testing.assert_allclose(got["classifier"]["bias"], p[1], atol=1e-5)


def test_mapped_runs_equal_single_runs():
    features, labels = blobs()
    spec = Spec(MLP, PAPER, K, 16, standardize=True)
    rng = np.random.default_rng(0)
    hypers = (1e-2, 0.0, 1), (1e-3, 0.1, 1), (1e-2, 0.0, 2)
    settings = [Setting(rng.permutation(N), *hyper, PAPER_NUMBERS) for hyper in hypers]
    runs = partial(spread.train, spec, bank(features, labels), settings, 48, epochs=3)
    single, mapped = runs(mapped=False), runs(mapped=True)
    assert_trees(mapped, single)  # the same bits
    kernels = [params["classifier"]["kernel"] for params, _ in single]
    assert min(np.abs(kernels[0] - k).max() for k in kernels[1:]) > 1e-2  # the runs differ from each other


def test_heads_on_several_devices_say_nothing_to_each_other():
    features, labels = blobs()
    spec, rows = Spec(MLP, PAPER, K, 16, standardize=True), np.arange(N)
    settings = [descent.to_arrays(Setting(rows, 1e-2, 0.0, seed, PAPER_NUMBERS)) for seed in range(4)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *settings)
    compiled = spread.compile_mapped(spec, tuple(jax.devices()[:2]))
    lowered = compiled.lower(bank(features, labels), stacked, np.int32(48), np.int32(1), None)
    text = lowered.compile({"xla_backend_optimization_level": 0}).as_text()
    assert "num_partitions=2" in text
    assert not re.search(r"all-reduce|all-gather|all-to-all|collective|reduce-scatter", text)


def test_an_epoch_takes_every_row_once():
    n, size = np.int32(41), N
    orders = [np.asarray(descent._permute(jax.random.key(s), size, n))[:n] for s in range(200)]
    assert all((np.sort(order) == np.arange(n)).all() for order in orders)
    firsts = np.bincount([order[0] for order in orders], minlength=41)
    assert firsts.max() < 20  # 200 draws over 41 rows: no row is preferred


def test_held_out_rows_are_neither_trained_on_nor_in_the_statistics():
    features, labels = blobs()
    rows = np.random.default_rng(0).permutation(N)
    spec = Spec(MLP, None, K, 16, standardize=True)
    poisoned = features.copy()
    poisoned[rows[48:]] = 1e6
    args = [Setting(rows, 0.01, 0.0, 0)], 48
    runs = [spread.train(spec, bank(x, labels), *args, epochs=2) for x in (features, poisoned)]
    assert_trees(*runs)


@pytest.mark.parametrize("unit", [2.0**40, 2.0**-40])
def test_every_feature_may_have_its_own_scale(unit):
    features, _ = blobs()
    units = np.where(np.arange(D) % 2, np.float32(unit), np.float32(1))
    one, other = descent.get_standard(features), descent.get_standard(features * units)
    np.testing.assert_array_equal(one["mean"] * units, other["mean"])
    np.testing.assert_array_equal(one["scale"] * units, other["scale"])
    np.testing.assert_allclose(other["scale"], (features * units).std((0, 1), dtype=np.float64), rtol=1e-5)


def test_standardising_is_training_on_standardised_features():
    features, labels = blobs(views=2)
    features = 5 * features + 100
    features[..., -1] = 7.1  # constant
    mean = features.mean((0, 1), dtype=np.float64)
    scale = np.where(np.arange(D) < D - 1, features.std((0, 1), dtype=np.float64), 1)
    test = 5 * blobs(50, seed=1)[0][:, 0] + 100
    one = {"lrs": (0.01,), "weight_decays": (0.0,)}
    got = fit(train=(features, labels), standardize=True, **one)
    want = fit(train=(((features - mean) / scale).astype(np.float32), labels), **one)
    assert_trees(got.head.params, want.head.params, rtol=0, atol=1e-5)
    standardised = ((test - mean) / scale).astype(np.float32)
    np.testing.assert_allclose(got.outputs(test)[0], standardised, atol=1e-4)
    assert_trees(got.outputs(test), want.outputs(standardised), rtol=0, atol=1e-3)


def test_linear_head_is_as_good_as_logistic_regression():
    train, test = blobs(400, distance=1.5), blobs(400, seed=1, distance=1.5)
    got = fit(train=train, epochs=20)
    probe = LogisticRegression().fit(train[0][:, 0], train[1])
    want = probe.score(test[0][:, 0], test[1])
    assert 0.6 < want < 0.95  # neither trivial nor perfect
    assert score(got, test)["accuracy"] == pytest.approx(want, abs=0.02)
    agree = got.outputs(test[0][:, 0])[1].argmax(1) == probe.predict(test[0][:, 0])
    assert agree.mean() > 0.95


@pytest.mark.parametrize(
    ("method", "preset"),
    [
        *((name, None) for name in ("linear", "lbfgs", "ridge", "knn")),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in ("mlp", "skd", "fgs")),
        *(("lgm", None), ("nmtune", "paper"), pytest.param("nmtune", "code", marks=pytest.mark.slow)),
    ],
)
def test_every_method_learns_and_its_scores_are_those_of_scikit_learn(method, preset):
    test, shifted = blobs(700, seed=1, distance=1.5), blobs(33, seed=2)
    tests = {"test": test, "shifted": (shifted[0] + 1, shifted[1])}
    result = fit(method, preset)
    for views, y in tests.values():
        x = views[:, 0]
        Z, logits = result.outputs(x)
        predicted = logits.argmax(1)
        assert score(result, (views, y)) == {
            "accuracy": pytest.approx(accuracy_score(y, predicted)),
            "macro_f1": pytest.approx(f1_score(y, predicted, average="macro")),
            "mean_per_class": pytest.approx(balanced_accuracy_score(y, predicted)),
            "mcc": pytest.approx(matthews_corrcoef(y, predicted)),
        }
        assert Z.shape == x.shape
        if method != "knn":
            classifier = result.head.params["classifier"]
            want = Z @ classifier["kernel"] + classifier["bias"]
            np.testing.assert_allclose(want, logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(result.outputs(x)[0], Z)
    assert score(result, test)["accuracy"] > 0.6
    assert result.n_train == N
    assert result.preset == {"code": "code/1view"}.get(preset, preset)
    assert len(test[1]) > descent.CHUNK
    np.testing.assert_allclose(result.outputs(test[0][600:, 0])[0], result.outputs(test[0][:, 0])[0][600:])


def test_a_seed_decides_everything():
    first, again, other = (fit("mlp", seed=seed) for seed in (5, 5, 6))
    assert_trees((again.head.params, again.head.state), (first.head.params, first.head.state), rtol=0)
    assert (again.hyper, again.validation, score(again)) == (first.hyper, first.validation, score(first))
    assert np.abs(other.head.params["dense1"]["kernel"] - first.head.params["dense1"]["kernel"]).max() > 0.1
    assert other.validation != first.validation


def test_several_seeds_equal_single_seeds():
    features, labels = blobs()
    both = select.fit_seeds(features, labels, method="linear", num_classes=K, config=config(), seeds=(3, 2**33 + 4))
    for seed, got in zip((3, 2**33 + 4), both, strict=True):
        want = fit(seed=seed)
        assert got.hyper == want.hyper
        assert score(got) == score(want)
        assert got.validation == want.validation
        assert_trees(got.head.params, want.head.params)


def test_nothing_is_compiled_twice():
    fit("mlp", epochs=3)
    runs, outputs = descent.train_one._cache_size(), descent._apply._cache_size()
    fit("mlp", epochs=5, seed=9, lrs=(0.3, 0.03, 0.003), weight_decays=(0.5,), validation=0.1, train=blobs(seed=4))
    assert descent.train_one._cache_size() == runs
    assert descent._apply._cache_size() == outputs


def test_weights_of_terms_are_traced_and_a_weight_of_zero_leaves_its_term_out():
    one = {"lrs": (0.01,), "weight_decays": (0.0,)}
    runs = partial(fit, "nmtune", "paper", **one)
    first = runs(nmtune={"svd": 0.5})
    compiled = descent.train_one._cache_size()
    strong = runs(nmtune={"svd": 5.0, "mse": 0.2})
    assert descent.train_one._cache_size() == compiled
    assert np.abs(strong.head.params["dense1"]["kernel"] - first.head.params["dense1"]["kernel"]).max() > 1e-3
    plain = fit("mlp", **one)
    compiled = descent.train_one._cache_size()
    none = runs(nmtune={"mse": 0.0, "cov": 0.0, "svd": 0.0})
    assert descent.train_one._cache_size() == compiled + 1  # another program: without eigenvectors
    assert_trees(none.head.params, plain.head.params)


@pytest.mark.parametrize("kind", ["noisytune", "neftune"])
def test_a_perturbation_changes_the_run_and_zero_does_not(kind):
    one = {"lrs": (0.01,), "weight_decays": (0.0,)}
    plain, zero, weak, strong = (fit("mlp", **one, **{kind: x}).head.params for x in (0.0, 0, 0.1, 0.3))
    assert_trees(zero, plain, rtol=0)
    assert np.abs(weak["dense1"]["kernel"] - plain["dense1"]["kernel"]).max() > 1e-4
    assert np.abs(strong["dense1"]["kernel"] - weak["dense1"]["kernel"]).max() > 1e-4
    features, labels = blobs()
    spec, setting = Spec(MLP, None, K, 16, False), Setting(np.arange(N), 0.01, 0.0, 1)
    ((bare, _),) = spread.train(spec, bank(features, labels), [setting], N, epochs=2)
    ((traced, _),) = spread.train(spec._replace(**{kind: True}), bank(features, labels), [setting], N, epochs=2)
    assert_trees(traced, bare, rtol=0)  # also where the zero is traced


def test_weights_of_rows_count_in_the_cross_entropy_only():
    """For a linear head in one full batch, a row of weight 2 counts like two equal rows."""
    features, labels = blobs()
    weights = np.where(np.arange(N) < N // 2, 1.5, 0.5)
    setting = Setting(np.arange(N), 0.05, 0.0, 1)
    spec = Spec(LINEAR, None, K, N, False)
    ((got, _),) = spread.train(spec, bank(features, labels, weights), [setting], N, epochs=5)
    rows = np.concatenate([np.arange(N // 2)] * 3 + [np.arange(N // 2, N)])
    twice, repeated = Setting(np.arange(2 * N), 0.05, 0.0, 1), bank(features[rows], labels[rows])
    ((want, _),) = spread.train(spec._replace(batch=2 * N), repeated, [twice], 2 * N, epochs=5)
    assert_trees(got, want, rtol=0, atol=1e-5)


def test_validation_and_final_run_share_one_compiled_program():
    before = descent.train_one._cache_size()
    fit(train=blobs(47))
    assert descent.train_one._cache_size() == before + 1


@pytest.mark.parametrize(("method", "value"), [("lbfgs", "C"), ("ridge", "alpha"), ("knn", "k")])
def test_probes_choose_on_the_validation_part_of_the_gradient_methods(method, value):
    features, labels = blobs(distance=1.0)
    result = fit(method, train=(features, labels), seed=7, standardize=True)
    kept, held = hold_out(labels, 0.2, 7)
    x, y = features[kept, 0], labels[kept]
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    fitted = METHODS[method].probe((x - mean) / scale, y, [v[value] for v in result.validation], num_classes=K)
    for v, probe in zip(result.validation, fitted, strict=True):
        right = probe((features[held, 0] - mean) / scale).argmax(1) == labels[held]
        assert v["accuracy"] == right.mean()
    tie = "loss" if method == "lbfgs" else value
    best = min(result.validation, key=lambda v: (-v["accuracy"], v[tie] if tie == "loss" else -v[tie]))
    assert result.hyper == {value: best[value]}
    mean, scale = features[:, 0].mean(0, dtype=np.float64), features[:, 0].std(0, dtype=np.float64)
    (whole,) = METHODS[method].probe((features[:, 0] - mean) / scale, labels, [best[value]], num_classes=K)
    test = blobs(50, seed=1)[0][:, 0]
    want = whole((test - mean) / scale)
    np.testing.assert_allclose(result.outputs(test)[1], want, atol=1e-3 * np.abs(want).max())


def test_a_probe_sees_all_views_and_seeds_differ_in_what_they_hold_out():
    features, labels = blobs(views=2)
    two = select.fit_seeds(features, labels, method="ridge", num_classes=K, config=config(), seeds=(1, 2))
    flat, repeated = features.reshape(-1, D), np.repeat(labels, 2)
    for result in two:
        (want,) = METHODS["ridge"].probe(flat, repeated, [result.hyper["alpha"]], num_classes=K)
        np.testing.assert_allclose(result.head.params["classifier"]["kernel"], want.kernel, rtol=1e-5)
    assert two[0].validation != two[1].validation


def test_hyperparameters_are_the_best_on_the_validation_part():
    result = fit(lrs=(1e-9, 0.1), weight_decays=(0.0,))
    assert [v["lr"] for v in result.validation] == [1e-9, 0.1]
    assert result.hyper == {"lr": 0.1, "weight_decay": 0.0}
    easy = fit(train=blobs(distance=50), lrs=(0.1, 0.3, 0.2), weight_decays=(0.0,))
    assert {v["accuracy"] for v in easy.validation} == {1.0}
    assert easy.hyper["lr"] == min(easy.validation, key=lambda v: v["loss"])["lr"]  # a tie goes to the lower loss


def test_a_tie_of_scores_that_are_not_logits_goes_to_the_strongest_regularisation():
    """The cross-entropy of ridge's targets ±1 always falls with the penalty, so it cannot decide."""
    alphas, ks = (1e-4, 10.0, 1e-2), (9, 1, 5)
    for method, best in (("ridge", {"alpha": 10.0}), ("knn", {"k": 9})):
        result = fit(method, train=blobs(distance=50), alphas=alphas, ks=ks)
        assert {v["accuracy"] for v in result.validation} == {1.0}
        assert result.hyper == best
    assert fit("lbfgs", train=blobs(distance=50), cs=(0.1, 10.0)).hyper == {"C": 10.0}  # its scores are logits


def test_one_row_of_each_class_takes_the_middle_of_the_grid(capsys):
    features, labels = np.eye(K, D, dtype=np.float32), np.arange(K)
    result = fit(train=(features, labels), lrs=(0.3, 0.01, 0.1), weight_decays=(0.0,), epochs=50)
    assert result.hyper == {"lr": 0.1, "weight_decay": 0.0}
    assert result.unvalidated
    assert result.validation == []
    assert "taking the middle of the grid" in capsys.readouterr().err


def test_validation_scores_are_those_of_a_head_trained_without_the_validation_part():
    features, labels = blobs(views=2)
    result = fit(train=(features, labels), seed=7)
    kept, held = hold_out(labels, 0.2, 7)
    spec = Spec(LINEAR, None, K, 16, False)
    setting = Setting(np.concatenate([kept, held]), 0.1, 1e-2, 7)
    ((params, state),) = spread.train(spec, bank(features, labels), [setting], len(kept), epochs=4)
    x, y = features[held].reshape(-1, D), np.repeat(labels[held], 2)
    logits = np.float64(descent.compute_outputs(LINEAR, K, params, state, x)[1])
    loss = -(logits[np.arange(len(y)), y] - np.log(np.exp(logits).sum(1))).mean()
    want = {"lr": 0.1, "weight_decay": 1e-2, "accuracy": (logits.argmax(1) == y).mean(), "loss": loss}
    assert result.validation[-1] == pytest.approx(want)


@pytest.mark.parametrize(
    ("values", "best", "further"),
    [
        ((0.01, 0.1, 1.0), 1.0, 10.0),
        ((0.01, 0.1, 1.0), 0.01, 0.001),
        ((0.003, 0.3, 0.03), 0.003, 0.0003),
        ((0.01, 0.1, 1.0), 0.1, None),  # inside
        ((0.1,), 0.1, None),  # no ratio
        ((0.0, 1e-4), 1e-4, None),
        ((0.0, 1e-4, 1e-3), 0.0, None),
        ((0.0, 1e-4, 1e-3), 1e-3, 0.01),
        ((1, 5, 20), 20, 80),
        ((1, 5, 20), 1, None),  # no number of neighbours lies below
        ((2, 4), 2, 1),
    ],
)
def test_the_value_beyond_the_edge_of_a_grid(values, best, further):
    assert holdout.find_further(values, best) == further


@pytest.mark.parametrize(
    ("how", "beyond"),
    [
        ({"method": "lbfgs", "cs": (1e-6, 1e-5)}, {"C": 1e-4}),
        ({"method": "linear", "cs": (1e-6, 1e-5), "start": "probe"}, {"C": 1e-4}),
        ({"method": "linear", "lrs": (1e-6, 1e-5), "weight_decays": (0.0,)}, {"lr": 1e-4, "weight_decay": 0.0}),
        ({"method": "mlp", "lrs": (1e-6, 1e-5), "weight_decays": (0.0,), "patience": 2}, {"lr": 1e-4}),
    ],
)
def test_a_setting_at_the_edge_widens_its_grid_once(how, beyond):
    """Each grid is too small by orders of magnitude, so that its upper edge is best and what lies beyond is better."""
    narrow, wide = (fit(**how, widen=widen) for widen in (False, True))
    assert {name: wide.hyper[name] for name in beyond} == beyond
    assert narrow.hyper != wide.hyper
    if how.get("start") != "probe":  # there the probe is the head, and its Cs are no settings of the search
        assert len(wide.validation) == len(narrow.validation) + 1 == 3
        assert wide.validation[:2] == narrow.validation


def test_without_refit_heads_are_those_that_validation_judged():
    features, labels = blobs()
    result, again = fit("lbfgs", refit=False), fit("lbfgs")
    train, held_out = hold_out(labels, 0.2, seed=0)
    assert (result.n_train, again.n_train) == (len(train), N) == (48, 60)
    _, logits = result.outputs(features[held_out][:, 0])
    best = max(each["accuracy"] for each in result.validation)
    assert (logits.argmax(1) == labels[held_out]).mean() == pytest.approx(best)
    ours = LogisticRegression(C=result.hyper["C"], tol=1e-9, max_iter=9999).fit(features[train][:, 0], labels[train])
    odds = result.head.probabilities(result.outputs(features[:, 0])[1])
    np.testing.assert_allclose(ours.predict_proba(features[:, 0]), odds, atol=1e-3)


def test_a_grid_of_one_needs_no_validation():
    features, labels = np.eye(K, D, dtype=np.float32), np.arange(K)  # a single example of each class
    result = fit(train=(features, labels), lrs=(0.1,), weight_decays=(0.0,), validation=0.0, epochs=50)
    assert result.validation == []
    assert (result.outputs(features)[1].argmax(1) == labels).all()


def test_settings_that_diverge_are_not_chosen():
    assert fit("mlp", lrs=(1e38, 0.01), weight_decays=(0.0,)).hyper["lr"] == 0.01
    for lrs in ((1e38,), (1e38, 2e38)):
        with pytest.raises(UserError, match="diverged"):
            fit("mlp", lrs=lrs, weight_decays=(0.0,))


@pytest.mark.parametrize(
    ("counts", "share", "held"),
    [
        ((50, 30, 20), 0.2, (10, 6, 4)),
        ((1, 1, 10), 0.2, (0, 0, 2)),  # never the only one of a class
        ((6, 5, 4), 0.1, (1, 1, 0)),  # round(1.5) by largest remainder
        ((3, 2, 1), 0.01, (1, 0, 0)),  # at least one
        ((4, 4, 4), 0.95, (3, 3, 3)),  # never all of a class
    ],
)
def test_hold_out(counts, share, held):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), counts))
    kept, rest = hold_out(labels, share, 0)
    assert tuple(np.bincount(labels[rest], minlength=3)) == held
    assert (np.sort(np.concatenate([kept, rest])) == np.arange(len(labels))).all()
    np.testing.assert_array_equal(hold_out(labels, share, 0)[1], rest)
    if min(counts) > 10:
        assert set(hold_out(labels, share, 1)[1]) != set(rest)


def test_equal_remainders_are_drawn_and_not_taken_from_the_first_classes():
    """24 of 80 rows of 40 classes come from 24 classes, and every class is drawn equally often."""
    labels = np.repeat(np.arange(40), 2)
    held = [labels[hold_out(labels, 0.3, seed)[1]] for seed in range(60)]
    assert {len(classes) for classes in held} == {24}
    times = np.bincount(np.concatenate(held), minlength=40)
    assert times.min() > 60 * 0.6 - 20  # binomial of 60 draws at 0.6, five deviations
    assert times.max() < 60 * 0.6 + 20
    mixed = np.repeat(np.arange(4), (2, 12, 2, 12))  # share·n = 0.6 and 3.6: remainders that differ by a rounding error
    first = {tuple(np.bincount(mixed[hold_out(mixed, 0.3, seed)[1]])) for seed in range(60)}
    assert (0, 4, 0, 4) in first
    assert (1, 3, 1, 3) in first


def poison(value):
    features, labels = blobs()
    features[17, 0, 3] = value
    return features, labels


def relabel(value):
    features, labels = blobs()
    labels[17] = value
    return features, labels


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"method": "mpl"}, "'mpl'.*\n.*linear, lbfgs, ridge, knn, mlp, nmtune"),
        ({"method": "nmtune", "preset": "papers"}, "'papers'.*\n.*paper, code"),
        ({"method": "nmtune"}, "None.*\n.*paper, code"),
        ({"method": "mlp", "preset": "paper"}, "'paper' is given for the method 'mlp'"),
        ({"method": "nmtune", "preset": "paper", "nmtune": {"svd": -1.0}}, r"svd is -1\.0"),
        ({"method": "skd", "skd": {"skewness": 1.0}}, "no weight 'skewness'.*\n.*skew, kurtosis"),
        ({"method": "mlp", "norm": "group"}, "'group'"),
        ({"train": poison(np.nan)}, "row 17 of the features"),
        ({"train": poison(np.inf)}, "row 17 of the features"),
        ({"train": relabel(K)}, f"row 17 has label {K}"),
        ({"train": relabel(-1)}, "row 17 has label -1"),
        ({"train": (blobs()[0], np.zeros(N, int))}, "every training label is 0"),
        ({"train": (blobs()[0][:0], blobs()[1][:0])}, "there is no example"),
        ({"train": (blobs()[0], blobs()[1][:-1])}, r"\(60, 1, 8\).*\(59,\) do not fit"),
        ({"validation": 0.0}, r"nothing can be held out: tune.validation=0\.0"),
        ({"lrs": ()}, "tune.lrs is empty"),
        ({"weight_decays": ()}, "tune.weight_decays is empty"),
        ({"method": "lbfgs", "cs": ()}, "tune.cs is empty"),
        ({"method": "knn", "ks": (0, 1)}, "k=0"),
    ],
)
def test_bad_input(arguments, cause):
    with pytest.raises(UserError, match=cause) as e:
        fit(**arguments)
    assert e.value.cure
    assert "\n" not in e.value.cause + e.value.cure


def test_one_class_is_nothing_to_learn():
    features, labels = blobs()
    with pytest.raises(UserError, match="num_classes=1"):
        select.fit(features, labels, method="linear", num_classes=1, config=config(), seed=0)
