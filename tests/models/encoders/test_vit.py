import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from nml_jax.errors import UserError
from nml_jax.models import build

PUBLISHED = {"vit_ti": 5_717_416, "vit_s": 22_050_664, "vit_b": 86_567_656, "vit_l": 304_326_632}


def spec(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {"image": jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8)}


def small(**values):
    """Return the config of a small ViT: 8-px images in four patches, two blocks, two heads."""
    config = get_config().model
    config.update({"name": "vit_ti", "patch": 4, "dim": 8, "depth": 2, "heads": 2, **values})
    return config


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name, count):
    config = get_config().model
    config.name = name
    model = build(config, num_classes=1000, image_size=224)
    params, state = jax.eval_shape(lambda key: model.init(key, spec(224)), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert state == {}


def test_shapes_of_every_output(draw, images):
    model, params, state = draw(small(), 8)
    outputs, new_state = jax.eval_shape(
        lambda x: model.apply(params, state, {"image": x}, train=True, key=None), images(2)
    )
    tokens = {f"{name}_tokens": (2, 5, 8) for name in ("embed", "block0", "block1")}
    pooled = dict.fromkeys(("embed", "block0", "block1", "features"), (2, 8))
    want = {**tokens, **pooled, "tokens": (2, 5, 8), "logits": (2, 5)}
    assert {name: value.shape for name, value in outputs.items()} == want
    assert new_state == {}


def test_initial_values(compiled):
    model = build(small(dim=64, depth=1), num_classes=5, image_size=8)
    params, _ = compiled(lambda key: model.init(key, spec(8)))(jax.random.key(0))
    for kernel in (params["block0"]["attn"]["qkv"]["kernel"], params["block0"]["mlp"]["fc2"]["kernel"]):
        assert float(kernel.std()) == pytest.approx(0.02, rel=0.05)
    assert float(params["pos_embed"].std()) == pytest.approx(0.02, rel=0.2)
    assert float(np.abs(params["cls"]).max()) < 1e-5
    bound = 1 / math.sqrt(4 * 4 * 3)
    assert 0.98 * bound < float(np.abs(params["patch"]["kernel"]).max()) <= bound
    assert not any(np.any(x) for x in (params["head"]["bias"], params["patch"]["bias"], params["norm"]["bias"]))


def layer_norm(x: np.ndarray, p) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def dense(x: np.ndarray, p) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def compute_by_hand(params, image: np.ndarray, *, heads: int, pool: str) -> np.ndarray:
    """Compute the features of one normalised image [8, 8, 3], token by token and head by head in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    patches = [image[i : i + 4, j : j + 4].reshape(-1) for i in (0, 4) for j in (0, 4)]
    kernel = params["patch"]["kernel"]
    embedded = [p @ kernel.reshape(-1, kernel.shape[-1]) + params["patch"]["bias"] for p in patches]
    x = np.stack([params["cls"][0, 0], *embedded]) + params["pos_embed"][0]
    d = x.shape[1]
    for name in ("block0", "block1"):
        block = params[name]
        q, k, v = np.split(dense(layer_norm(x, block["norm1"]), block["attn"]["qkv"]), 3, axis=1)
        mixed = []
        for h in range(heads):
            part = slice(h * d // heads, (h + 1) * d // heads)
            weights = np.exp(q[:, part] @ k[:, part].T / math.sqrt(d / heads))
            mixed.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        x = x + dense(np.concatenate(mixed, 1), block["attn"]["proj"])
        y = dense(layer_norm(x, block["norm2"]), block["mlp"]["fc1"])
        gelu = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
        x = x + dense(gelu, block["mlp"]["fc2"])
    tokens = layer_norm(x, params["norm"])
    return tokens[0] if pool == "cls" else tokens[1:].mean(0)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_features_by_hand(draw, images, pool):
    run = draw(small(pool=pool, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), 8)
    outputs, _ = run(images(2))
    for i, image in enumerate(images(2)):
        want = compute_by_hand(run.params, image / 255, heads=2, pool=pool)
        np.testing.assert_allclose(outputs["features"][i], want, atol=1e-5)
        np.testing.assert_allclose(outputs["logits"][i], dense(want, run.params["head"]), atol=1e-5)
    tokens = outputs["block1_tokens"]
    np.testing.assert_allclose(outputs["block1"], tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1), atol=1e-6)


def test_bf16_keeps_parameters_and_outputs_in_float32(draw, images):
    full, half = draw(small(depth=1), 8), draw(small(depth=1, dtype="bfloat16"), 8)
    want, got = full(images(4))[0], half(images(4))[0]
    assert got["block0_tokens"].dtype == jnp.bfloat16
    assert {got[name].dtype for name in ("features", "logits", "tokens", "block0")} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype("float32")}
    assert 0 < np.abs(got["features"] - want["features"]).max() < 0.15  # eight bits of mantissa


def test_drop_path_scales_what_it_keeps_and_drops_the_rest(draw, images):
    """The last of two blocks has rate 0.25: with one branch silenced, the other is absent or 4/3 as strong."""
    batch = np.repeat(images(1), 256, axis=0)
    run, plain = draw(small(drop_path=0.25), 8), draw(small(), 8)
    for silent, layer in (("mlp", "fc2"), ("attn", "proj")):
        params = jax.tree.map(np.copy, run.params)
        for leaf in params["block1"][silent][layer].values():
            leaf[:] = 0
        outputs, _ = run._replace(params=params)(batch, train=True, key=jax.random.key(0))
        want, _ = plain._replace(params=params)(batch[:1])
        np.testing.assert_allclose(outputs["block0_tokens"], np.repeat(want["block0_tokens"], 256, 0), atol=1e-5)
        change = np.asarray(outputs["block1_tokens"] - outputs["block0_tokens"])
        kept = change.any((1, 2))
        assert 0.65 < kept.mean() < 0.85  # 0.75 within 3.7 standard deviations
        branch = np.asarray(want["block1_tokens"] - want["block0_tokens"])
        np.testing.assert_allclose(change[kept], np.repeat(branch, kept.sum(), 0) * 4 / 3, atol=1e-4)


def test_dropout_draws_per_element_and_not_at_test_time(draw, images):
    batch = np.repeat(images(1), 256, axis=0)
    run, plain = draw(small(dropout=0.25, depth=1), 8), draw(small(depth=1), 8)
    outputs, _ = run(batch, train=True, key=jax.random.key(0))
    change = np.asarray(outputs["block0_tokens"] - outputs["embed_tokens"])
    assert np.mean(change == 0) == pytest.approx(1 / 16, abs=0.01)  # of 10240 elements, dropped in both branches
    np.testing.assert_array_equal(run(batch, key=jax.random.key(0))[0]["logits"], plain(batch)[0]["logits"])


def test_without_rates_training_needs_no_key(draw, images):
    run = draw(small(depth=1), 8)
    np.testing.assert_allclose(run(images(2), train=True)[0]["logits"], run(images(2))[0]["logits"], atol=1e-6)


def test_remat_gives_the_same_gradient(draw, images, compiled):
    def run(remat: bool):
        model, params, state = draw(small(dropout=0.3, depth=1, remat=remat), 8)

        def loss(params):
            outputs, _ = model.apply(params, state, {"image": images(4)}, train=True, key=jax.random.key(1))
            return (outputs["logits"] ** 2).sum()

        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(params))) == remat
        return compiled(jax.grad(loss))(params)

    got, want = run(True), run(False)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_sizes_that_do_not_fit_are_user_errors(draw, images):
    with pytest.raises(UserError, match="10 pixels cannot be cut into patches of 4"):
        build(small(), num_classes=5, image_size=10)
    with pytest.raises(UserError, match=r"width of 8 \(model.dim\) cannot be split over 3 heads"):
        build(small(heads=3), num_classes=5, image_size=8)
    model, params, state = draw(small(), 8)
    with pytest.raises(UserError, match="built for 8x8 pixels got images of 12x12"):
        model.apply(params, state, {"image": images(2, 12)}, train=False, key=None)


def test_one_config_is_one_model_whose_shapes_are_traced_once():
    model = build(small(), num_classes=3, image_size=8)
    assert build(small(), num_classes=3, image_size=8) is model
    assert build(small(depth=1), num_classes=3, image_size=8) is not model
    with jax.enable_x64(True):
        assert build(small(), num_classes=3, image_size=8) is not model, "64-bit types change dtypes"
        build(small(dtype="float64"), num_classes=3, image_size=8)
    with pytest.raises(UserError, match="dtype"):
        build(small(dtype="float64"), num_classes=3, image_size=8)

    traced = []
    counting = dataclasses.replace(model, init=lambda *args: traced.append(1) or model.init(*args))
    shapes = jax.eval_shape(lambda key: model.init(key, model.spec), jax.random.key(0))
    assert counting.shapes == shapes
    assert counting.shapes is counting.shapes
    assert len(traced) == 1
