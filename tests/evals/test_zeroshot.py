from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from nml_jax import runtime
from nml_jax.errors import NonFinite, UserError
from nml_jax.evals.zeroshot import ZeroShot

K, N, E, TEXTS = 7, 40, 5, 17  # classes, images, dimensions, texts


def lookup(params, model_state, batch, *, train, key):
    """Look the embeddings up by the first pixel and the first token; those of texts do not have length 1."""
    assert not train
    assert key is None
    outputs = {}
    if "image" in batch:
        outputs["embedding"] = params["image"][batch["image"][:, 0, 0, 0]]
    if "text" in batch:
        outputs["text_embedding"] = params["text"][batch["text"][:, 0]] * model_state["scale"]
    return outputs, model_state


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pad(rows, size):
    """Yield `rows` in batches of `size`; the last is padded with zeros, where its mask is 0."""
    n = len(rows["mask"])
    for start in range(0, n, size):
        part = {k: v[start : start + size] for k, v in rows.items()}
        fill = size - len(part["mask"])
        yield {k: np.concatenate([v, np.zeros((fill, *v.shape[1:]), v.dtype)]) for k, v in part.items()}


def split(n=N, size=8, classes=K):
    clean = np.arange(n, dtype=np.int32) % classes
    image = (1 + np.arange(n, dtype=np.uint8))[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    rows = {"image": image, "label": clean[::-1].copy(), "label_clean": clean, "mask": np.ones(n, np.float32)}
    return pad(rows, size)


def texts(n=TEXTS, size=8, classes=K):
    """Yield batches: text i has token i + 1 and describes class i mod K; some classes have one text more."""
    text = np.stack([1 + np.arange(n), np.zeros(n)], 1).astype(np.int32)
    return pad({"text": text, "id": np.arange(n, dtype=np.int32) % classes, "mask": np.ones(n, np.float32)}, size)


@pytest.fixture
def params():
    """Draw the embeddings of a model that has learned something; row 0 belongs to padding."""
    rng = np.random.default_rng(0)
    concepts = rng.normal(size=(K, E))
    image = concepts[np.arange(N) % K] + 1.5 * rng.normal(size=(N, E))
    text = concepts[np.arange(TEXTS) % K] + 0.3 * rng.normal(size=(TEXTS, E))
    filler = np.full((1, E), np.nan)
    return {"image": np.float32(np.r_[filler, unit(image)]), "text": np.float32(np.r_[filler, 3 * text])}


STATE = {"scale": np.float32(2)}


def evaluator(batches=split, described=texts, apply=lookup, num_classes=K, **kwargs):
    return ZeroShot(apply, batches, described, num_classes=num_classes, **kwargs)


def reference(params):
    """Compute the class matrix and scores in float64, every step as in the definition."""
    described = [unit(params["text"][1:].astype(np.float64)[k::K]).mean(0) for k in range(K)]
    matrix = unit(np.stack(described))
    return matrix, params["image"][1:].astype(np.float64) @ matrix.T


def test_the_class_matrix_is_the_normalised_mean_of_the_normalised_embeddings(params):
    matrix = evaluator().embed_classes(params, STATE)
    assert matrix.shape == (K, E)
    np.testing.assert_allclose(matrix, reference(params)[0], rtol=0, atol=1e-6)


def test_the_scores_of_a_split(params):
    _, scores = reference(params)
    true, order = np.arange(N) % K, np.argsort(-scores, axis=1, kind="stable")
    got = dict(evaluator().run(params, STATE))
    assert list(got) == ["accuracy", "top5", "macro_f1", "mean_per_class"]
    assert 0.2 < got["accuracy"] < got["top5"] < 1  # neither is trivial
    assert got["accuracy"] == pytest.approx((order[:, 0] == true).mean())
    assert got["top5"] == pytest.approx((order[:, :5] == true[:, None]).any(1).mean())
    assert got["macro_f1"] == pytest.approx(f1_score(true, order[:, 0], average="macro"))
    assert got["mean_per_class"] == pytest.approx(balanced_accuracy_score(true, order[:, 0]))


def test_against_the_given_labels(params):
    _, scores = reference(params)
    noisy = (np.arange(N) % K)[::-1]
    assert dict(evaluator(clean=False).run(params, STATE))["accuracy"] == np.mean(scores.argmax(1) == noisy)


def test_a_split_whose_classes_stand_for_several(params):
    class_map = ((0, 4), (1,), (6, 2, 5))
    _, scores = reference(params)
    best = np.stack([scores[:, list(ids)].max(1) for ids in class_map], 1).argmax(1)
    true = np.arange(N) % 3
    got = dict(evaluator(partial(split, classes=3), class_map=class_map).run(params, STATE))
    assert got["accuracy"] == pytest.approx((best == true).mean())
    assert got["macro_f1"] == pytest.approx(f1_score(true, best, average="macro"))
    assert "top5" not in got


@pytest.mark.parametrize("size", [1, 5, 16, 64])
def test_batches_and_padding_change_nothing(params, size):
    got = dict(evaluator(partial(split, size=size), partial(texts, size=size)).run(params, STATE))
    assert got == dict(evaluator().run(params, STATE))


def test_eight_devices_count_as_one(params, mesh):
    placed = evaluator(put=runtime.put_batch(mesh), fetch=partial(runtime.fetch, mesh=mesh))
    np.testing.assert_allclose(
        placed.embed_classes(params, STATE), evaluator().embed_classes(params, STATE), rtol=0, atol=1e-6
    )
    assert dict(placed.run(params, STATE)) == dict(evaluator().run(params, STATE))


def test_top5_is_left_out_where_it_says_nothing(params):
    few = evaluator(partial(split, classes=5), partial(texts, classes=5), num_classes=5)
    assert set(dict(few.run(params, STATE))) == {"accuracy", "macro_f1", "mean_per_class"}


def test_a_collapsed_encoder_is_no_better_than_chance(params):
    params = {k: np.ones_like(v) for k, v in params.items()}
    got = dict(evaluator().run(params, STATE))  # all classes tie; the first wins, and the first five are its five best
    assert got["accuracy"] == pytest.approx(np.mean(np.arange(N) % K == 0))
    assert got["top5"] == pytest.approx(np.mean(np.arange(N) % K < 5))


@pytest.mark.parametrize("broken", ["image", "text"])
def test_embeddings_that_are_not_finite_are_no_result(params, broken):
    params[broken] = params[broken].copy()
    params[broken][3, 1] = np.nan
    with pytest.raises(NonFinite, match="not finite"):
        list(evaluator().run(params, STATE))


def test_evaluators_of_one_model_share_what_is_compiled(params):
    traces = []

    def apply(*args, **kwargs):
        traces.append(1)
        return lookup(*args, **kwargs)

    first, second = evaluator(apply=apply), evaluator(apply=apply)
    assert dict(first.run(params, STATE)) == dict(first.run(params, STATE)) == dict(second.run(params, STATE))
    assert len(traces) == 2  # images, texts


def test_put_and_fetch_are_used(params):
    calls = []

    def note(name, f):
        return lambda x: calls.append(name) or f(x)

    dict(evaluator(put=note("put", jax.device_put), fetch=note("fetch", jax.device_get)).run(params, STATE))
    assert calls == ["put"] * (3 + 5) + ["fetch"]  # batches of texts, then of images


def test_scores_and_means_are_not_of_default_precision(params):
    """On an accelerator that would be 8 bits of mantissa."""
    tested = evaluator()
    scores = jax.make_jaxpr(tested.sums)(params, STATE, jnp.ones((K, E)), next(split()))
    means = jax.make_jaxpr(tested.sum_texts)(params, STATE, next(texts()))
    for traced in (scores, means):
        assert str(traced).count("dot_general[") == str(traced).count("precision=(Precision.HIGHEST") == 1


def test_nothing_to_evaluate(params):
    with pytest.raises(UserError, match="split is empty"):
        list(evaluator(lambda: iter(())).run(params, STATE))
