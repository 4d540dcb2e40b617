import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax import runtime
from nml_jax.errors import UserError
from nml_jax.models import Model
from nml_jax.models.micro_batches import split_batches
from nml_jax.objectives.contrastive import Contrastive

B, SIZE, DIM, LENGTH = 32, 8, 16, 4


def attend(x):
    return x + jax.nn.softmax(x @ x.mT / DIM**0.5) @ jnp.tanh(x)


def unit(x):
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)


def init(key, batch_spec):
    shapes = {"patch": (12, DIM), "block": (DIM, DIM), "words": (50, DIM)}
    keys = jax.random.split(key, 3)
    params = {name: 0.3 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}
    return {**params, "logit_scale": jnp.float32(2.0)}, {"mean": jnp.zeros(DIM)}


def apply(params, model_state, batch, *, train, key):
    """Apply a small ViT and a mean of words, with a running mean and one random number per image."""
    image = batch["image"].astype(jnp.float32) / 255
    patches = image.reshape(len(image), 4, 2, 4, 2, 3).swapaxes(2, 3).reshape(len(image), 16, 12)
    tokens = attend(attend(patches @ params["patch"]) @ params["block"])
    features = tokens.mean(1)
    outputs = {
        "tokens": tokens,
        "features": features,
        "embedding": unit(features),
        "text_embedding": unit(params["words"][batch["text"]].mean(1)),
        "logit_scale": jnp.exp(params["logit_scale"]),
        "id": batch["id"],
    }
    if key is not None:
        outputs["noise"] = jax.random.uniform(key, (len(image),))
    new_state = {"mean": 0.5 * model_state["mean"] + 0.5 * features.mean(0)} if train else model_state
    return outputs, new_state


MODEL = Model(init, apply, {})
PARAMS, STATE = init(jax.random.key(0), {})


def make_batch(n=B):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8),
        "text": rng.integers(0, 50, (n, LENGTH)).astype(np.int32),
        "id": np.arange(n, dtype=np.int32),
        "mask": np.ones(n, np.float32),
    }


@functools.cache
def step(n, form="clip", chunk=0, blocks=1):
    objective, model = Contrastive(form=form, chunk=chunk, blocks=blocks), split_batches(MODEL, n, blocks=blocks)
    loss = functools.partial(objective.loss, model)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize(("chunk", "blocks"), [(0, 1), (3, 1), (3, 8)])
@pytest.mark.parametrize("n", [2, 4])
def test_the_contrastive_gradient_is_that_of_the_large_batch(n, chunk, blocks, mesh):
    batch = make_batch() if blocks == 1 else runtime.put_batch(mesh)(make_batch())
    (value, (_, metrics)), grads = step(n, chunk=chunk, blocks=blocks)(PARAMS, STATE, batch, None)
    (want, (_, want_metrics)), want_grads = step(1)(PARAMS, STATE, make_batch(), None)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for name, grad in want_grads.items():
        np.testing.assert_allclose(grads[name], grad, rtol=0, atol=1e-5 * np.abs(grad).max(), err_msg=name)
    for name, metric in want_metrics.items():
        np.testing.assert_allclose(metrics[name], metric, rtol=1e-6, err_msg=name)


def test_the_gradient_is_not_the_mean_of_the_parts():
    batch = make_batch()
    halves = [{name: x[j::2] for name, x in batch.items()} for j in range(2)]
    parts = [step(1)(PARAMS, STATE, half, None)[1]["block"] for half in halves]
    whole = step(2)(PARAMS, STATE, batch, None)[1]["block"]
    assert np.abs(sum(parts) / 2 - whole).max() > 0.01 * np.abs(whole).max()


@pytest.mark.parametrize("blocks", [1, 8])
def test_outputs_are_of_the_whole_batch_in_its_order(blocks, mesh):
    batch = make_batch() if blocks == 1 else runtime.put_batch(mesh)(make_batch())
    run = jax.jit(functools.partial(split_batches(MODEL, 4, blocks=blocks).apply, train=True, key=None))
    got, _ = run(PARAMS, STATE, batch)
    want, _ = apply(PARAMS, STATE, make_batch(), train=True, key=None)
    assert got.keys() == want.keys() - {"tokens"}
    for name, x in got.items():
        np.testing.assert_allclose(x, want[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_device_keeps_its_rows(mesh):
    batch = runtime.put_batch(mesh)(make_batch())
    text = step(4, blocks=8).lower(PARAMS, STATE, batch, None).compile().as_text()
    assert " all-reduce(" in text
    assert "u8[" in text
    assert not any("u8[" in line and "all-" in line for line in text.splitlines())
    assert "all-to-all(" not in text
    assert "collective-permute(" not in text


def test_state_and_keys_go_from_part_to_part():
    key, n = jax.random.key(7), 4
    outputs, state = split_batches(MODEL, n).apply(PARAMS, STATE, make_batch(), train=True, key=key)
    mean = STATE["mean"]
    for j in range(n):
        part = {name: x[j::n] for name, x in make_batch().items()}
        want, _ = apply(PARAMS, STATE, part, train=True, key=jax.random.fold_in(key, j))
        np.testing.assert_array_equal(outputs["noise"][j::n], want["noise"])
        mean = 0.5 * mean + 0.5 * want["features"].mean(0)
    np.testing.assert_allclose(state["mean"], mean, rtol=1e-5, atol=1e-6)


def test_memory_falls():
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_batch(256))
    sizes = [step(n).lower(PARAMS, STATE, batch, None).compile().memory_analysis().temp_size_in_bytes for n in (1, 8)]
    assert sizes[1] < sizes[0] / 3


def test_evaluation_and_one_part_are_the_model_itself():
    assert split_batches(MODEL, 1) is MODEL
    outputs, state = split_batches(MODEL, 4).apply(PARAMS, STATE, make_batch(6), train=False, key=None)
    assert outputs["tokens"].shape == (6, 16, DIM)
    assert state is STATE


@pytest.mark.parametrize(
    ("n", "blocks", "cause"),
    [
        (0, 1, "train.micro_batches=0 is out of range"),
        (3, 1, "train.micro_batches=3 does not divide the 32 row(s) of each device"),
        (8, 8, "train.micro_batches=8 does not divide the 4 row(s) of each device"),
    ],
)
def test_bad_numbers_name_themselves(n, blocks, cause):
    with pytest.raises(UserError) as e:
        split_batches(MODEL, n, blocks=blocks).apply(PARAMS, STATE, make_batch(), train=True, key=None)
    assert cause in e.value.cause
