import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from nml_jax import objectives, runtime
from nml_jax.errors import UserError
from nml_jax.objectives.supervised import LOSSES, Supervised, draw_box, mix

K = 3
MIXED = Supervised(num_classes=K, form="bce", mixup=0.8, multi_hot=True)
EXTREME = np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-80.0, 90.0, 85.0], [3.0, -1.0, 0.5]])


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    return np.exp(-softplus(-x))


def numpy_loss(form, x, t):
    """Compute (loss [B], d loss / d x [B, K]) in float64."""
    if form == "softmax":
        return -(t * log_softmax(x)).sum(-1), t.sum(-1, keepdims=True) * np.exp(log_softmax(x)) - t
    return (t * softplus(-x) + (1 - t) * softplus(x)).mean(-1), (sigmoid(x) - t) / x.shape[-1]


def linear(params, model_state, batch, *, train, key):
    """Apply a model whose logits are the mean colour times a matrix."""
    assert train
    assert "label_clean" not in batch
    features = batch["image"].astype(jnp.float32).mean((1, 2)) / 255
    return {"logits": features @ params}, {"seen": model_state["seen"] + 1}


def make_batch(n=6, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, size, size, 3), np.uint8),
        "label": rng.integers(0, K, n).astype(np.int32),
        "id": np.arange(n, dtype=np.int32),
        "mask": np.ones(n, np.float32),
    }


@functools.cache
def compiled(objective):
    loss = functools.partial(objective.loss, SimpleNamespace(apply=linear))
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def value_and_grad(objective, batch, params, seed=0):
    return compiled(objective)(jnp.float32(params), {"seen": 0}, batch, jax.random.key(seed))


jit_mix = jax.jit(mix, static_argnames=("mixup", "cutmix", "switch_prob"))


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize("targets", ["hard", "smooth", "multi_hot"])
def test_losses_and_gradients_match_numpy_at_extreme_logits(form, targets):
    t = np.eye(K)[[0, 1, 2, 1]]
    if targets == "smooth":
        t = t * 0.9 + 0.1 / K
    if targets == "multi_hot":
        t = np.maximum(t, t[::-1])
    want, want_grad = numpy_loss(form, EXTREME, t)
    x, t = jnp.float32(EXTREME), jnp.float32(t)
    np.testing.assert_allclose(LOSSES[form](x, t), want, rtol=1e-6, atol=1e-7)
    grad = jax.grad(lambda x: LOSSES[form](x, t).sum())(x)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", LOSSES)
def test_objective_matches_numpy(form):
    batch, params = make_batch(), np.random.default_rng(1).normal(size=(3, K))
    batch["mask"][[1, 4]] = 0
    objective = Supervised(num_classes=K, form=form, label_smoothing=0.1)
    (value, (state, metrics)), grad = value_and_grad(objective, batch, params)

    features = batch["image"].astype(np.float64).mean((1, 2)) / 255
    logits, keep = features @ params, batch["mask"] > 0
    losses, dlogits = numpy_loss(form, logits, np.eye(K)[batch["label"]] * 0.9 + 0.1 / K)
    np.testing.assert_allclose(value, losses[keep].mean(), rtol=1e-6)
    np.testing.assert_allclose(grad, features[keep].T @ dlogits[keep] / keep.sum(), rtol=1e-5, atol=1e-7)
    assert state == {"seen": 1}
    np.testing.assert_allclose(metrics["loss"], (losses[keep].sum(), 4), rtol=1e-6)
    correct = (logits.argmax(-1) == batch["label"])[keep].sum()
    np.testing.assert_array_equal(metrics["accuracy"], (correct, 4))


def test_masked_rows_do_not_count():
    batch, params = make_batch(), np.ones((3, K))
    batch["mask"][4:] = 0
    other = {**batch, "image": batch["image"].copy(), "label": batch["label"].copy()}
    other["image"][4:], other["label"][4:] = 0, 0
    objective = Supervised(num_classes=K)
    for a, b in zip(*(jax.tree.leaves(value_and_grad(objective, x, params)) for x in (batch, other)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("kwargs", "share", "want"),
    [
        ({}, 1.0, [[1, 0, 0], [0, 0, 1], [0, 0, 1]]),
        ({}, 0.75, [[0.75, 0, 0.25], [0, 0, 1], [0.25, 0, 0.75]]),
        ({"label_smoothing": 0.3}, 1.0, [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]),
        ({"multi_hot": True}, 0.75, [[1, 0, 1], [0, 0, 1], [1, 0, 1]]),
        ({"multi_hot": True}, 1.0, [[1, 0, 0], [0, 0, 1], [0, 0, 1]]),
        ({"multi_hot": True}, 0.0, [[0, 0, 1], [0, 0, 1], [1, 0, 0]]),
        ({"multi_hot": True, "label_smoothing": 0.3}, 0.01, [[0.8, 0.1, 0.8], [0.1, 0.1, 0.8], [0.8, 0.1, 0.8]]),
    ],
)
def test_targets(kwargs, share, want):
    got = Supervised(num_classes=K, **kwargs).targets(jnp.array([0, 2, 2]), share)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_mixup_is_the_weighted_sum_with_the_reversed_batch():
    image = make_batch()["image"]
    mixed, share = jit_mix(jax.random.key(3), image, mixup=0.8, cutmix=0.0, switch_prob=0.5)
    x, share = image.astype(np.float64), float(share)
    assert 0 < share < 1
    assert mixed.dtype == jnp.float32
    np.testing.assert_allclose(mixed, share * x + (1 - share) * x[::-1], rtol=1e-5, atol=1e-4)


def test_cutmix_pastes_a_box_whose_share_is_one_minus_lambda():
    image = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 20, 10, 3), np.uint8)
    shares = []
    for seed in range(30):
        mixed, share = jit_mix(jax.random.key(seed), image, mixup=0.0, cutmix=1.0, switch_prob=0.0)
        pasted = np.asarray(mixed[0, :, :, 0]) == 3
        np.testing.assert_array_equal(mixed, np.where(pasted[..., None], image[::-1], image))
        np.testing.assert_allclose(share, 1 - pasted.mean(), rtol=1e-6)
        rows, columns = pasted.any(1), pasted.any(0)
        np.testing.assert_array_equal(pasted, np.outer(rows, columns))  # a rectangle ...
        assert (np.diff(rows.astype(int)) == 1).sum() <= 1  # ... in one piece
        assert (np.diff(columns.astype(int)) == 1).sum() <= 1
        shares.append(float(share))
    assert len(set(shares)) > 15


def test_box_has_the_asked_area_and_is_clipped_at_the_border():
    boxes = jax.jit(jax.vmap(lambda key, area: draw_box(key, 40, 20, area), in_axes=(0, None)))

    def boxes_of(area):
        return np.asarray(boxes(jax.random.split(jax.random.key(0), 2000), area))

    inside = boxes_of(0.25)
    area = inside.sum((1, 2))
    assert area.max() == 20 * 10  # sides are √0.25 of the image's
    assert area.min() == 10 * 5  # a centre in the corner leaves a quarter
    # A centre is any pixel with probability 1/800, so the corner is covered by the 10 × 5 centres nearest to it.
    covered = inside.mean(0)
    np.testing.assert_allclose([covered[0, 0], covered[20, 10]], [10 * 5 / 800, 20 * 10 / 800], atol=0.03)
    assert not boxes_of(0.0).any()
    assert boxes_of(1.0).mean() > 0.5


def test_both_on_switch_between_the_two():
    image = np.stack([np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 255, np.uint8)])
    keys = jax.random.split(jax.random.key(0), 4000)
    mixed, share = jax.vmap(lambda key: jit_mix(key, image, mixup=0.8, cutmix=1.0, switch_prob=0.3))(keys)
    np.testing.assert_allclose(mixed[:, 0].mean((1, 2, 3)) / 255, 1 - share, atol=1e-5)
    blended = np.asarray(((mixed > 0) & (mixed < 255)).any((1, 2, 3, 4)))
    assert abs(blended.mean() - 0.7) < 0.03  # four standard deviations
    share = np.asarray(share)[blended]
    assert abs(share.mean() - 0.5) < 0.03  # Beta(0.8, 0.8)
    assert abs(share.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01


def test_mixed_objective_matches_numpy():
    batch, params = make_batch(), np.random.default_rng(1).normal(size=(3, K))
    (value, (_, metrics)), _ = value_and_grad(MIXED, batch, params, seed=5)
    key = jax.random.split(jax.random.key(5))[0]
    share = float(jit_mix(key, batch["image"], mixup=0.8, cutmix=0.0, switch_prob=0.5)[1])
    image, own = batch["image"].astype(np.float64), np.eye(K)[batch["label"]]
    logits = (share * image + (1 - share) * image[::-1]).mean((1, 2)) / 255 @ params
    losses, _ = numpy_loss("bce", logits, np.maximum(own, own[::-1]))
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-5)
    assert metrics["accuracy"][0] == (logits.argmax(-1) == batch["label"]).sum()


def test_draws_depend_on_the_key_alone():
    batch, params = make_batch(), np.eye(3)
    a, b, c = (float(value_and_grad(MIXED, batch, params, seed)[0][0]) for seed in (0, 0, 1))
    assert a == b != c


def test_eight_devices_mix_and_score_as_one(mesh):
    batch, params = make_batch(n=16), np.random.default_rng(1).normal(size=(3, K))
    one, eight = (value_and_grad(MIXED, b, params, seed=5) for b in (batch, runtime.put_batch(mesh)(batch)))
    for a, b in zip(*map(jax.tree.leaves, (one, eight)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_make_reads_the_config():
    config = get_config().objective
    config.update({"loss": "bce", "mixup": 0.1, "cutmix": 1.0, "multi_hot": True, "label_smoothing": 0.2})
    got = objectives.make(config, num_classes=7)
    want = Supervised(num_classes=7, form="bce", mixup=0.1, cutmix=1.0, multi_hot=True, label_smoothing=0.2)
    assert got == want


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"name": "contrast"}, "objective.name='contrast'"),
        ({"loss": "hinge"}, "objective.loss='hinge'"),
        ({"label_smoothing": 1.5}, "objective.label_smoothing must be in [0, 1], got 1.5"),
        ({"mixup": -0.1}, "objective.mixup must be at least 0, got -0.1"),
        ({"cutmix": float("inf")}, "objective.cutmix must be finite, got inf"),
        ({"switch_prob": float("nan")}, "objective.switch_prob must be in [0, 1], got nan"),
        ({"multi_hot": True}, "objective.multi_hot"),
    ],
)
def test_bad_values_name_themselves(values, cause):
    config = get_config().objective
    config.update(values)
    with pytest.raises(UserError) as e:
        objectives.make(config, num_classes=K)
    assert cause in e.value.cause
    if "name" in values:
        assert "supervised" in e.value.cure
