"""Test text encoders against transformers, and that padding is never seen."""

import functools
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from configs.common import get_config
from nml_jax import models
from nml_jax.errors import UserError
from nml_jax.models.published.language import read_language
from nml_jax.models.text.language import pool
from nml_jax.models.weights import language
from tests.models.weights.compare import assert_equal

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "weights" / "golden_language.py")))
# torch's own float32 is up to 1.3e-6 from its float64, and 4e-5 for the gradient (golden_language.py prints it).
FLOAT32 = {"plain": 5e-6, "sharp": 5e-5}


@functools.cache
def stored() -> tuple[dict[str, np.ndarray], dict]:
    with safe_open(golden.FILE, framework="np") as f:
        return load_file(golden.FILE), json.loads(f.metadata()["about"])


def build(kind: str, **keys) -> models.Model:
    config = get_config().model
    config.update({"name": kind, **golden.SIZES, **keys})
    return models.build(config, num_classes=0, image_size=8)


def make_batch(kind: str) -> dict[str, np.ndarray]:
    ids, mask = golden.inputs(kind)
    second = golden.SECOND if kind == "bert" else [golden.LENGTH] * len(ids)
    batch = {"tokens": ids, "length": mask.sum(1), "second": np.array(second)}
    return {name: x.astype(np.int32) for name, x in batch.items()}


def draw(kind: str, how: str) -> dict[str, np.ndarray]:
    return golden.weights({name: tuple(shape) for name, shape in stored()[1]["shapes"][kind].items()}, how)


def draw_for(model: models.Model, kind: str) -> dict[str, np.ndarray]:
    """Return sharp weights for the tensors that a model has."""
    drawn, names = (
        draw(kind, "sharp"),
        set(language.export_weights(jax.tree.map(lambda x: np.zeros(x.shape), model.shapes[0]))),
    )
    return {name: x for name, x in drawn.items() if name in names}


def run(kind: str, dtype: str, compiled) -> dict[str, dict[str, np.ndarray]]:
    """Return the outputs and the gradient with plain and with sharp weights; one program computes both."""
    model = build(kind, dtype=dtype, pool="last" if kind == "gpt2" else "pooler")
    batch = make_batch(kind)
    own = (np.arange(golden.LENGTH) < batch["length"][:, None])[..., None]

    def loss(params):
        outputs, _ = model.apply(params, {}, batch, train=False, key=None)
        return jnp.sum(jnp.cos(outputs["tokens"]) * own), outputs

    step, found = compiled(jax.grad(loss, has_aux=True)), {}
    for how in FLOAT32:
        params, _ = language.import_weights(draw(kind, how), model.shapes, "it")
        assert_equal(language.export_weights(params), draw(kind, how))
        grads, outputs = step(jax.tree.map(lambda x: x.astype(dtype), params))
        found[how] = jax.device_get({**outputs, "gradient": grads["words"]["embedding"]})
    return found


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_agrees_with_transformers(kind: str, compiled):
    """Every token of a text, the pooler and the gradient of the embeddings, to 1e-11 in float64."""
    with jax.enable_x64(True):
        wide = run(kind, "float64", compiled)
    narrow = run(kind, "float32", compiled)
    own = np.arange(golden.LENGTH) < np.array(golden.LENGTHS)[:, None]
    for how in FLOAT32:
        prefix = f"{kind} {how}/"
        want = {key.removeprefix(prefix): x for key, x in stored()[0].items() if key.startswith(prefix)}
        assert {"tokens", "block0_tokens", "embed", "gradient"} <= want.keys()
        for key, x in want.items():
            ours = {"pooler": "features", "embed": "embed_tokens"}.get(key, key)
            rows, size = own if x.ndim == 3 else slice(None), max(1, np.abs(x).max())
            assert wide[how][ours].dtype == np.float64
            assert np.abs(wide[how][ours][rows] - x[rows]).max() < 1e-11 * size, (how, key)
            assert np.abs(narrow[how][ours][rows] - x[rows]).max() < FLOAT32[how] * size, (how, key)


@pytest.mark.parametrize(("kind", "how"), [("bert", "mean"), ("roberta", "cls"), ("gpt2", "last")])
def test_a_text_has_the_same_features_alone_in_any_length_and_with_any_padding(kind: str, how: str, compiled):
    model = build(kind, pool=how, context=20, depth=1)
    params, state = language.import_weights(draw_for(model, kind), model.shapes, "it")
    apply = compiled(lambda batch: model.apply(params, state, batch, train=False, key=None)[0])
    batch = make_batch(kind)
    whole = apply(batch)
    longer = np.pad(batch["tokens"], ((0, 0), (0, 8)), constant_values=golden.SIZES["vocab"] - 1)
    for i, length in enumerate(batch["length"]):
        longer[i, length:] = golden.SIZES["vocab"] - 1
    other = apply({**batch, "tokens": longer})
    alone = apply({key: x[3:] for key, x in batch.items()})
    for layer in ("features", "block0", "embed"):
        np.testing.assert_allclose(other[layer], whole[layer], atol=1e-5)
        np.testing.assert_allclose(alone[layer][0], whole[layer][3], atol=1e-5)


BERT = {"model_type": "bert", "vocab_size": 30522}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
           "layer_norm_eps": 1e-5, "pad_token_id": 1}  # fmt: skip


def describe_gpt2(depth: int, heads: int, dim: int) -> dict:
    return {"model_type": "gpt2", "n_layer": depth, "n_head": heads, "n_embd": dim}


# The config.json of published models, as far as it differs from transformers' defaults, and their parameters without
# and with a pooler.
PUBLISHED = {
    "bert-base-uncased": (BERT, 108_891_648, 109_482_240),
    "bert-large-uncased": (BERT | LARGE, 334_092_288, 335_141_888),
    "bert-base-cased": (BERT | {"vocab_size": 28996}, 107_719_680, 108_310_272),
    "bert-large-cased": (BERT | LARGE | {"vocab_size": 28996}, 332_529_664, 333_579_264),
    "roberta-base": (ROBERTA, 124_055_040, 124_645_632),
    "roberta-large": (ROBERTA | LARGE, 354_310_144, 355_359_744),
    "gpt2": (describe_gpt2(12, 12, 768), 124_439_808, 0),
    "gpt2-medium": (describe_gpt2(24, 16, 1024), 354_823_168, 0),
    "gpt2-large": (describe_gpt2(36, 20, 1280), 774_030_080, 0),
    "gpt2-xl": (describe_gpt2(48, 25, 1600), 1_557_611_200, 0),
}


def count_parameters(keys: dict, depth: int, **more) -> int:
    config = get_config().model
    own = {key.removeprefix("model."): value for key, value in keys.items() if key.startswith("model.")}
    config.update(own | {"depth": depth, **more})
    return sum(x.size for x in jax.tree.leaves(models.build(config, num_classes=0, image_size=8).shapes[0]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name: str, tmp_path: Path):
    """From config.json; all blocks have the size of the second."""
    content, plain, pooled = PUBLISHED[name]
    keys = read_language(tmp_path / "config.json", content)
    for how, want in ({"pool": "mean"}, plain), ({"pool": "pooler"}, pooled):
        if want:
            one, two = (count_parameters(keys, depth, **how) for depth in (1, 2))
            assert one + (keys["model.depth"] - 1) * (two - one) == want


def test_pooling_by_hand():
    tokens = jnp.array([[[1.0, 2.0], [3.0, 6.0], [jnp.nan, jnp.inf]], [[5.0, 1.0], [jnp.nan, 0.0], [0.0, 0.0]]])
    length = jnp.array([2, 1])
    np.testing.assert_array_equal(pool(tokens, length, "mean"), [[2.0, 4.0], [5.0, 1.0]])
    np.testing.assert_array_equal(pool(tokens, length, "last"), [[3.0, 6.0], [5.0, 1.0]])
    np.testing.assert_array_equal(pool(tokens, length, "cls"), [[1.0, 2.0], [5.0, 1.0]])
    grads = jax.grad(lambda x: pool(x, length, "mean").sum())(jnp.ones((2, 3, 2)))
    np.testing.assert_array_equal(grads[:, :, 0], [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])


def test_bfloat16_is_near_and_rows_that_fill_a_batch_are_finite():
    wide, narrow = build("bert", pool="mean", depth=1), build("bert", pool="mean", depth=1, dtype="bfloat16")
    params, state = language.import_weights(draw_for(wide, "bert"), wide.shapes, "it")
    batch = make_batch("bert")
    batch["length"][2] = 0
    x, y = (m.apply(params, state, batch, train=False, key=None)[0]["features"] for m in (wide, narrow))
    assert y.dtype == np.float32
    assert np.isfinite(x).all()
    np.testing.assert_allclose(y, x, atol=0.05)


def test_bad_inputs():
    model = build("bert")
    params, state = model.shapes
    batch = {"tokens": np.zeros((1, 21), np.int32), "length": np.ones(1, np.int32), "second": np.ones(1, np.int32)}
    with pytest.raises(UserError, match="21 tokens, but the model has 20 positions"):
        jax.eval_shape(lambda: model.apply(params, state, batch, train=False, key=None))
    with pytest.raises(UserError, match="holds no length"):
        model.apply(params, state, {"tokens": batch["tokens"], "second": batch["second"]}, train=False, key=None)
    for kind, key, value in (("bert", "pool", "gap"), ("gpt2", "pool", "pooler"), ("bert", "activation", "gelu_new"),
                             ("bert", "types", -1)):  # fmt: skip
        with pytest.raises(UserError, match=f"model.{key} is"):
            build(kind, **{key: value})
