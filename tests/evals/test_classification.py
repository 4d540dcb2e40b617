from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax import runtime
from nml_jax.errors import UserError
from nml_jax.evals import EVALUATORS
from nml_jax.evals.classification import Classification

K = 3


def lookup(params, model_state, batch, *, train, key):
    """Look the logits up by the first pixel."""
    assert not train
    assert key is None
    return {"logits": params[batch["image"][:, 0, 0, 0]] + model_state["shift"]}, model_state


def split(n=7, size=3, noisy=((1, 2), (4, 0)), batch=None):
    """Yield batches: example i shows pixel i and has class i mod K; `noisy` lists (record, wrong label)."""
    clean = (np.arange(n) % K).astype(np.int32)
    label = clean.copy()
    for i, wrong in noisy:
        label[i] = wrong
    rows = {
        "image": np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
        "label": label,
        "label_clean": clean,
        "id": np.arange(n),
        "mask": np.ones(n, np.float32),
    }
    batch = batch or size
    for start in range(0, n, batch):
        part = {k: v[start : start + batch] for k, v in rows.items()}
        fill = batch - len(part["id"])
        yield {k: np.concatenate([v, np.zeros((fill, *v.shape[1:]), v.dtype)]) for k, v in part.items()}


def evaluate(logits, batches=split, **kwargs):
    logits = jnp.float32(logits)
    return dict(Classification(lookup, batches, num_classes=K, **kwargs).run(logits, {"shift": jnp.zeros(K)}))


def one_hot_logits(predicted):
    return 5.0 * np.eye(K)[np.array(predicted)]


# Clean labels 0 1 2 0 1 2 0; example 1 is labelled 2 and 4 is labelled 0.
PREDICTED = [0, 2, 2, 0, 1, 0, 0]


def test_scores_on_the_clean_labels_by_hand():
    got = evaluate(one_hot_logits(PREDICTED))
    # confusion: 0 -> (3, 0, 0), 1 -> (0, 1, 1), 2 -> (1, 0, 1)
    assert got["accuracy"] == pytest.approx(5 / 7)
    assert got["mean_per_class"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert got["macro_f1"] == pytest.approx((6 / 7 + 2 / 3 + 2 / 4) / 3)
    right, wrong = -5 + np.log(np.exp(5) + 2), np.log(np.exp(5) + 2)
    assert got["loss"] == pytest.approx((5 * right + 2 * wrong) / 7, rel=1e-5)
    assert got["noisy_fit"] == 1 / 2  # example 1 is memorised, 4 is not


def test_scores_on_the_given_labels():
    got = evaluate(one_hot_logits(PREDICTED), clean=False)
    assert got["accuracy"] == pytest.approx(5 / 7)  # labels 0 2 2 0 0 2 0
    assert got["mean_per_class"] == pytest.approx((3 / 4 + 2 / 3) / 2)  # class 1 has no example
    assert got["noisy_fit"] == 1 / 2


def test_without_noise_there_is_no_noisy_fit():
    assert set(evaluate(one_hot_logits(PREDICTED), partial(split, noisy=()))) == {
        "accuracy", "macro_f1", "mean_per_class", "loss",
    }  # fmt: skip


@pytest.mark.parametrize("batch", [1, 4, 7, 50])
def test_batches_and_padding_change_nothing(batch):
    logits = np.random.default_rng(0).normal(size=(7, K))
    assert evaluate(logits, partial(split, batch=batch)) == pytest.approx(evaluate(logits), rel=1e-6)


def test_padded_rows_do_not_count_even_if_their_logits_are_not_finite():
    logits = one_hot_logits(PREDICTED)

    def batches():
        for rows in split(batch=8):
            rows["image"][rows["mask"] == 1] += 1  # only padded rows still show pixel 0
            yield rows

    assert evaluate(np.concatenate([[[np.nan] * K], logits]), batches) == pytest.approx(evaluate(logits))


def test_it_can_be_run_again_and_evaluators_of_one_model_share_what_is_compiled():
    traces = []

    def apply(*args, **kwargs):
        traces.append(1)
        return lookup(*args, **kwargs)

    logits, state = jnp.float32(one_hot_logits(PREDICTED)), {"shift": jnp.zeros(K)}
    first, second = (Classification(apply, split, num_classes=K) for _ in range(2))
    assert dict(first.run(logits, state)) == dict(first.run(logits, state)) == dict(second.run(logits, state))
    assert len(traces) == 1


def test_put_and_fetch_are_used():
    calls = []

    def note(name, f):
        return lambda x: calls.append(name) or f(x)

    evaluate(one_hot_logits(PREDICTED), put=note("put", jax.device_put), fetch=note("fetch", jax.device_get))
    assert calls == ["put"] * 3 + ["fetch"]


def test_eight_devices_count_as_one(mesh):
    place = {"put": runtime.put_batch(mesh), "fetch": partial(runtime.fetch, mesh=mesh)}
    batches = partial(split, batch=8)
    assert evaluate(one_hot_logits(PREDICTED), batches, **place) == evaluate(one_hot_logits(PREDICTED), batches)


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="empty"):
        evaluate(one_hot_logits(PREDICTED), lambda: iter(()))


def test_the_table():
    assert EVALUATORS["classification"] is Classification
