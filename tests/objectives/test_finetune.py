"""The fine-tuning objective against NumPy in float64, and which terms it has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.errors import UserError
from nml_jax.objectives import finetune

rng = np.random.default_rng(0)
Z, INITIAL, KERNEL = (rng.normal(size=shape).astype(np.float32) for shape in ((12, 5), (12, 5), (5, 3)))
LABELS = np.arange(12) % 3
BATCH = {"image": Z, "label": LABELS, "mask": np.ones(12, np.float32)}


class Model:
    """A model that returns its input as features, with a linear classifier and a state that counts calls."""

    @staticmethod
    def apply(params, state, batch, *, train, key):
        assert train
        features = batch["image"] * params["scale"]
        outputs = {"features": features, "initial_features": jnp.asarray(INITIAL), "logits": features @ KERNEL}
        return outputs, state + 1


def value(objective, scale=1.0):
    params = {"scale": jnp.full((), scale)}
    return objective.loss(Model, params, jnp.zeros(()), BATCH, jax.random.key(0))


def expected() -> dict[str, float]:
    z, f = np.float64(Z), np.float64(INITIAL)
    logits = z @ np.float64(KERNEL)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    c = np.cov(z.T)
    s = np.linalg.svd(z, compute_uv=False)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True) - f / np.linalg.norm(f, axis=1, keepdims=True)
    return {
        "cross_entropy": -logp[np.arange(12), LABELS].mean(),
        "cov": (c**2).sum() / 5 - (np.diag(c) ** 2).sum() / 5,
        "svd": -s[0] / s.sum(),
        "mse": (unit**2).sum(1).mean(),
    }


@pytest.mark.parametrize("consistency", [False, True])
def test_the_loss_is_cross_entropy_and_the_terms_of_the_preset(consistency: bool):
    loss, (state, metrics) = value(finetune.make("paper", consistency=consistency))
    names = {"cross_entropy", "cov", "svd", *(["mse"] if consistency else [])}
    assert metrics.keys() == names | {"loss", "accuracy"}
    truth = expected()
    for name in names:
        total, count = metrics[name]
        np.testing.assert_allclose(total / count, truth[name], rtol=1e-5)
    weight = {"cross_entropy": 1.0, "cov": 0.01, "svd": 0.01, "mse": 0.01}
    np.testing.assert_allclose(loss, sum(weight[name] * truth[name] for name in names), rtol=1e-6)
    assert metrics["loss"][0] == loss
    assert state == 1


def test_without_terms_it_is_cross_entropy():
    loss, (_, metrics) = value(finetune.make("none"))
    np.testing.assert_allclose(loss, expected()["cross_entropy"], rtol=1e-6)
    assert metrics.keys() == {"loss", "cross_entropy", "accuracy"}


def test_the_gradient_reaches_what_makes_the_features():
    objective = finetune.make("code", consistency=True)
    grad = jax.grad(lambda s: value(objective, s)[0])(1.3)
    h = 1e-2
    numeric = (value(objective, 1.3 + h)[0] - value(objective, 1.3 - h)[0]) / (2 * h)
    np.testing.assert_allclose(grad, numeric, rtol=1e-3)


def test_unknown_terms_are_refused():
    with pytest.raises(UserError, match="no terms 'papers'"):
        finetune.make("papers")


def test_weights_in_place_of_the_presets_are_in_the_name_too():
    changed = finetune.make("paper", svd=0.5, top=3, cov=None, consistency=True)
    assert changed == dataclasses.replace(finetune.make("paper", consistency=True), svd=0.5, top=3)
    assert finetune.make("paper", svd=0.0).svd == 0
    assert finetune.preset_label("paper", svd=0.5, top=3, cov=None) == "paper,svd=0.5,top=3"
    assert finetune.preset_label("code") == "code"
    assert finetune.preset_label("none") is None
    with pytest.raises(UserError, match=r"cov is -1"):
        finetune.make("code", cov=-1.0)
