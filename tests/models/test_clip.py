import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from nml_jax.errors import UserError
from nml_jax.models import CLIPS, TOWERS, build
from nml_jax.models.encoders.resnet import AttentionPool

# open_clip's RN50, ViT-B-16 and ViT-L-14.
PUBLISHED = {"clip_rn50": 102_007_137, "clip_vitb16": 149_620_737, "clip_vitl14": 427_616_513}
TEXT = {"text_context": 6, "text_vocab": 20, "text_width": 8, "text_depth": 1, "text_heads": 2, "embed_dim": 4}
VIT = {"name": "clip_vitb16", "patch": 2, "dim": 8, "depth": 1, "heads": 2}
RESNET = {"name": "clip_rn50", "width": 4, "blocks": (1,)}


def small(**values):
    """Return the config of a small CLIP: 8-px images in sixteen patches, texts of six tokens."""
    config = get_config().model
    config.update({**TEXT, **VIT, **values})
    return config


@pytest.fixture
def texts():
    """Return int32 [4, 6]: start (18), words, end (19), padding (0)."""
    return np.array([[18, 19, 0, 0, 0, 0], [18, 3, 19, 0, 0, 0], [18, 5, 7, 1, 2, 19], [18, 3, 3, 3, 19, 0]], np.int32)


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_are_those_of_open_clip(name, count):
    config = get_config().model
    config.update({"name": name, "patch": 14 if name == "clip_vitl14" else 16})
    model = build(config, num_classes=0, image_size=224)
    params, _ = jax.eval_shape(lambda key: model.init(key, model.spec), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert params.keys() == {"image", "text", "logit_scale"}


def test_spec_says_what_a_model_takes():
    clip = build(small(), num_classes=0, image_size=8).spec
    assert {name: (value.shape, value.dtype) for name, value in clip.items()} == {
        "image": ((1, 8, 8, 3), np.uint8),
        "text": ((1, 6), np.int32),
    }
    assert list(build(small(name="vit_ti"), num_classes=3, image_size=8).spec) == ["image"]


def test_initialisation_takes_the_text_from_the_spec_where_it_is_not_given():
    model = build(small(), num_classes=0, image_size=8)
    whole, part = (
        jax.eval_shape(lambda key, spec=spec: model.init(key, spec), jax.random.key(0))
        for spec in (model.spec, {"image": jax.ShapeDtypeStruct((5, 8, 8, 3), jnp.uint8)})
    )
    assert whole == part


@pytest.mark.parametrize("values", [VIT, RESNET, {"name": "clip", "tower": "resnet18", "width": 2, "blocks": (1,)}])
def test_a_batch_gives_what_it_allows(draw, images, texts, values):
    run = draw(small(**values, logit_bias=-10.0), 8)
    both, state = run({"image": images(3), "text": texts, "mask": np.ones(4)}, train=True)
    image, image_state = run({"image": images(3)}, train=True)
    text, text_state = run({"text": texts}, train=True)
    always = {"logit_scale", "logit_bias"}
    assert image.keys() & text.keys() == always
    assert image.keys() | text.keys() == both.keys()
    assert text.keys() == {"text_features", "text_embedding", *always}
    assert {"features", "embedding"} < image.keys()
    assert "logits" not in both
    for name, value in both.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose((image | text)[name], value, atol=1e-5, err_msg=name)
    assert {len(both["features"]), len(both["embedding"])} == {3}
    assert (both["embedding"].shape, both["text_embedding"].shape) == ((3, 4), (4, 4))
    for name in ("embedding", "text_embedding"):
        np.testing.assert_allclose(np.linalg.norm(both[name], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(both["logit_scale"], np.exp(run.params["logit_scale"]), rtol=1e-6)
    assert both["logit_bias"] == run.params["logit_bias"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, image_state)
    jax.tree.map(np.testing.assert_array_equal, text_state, run.state)  # no statistics without images


@pytest.mark.parametrize("tower", ["resnet18", "vit_ti"])
def test_any_image_tower_is_the_model_without_its_head(draw, images, tower):
    values = {**VIT, "width": 2, "blocks": (1, 1)}
    whole = draw(small(**{**values, "name": "clip", "tower": tower}), 8)
    alone = draw(small(**{**values, "name": tower}), 8)
    params = dict(whole.params["image"])
    projection = params.pop("projection")
    state = {name: value["image"] for name, value in whole.state.items()}
    want, _ = alone._replace(params={**params, "head": alone.params["head"]}, state=state)(images(2))
    got, _ = whole(images(2))
    assert want.keys() - got.keys() == {"logits"}
    for name in want.keys() & got.keys():
        np.testing.assert_allclose(got[name], want[name], atol=1e-5, err_msg=name)
    assert projection.keys() == {"kernel"}
    y = want["features"] @ projection["kernel"]
    np.testing.assert_allclose(got["embedding"], y / np.linalg.norm(y, axis=1, keepdims=True), atol=1e-5)


def test_initial_values(compiled):
    """The values are open_clip's: its text tower's formulas, PyTorch's defaults for the blocks of the image tower."""
    values = {"text_width": 64, "dim": 64, "text_vocab": 500, "text_context": 50, "embed_dim": 64, "logit_scale": 2.5}
    model = build(small(**values, text_depth=2, logit_bias=-10.0), num_classes=0, image_size=8)
    params, _ = compiled(lambda key: model.init(key, model.spec))(jax.random.key(0))
    text, image = params["text"], params["image"]
    for want, value in (
        (0.02, text["tokens"]["embedding"]),
        (0.01, text["pos_embed"]),
        (64**-0.5, text["projection"]["kernel"]),
        (64**-0.5, text["block0"]["attn"]["qkv"]["kernel"]),
        ((2 * 2 * 64) ** -0.5, text["block1"]["attn"]["proj"]["kernel"]),
        ((2 * 2 * 64) ** -0.5, text["block1"]["mlp"]["fc2"]["kernel"]),
        ((2 * 64) ** -0.5, text["block0"]["mlp"]["fc1"]["kernel"]),
        (64**-0.5, image["projection"]["kernel"]),
        (64**-0.5, image["pos_embed"]),
    ):
        assert float(value.std()) == pytest.approx(want, rel=0.08)
    for bound, value in (
        (math.sqrt(6 / (64 + 3 * 64)), image["block0"]["attn"]["qkv"]["kernel"]),
        (1 / math.sqrt(64), image["block0"]["attn"]["proj"]["kernel"]),
        (1 / math.sqrt(4 * 64), image["block0"]["mlp"]["fc2"]["kernel"]),
        (1 / math.sqrt(2 * 2 * 3), image["patch"]["kernel"]),
    ):
        assert 0.98 * bound < float(np.abs(value).max()) <= bound
    assert (float(params["logit_scale"]), float(params["logit_bias"])) == (2.5, -10.0)


def test_initial_values_of_the_attention_pool():
    params = AttentionPool(heads=2, dtype=jnp.float32).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]
    for value in (params["pos_embed"], *(params[name]["kernel"] for name in "qkv")):
        assert float(value.std()) == pytest.approx(64**-0.5, rel=0.08)
    assert params["pos_embed"].shape == (1, 17, 64)


def compute_text_by_hand(params, ids: list[int], heads: int) -> np.ndarray:
    """Compute the features of one text from its tokens up to the end, one by one in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, q):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * q["scale"] + q["bias"]

    def dense(x, q):
        return x @ q["kernel"] + q["bias"]

    x = p["tokens"]["embedding"][ids] + p["pos_embed"][0, : len(ids)]
    for i in range(2):
        block, d = p[f"block{i}"], x.shape[1]
        q, k, v = np.split(dense(norm(x, block["norm1"]), block["attn"]["qkv"]), 3, axis=1)
        mixed = np.zeros_like(x)
        for h in range(heads):
            part = slice(h * d // heads, (h + 1) * d // heads)
            for n in range(len(x)):
                w = np.exp(k[: n + 1, part] @ q[n, part] / math.sqrt(d / heads))
                mixed[n, part] = w / w.sum() @ v[: n + 1, part]
        x = x + dense(mixed, block["attn"]["proj"])
        y = dense(norm(x, block["norm2"]), block["mlp"]["fc1"])
        x = x + dense(y / (1 + np.exp(-1.702 * y)), block["mlp"]["fc2"])
    return norm(x[-1], p["norm"])


def test_text_features_by_hand(draw, texts):
    run = draw(small(quick_gelu=True, text_depth=2), 8)
    outputs, _ = run({"text": texts})
    for row, got in zip(texts, outputs["text_features"], strict=True):
        ids = row[: row.argmax() + 1].tolist()
        np.testing.assert_allclose(got, compute_text_by_hand(run.params["text"], ids, 2), atol=1e-5)
    y = outputs["text_features"] @ run.params["text"]["projection"]["kernel"]
    want = y / np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["text_embedding"], want, atol=1e-5)


def test_a_row_of_padding_is_a_text_too(draw):
    outputs, _ = draw(small(), 8)({"text": np.zeros((1, 6), np.int32)})
    assert np.isfinite(outputs["text_embedding"]).all()


def gradient(compiled, drawn, batch):
    """Return the gradient of the softmax half of CLIP's loss."""
    model, params, state = drawn

    def loss(params):
        outputs, _ = model.apply(params, state, batch, train=True, key=jax.random.key(1))
        logits = outputs["logit_scale"] * outputs["embedding"] @ outputs["text_embedding"].T
        return -jnp.diag(jax.nn.log_softmax(logits)).sum() + outputs["logit_bias"]

    return compiled(jax.grad(loss))(params)


@pytest.mark.slow
def test_remat_gives_the_same_gradient(draw, images, texts, compiled):
    """The same is tested for the ResNet in test_resnet.py."""
    batch = {"image": images(4), "text": texts}
    got, want = (gradient(compiled, draw(small(remat=remat, logit_bias=-1.0), 8), batch) for remat in (True, False))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), got, want)


@pytest.mark.parametrize("values", [VIT, RESNET])
def test_the_gradient_is_finite_and_reaches_every_parameter(draw, images, texts, compiled, values):
    drawn = draw(small(**values, logit_bias=-1.0), 8)
    leaves = jax.tree_util.tree_leaves_with_path(gradient(compiled, drawn, {"image": images(4), "text": texts}))
    assert all(np.isfinite(leaf).all() for _, leaf in leaves)
    still = {jax.tree_util.keystr(path) for path, leaf in leaves if np.abs(leaf).max() < 1e-9}
    assert still <= {"['image']['pool']['k']['bias']"}  # a softmax does not see what is added to all of its row


def test_an_embedding_of_zero_has_a_finite_gradient(draw, images, compiled):
    model, params, state = draw(small(), 8)
    params = jax.tree.map(np.copy, params)
    params["image"]["projection"]["kernel"][:] = 0

    def loss(params):
        outputs, _ = model.apply(params, state, {"image": images(2)}, train=False, key=None)
        return outputs["embedding"].sum()

    value, gradient = compiled(jax.value_and_grad(loss))(params)
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("values", [VIT, RESNET])
def test_bf16_keeps_parameters_and_outputs_in_float32(draw, images, texts, values):
    full, half = draw(small(**values), 8), draw(small(**values, dtype="bfloat16"), 8)
    batch = {"image": images(4), "text": texts}
    want, got = full(batch)[0], half(batch)[0]
    maps = {name for name, value in got.items() if value.dtype == jnp.bfloat16}
    assert maps == {name for name in got if name.endswith(("_map", "_tokens"))} != set()
    assert {value.dtype for name, value in got.items() if name not in maps} == {np.dtype("float32")}
    model = build(small(**values, dtype="bfloat16"), num_classes=0, image_size=8)
    fresh = jax.eval_shape(lambda key: model.init(key, model.spec), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {np.dtype("float32")}
    for name in ("embedding", "text_embedding"):
        assert 0 < np.abs(got[name] - want[name]).max() < 0.1, name  # eight bits of mantissa


@pytest.mark.parametrize(("rate", "kept"), [(0.3, 11), (0.5, 8)])
def test_patch_dropout_keeps_the_class_token_and_a_share_of_the_patches(draw, images, rate, kept):
    run, plain = draw(small(patch_dropout=rate), 8), draw(small(), 8)
    batch = np.repeat(images(2), 64, axis=0)
    every = np.asarray(plain(batch)[0]["embed_tokens"])
    some = np.asarray(run(batch, train=True, key=jax.random.key(0))[0]["embed_tokens"])
    assert some.shape == (128, 1 + kept, 8)
    np.testing.assert_allclose(some[:, 0], every[:, 0], atol=1e-5)
    distance = np.abs(some[:, 1:, None] - every[:, None, 1:]).max(-1)  # [B, kept, 16]
    chosen = distance.argmin(-1)
    assert distance.min(-1).max() < 1e-5
    assert all(len(set(row)) == kept for row in chosen)
    assert len({tuple(row) for row in chosen[:64]}) > 8  # each image draws for itself
    share = np.bincount(chosen.ravel(), minlength=16) / 128
    assert np.abs(share - kept / 16).max() < 4.5 * math.sqrt(kept / 16 * (1 - kept / 16) / 128)

    again = run(batch, train=True, key=jax.random.key(0))[0]["embed_tokens"]
    other = run(batch, train=True, key=jax.random.key(1))[0]["embed_tokens"]
    np.testing.assert_array_equal(some, again)
    assert np.any(some != other)


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 16), (0.02, 16), (0.25, 12), (0.75, 4), (0.99, 1)])
def test_patch_dropout_rounds_the_share_and_keeps_one_patch_at_least(draw, images, rate, kept):
    model, params, state = draw(small(patch_dropout=rate), 8)
    apply = functools.partial(model.apply, params, state, train=True, key=jax.random.key(0))
    outputs, _ = jax.eval_shape(apply, {"image": images(2)})
    assert outputs["block0_tokens"].shape == outputs["tokens"].shape == (2, 1 + kept, 8)


def test_patch_dropout_leaves_evaluation_alone(draw, images):
    run, plain = draw(small(patch_dropout=0.5), 8), draw(small(), 8)
    want = plain(images(2))[0]
    for name, value in run(images(2), key=jax.random.key(0))[0].items():
        np.testing.assert_array_equal(value, want[name])
    np.testing.assert_allclose(plain(images(2), train=True)[0]["embedding"], want["embedding"], atol=1e-6)  # and no key


@pytest.mark.parametrize(
    ("batch", "cause"),
    [
        ({"text": np.zeros((2, 7), np.int32)}, r"int32 \(2, 7\); the model takes ids, int32 \[B, 6\]"),
        ({"text": np.zeros(6, np.int32)}, r"int32 \(6,\)"),
        ({"text": np.zeros((2, 6), np.float32)}, r"float32 \(2, 6\)"),
        ({"image": np.zeros((2, 8, 8, 1), np.uint8)}, r"\(2, 8, 8, 1\)"),
        ({"image": np.zeros((2, 16, 16, 3), np.uint8)}, "built for 8x8 pixels got images of 16x16"),
        ({"label": np.zeros(2), "mask": np.zeros(2)}, "a batch of label, mask holds no image or text"),
        ({}, "a batch of nothing holds no image or text"),
    ],
)
@pytest.mark.parametrize("values", [VIT, RESNET])
def test_a_batch_that_does_not_fit_is_one_line(draw, values, batch, cause):
    model, params, state = draw(small(**values), 8)
    with pytest.raises(UserError, match=cause) as e:
        jax.eval_shape(lambda: model.apply(params, state, batch, train=False, key=None))
    assert "\n" not in e.value.cause + e.value.cure


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"name": "clip", "tower": "clip_rn50"}, "model.tower is 'clip_rn50'"),
        ({"text_heads": 3}, r"width of 8 \(model.text_width\) cannot be split over 3 heads \(model.text_heads\)"),
        ({**RESNET, "heads": 5}, r"\(model.width\) cannot be split over 5 heads \(model.heads\)"),
        ({**RESNET, "blocks": (1, 1, 1)}, "an image of 8 pixels cannot be reduced 16-fold"),
        ({"embed_dim": 0}, "model.embed_dim is 0"),
        ({"text_context": -1}, "model.text_context is -1"),
        ({"patch_dropout": 1.0}, "model.patch_dropout is 1.0"),
    ],
)
def test_wrong_values_are_named(values, cause):
    with pytest.raises(UserError, match=cause) as e:
        build(small(**values), num_classes=0, image_size=8)
    if "tower" in values:
        listed = set(e.value.cure.removeprefix("give one of ").split(", "))
        assert listed == TOWERS.keys()
        assert not listed & CLIPS.keys()
