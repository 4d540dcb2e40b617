"""Test LoRA, NEFTune and NoisyTune of text encoders: against peft, and by what they must not touch."""

import dataclasses
import functools
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import common
from nml_jax import models, runtime, settings
from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form
from nml_jax.models.weights import language
from nml_jax.training import finetune, loop, lora, perturb
from nml_jax.training.leaves import name_leaves, unflatten
from nml_jax.training.window import put_signals
from tests.scenes.meshes import mesh_of

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_lora.py"))))
texts = golden.golden
KINDS = ("bert", "roberta", "gpt2")
TEXT = ("text_attention", "text_mlp")
TUNING = {
    "rank": golden.RANK, "alpha": golden.ALPHA, "targets": TEXT, "weight_decay": golden.DECAY, "head_init": "fresh",
}  # fmt: skip


def sections(kind: str, **tuning):
    config = common.get_config()
    with config.unlocked():
        config.model.update({"name": kind, "pool": golden.POOLS[kind], **texts.SIZES})
        config.finetune.update({**TUNING, **tuning})
    model, own = settings.freeze_sections(config.model, config.finetune)
    return model, own


def setup(method: str = "lora") -> finetune.Setup:
    return finetune.Setup(method, "none", Form(False), "features", golden.CLASSES, 8)


@functools.cache
def encoder(kind: str):
    """Return sharp weights, (params, model_state), on the host."""
    model = models.build(sections(kind)[0], num_classes=0, image_size=8)
    like = language.export_weights(jax.tree.map(lambda x: np.zeros(x.shape), model.shapes[0]))
    return language.import_weights(
        texts.weights({name: x.shape for name, x in like.items()}, "sharp"), model.shapes, "it"
    )


def make_batch(kind: str) -> dict[str, np.ndarray]:
    ids, mask = texts.inputs(kind)
    second = texts.SECOND if kind == "bert" else [texts.LENGTH] * len(ids)
    batch = {"tokens": ids, "length": mask.sum(1), "second": np.array(second), "label": np.array(golden.LABELS),
             "id": np.arange(len(ids))}  # fmt: skip
    return {**{name: x.astype(np.int32) for name, x in batch.items()}, "mask": np.ones(len(ids), np.float32)}


# RoBERTa has the matrices of BERT.
@pytest.mark.parametrize("kind", ["bert", "gpt2", pytest.param("roberta", marks=pytest.mark.slow)])
def test_ten_steps_of_lora_equal_those_of_peft(kind: str):
    """The factors of every matrix of attention and MLP, the head, the losses and the logits, to 1e-4."""
    want = {name.removeprefix(f"{kind}/"): x for name, x in load_file(golden.FILE).items() if name.startswith(kind)}
    mesh, (model, own) = mesh_of(1), sections(kind)
    program = finetune.build(model, own, setup(), golden.RATE, loop.Plan(golden.STEPS, 5.0), mesh)
    head = {"classifier": {"kernel": golden.draw_head(), "bias": np.zeros(golden.CLASSES, np.float32)}}, {}
    state = finetune.start(program, encoder(kind), head, mesh, jax.random.key(0))
    rename = language.choose_names(encoder(kind)[0])
    factors, names = name_leaves(state.params["encoder"]["lora"]), {}
    for name, x in factors.items():
        path, _, side = name.rpartition("/")
        module = re.sub(r"\.weight(@same)?$", "", rename(path))
        names[name] = f"{module}.{side}"
        factors[name] = golden.draw_factor(module, x.shape[0]) if side == "a" else np.zeros(x.shape, np.float32)
    assert set(names.values()) == {name for name in want if name.endswith((".a", ".b"))}
    placed = {**state.params, "encoder": {**state.params["encoder"], "lora": unflatten(factors)}}
    state = dataclasses.replace(state, params=runtime.to_mesh(jax.device_get(placed), mesh))
    batch, losses = runtime.put_batch(mesh)(make_batch(kind)), []
    for _ in range(golden.STEPS):
        state, metrics = program.step(state, batch, put_signals(mesh))
        losses.append(float(metrics["loss"][0]))
    np.testing.assert_allclose(losses, want["losses"], atol=1e-5)
    for name, x in name_leaves(state.params["encoder"]["lora"]).items():
        np.testing.assert_allclose(x, want[names[name]], atol=1e-4)
    np.testing.assert_allclose(state.params["head"]["classifier"]["kernel"], want["kernel"], atol=1e-4)
    np.testing.assert_allclose(state.params["head"]["classifier"]["bias"], want["bias"], atol=1e-4)
    merged, _ = finetune.merge_factors(jax.device_get((state.params, state.model_state)), own)
    plain = models.build(model, num_classes=0, image_size=8)
    features = plain.apply(merged["encoder"], {}, make_batch(kind), train=False, key=None)[0]["features"]
    logits = features @ merged["head"]["classifier"]["kernel"] + merged["head"]["classifier"]["bias"]
    np.testing.assert_allclose(logits, want["logits"], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_every_matrix_of_attention_and_mlp_and_those_of_images_are_refused(kind: str):
    names = list(name_leaves(encoder(kind)[0]))
    found = lora.select(names, TEXT)
    kernels = [name for name in names if name.startswith("block") and name.endswith("/kernel")]
    assert found == kernels
    assert lora.select(names, ("text_mlp",)) == [name for name in kernels if "/fc" in name]
    for target in ("vit_attention", "vit_mlp", "resnet_conv", "block9/.*"):
        with pytest.raises(UserError, match="matches no parameter") as e:
            lora.select(names, (target,))
        assert "text_attention, text_mlp" in e.value.cure
        assert "vit" not in e.value.cure
    with pytest.raises(UserError, match="matches no parameter"):
        lora.select(["block0/attn/qkv/kernel", "head/kernel"], ("text_attention",))


@pytest.mark.parametrize("kind", KINDS)
def test_neftune_is_at_the_words_by_the_length_of_each_text_and_in_training_alone(kind: str):
    """U(±α/√(L·d)) with L of each text, none on padding; positions, types and norms see the noisy words."""
    strength, batch = 3.0, make_batch(kind)
    model, own = sections(kind, neftune=strength)
    built, (params, state) = finetune.build_classifier(model, own, setup("full")), encoder(kind)
    params = {**params, "positions": jax.tree.map(jnp.zeros_like, params["positions"])}
    if "types" in params:
        params |= {"types": jax.tree.map(jnp.zeros_like, params["types"])}
    whole = {"encoder": params, "head": {"classifier": {"kernel": golden.draw_head(), "bias": jnp.zeros(3)}}}

    @functools.partial(jax.jit, static_argnames="train")
    def embed(key, train):
        return built.apply(whole, {"encoder": state, "head": {}}, batch, train=train, key=key)[0]["embed_tokens"]

    plain, again = embed(jax.random.key(0), False), embed(jax.random.key(1), False)
    np.testing.assert_array_equal(plain, again)
    noisy = np.asarray(embed(jax.random.key(0), True))
    assert not np.array_equal(noisy, embed(jax.random.key(1), True))
    padded = np.arange(texts.LENGTH) >= batch["length"][:, None]
    np.testing.assert_array_equal(noisy[padded], np.asarray(plain)[padded])
    assert (noisy != plain)[~padded].mean() > 0.99
    if kind == "gpt2":  # nothing follows the words, so the noise is what is added
        words = params["words"]["embedding"][batch["tokens"]]
        for i, length in enumerate(batch["length"]):
            bound = strength / np.sqrt(length * texts.SIZES["dim"])
            added = np.abs(noisy[i, :length] - words[i, :length])
            assert 0.85 * bound < added.max() <= bound * 1.0001


def test_noisytune_moves_every_matrix_of_a_text_encoder_and_no_vector():
    params, _ = encoder("bert")
    moved = jax.device_get(perturb.noisytune(params, jax.random.key(0), 0.2))
    for name, x in name_leaves(params).items():
        y = name_leaves(moved)[name]
        if x.ndim < 2:
            np.testing.assert_array_equal(x, y)
        else:
            assert 0.08 * x.std() < np.abs(y - x).max() <= 0.1001 * x.std(), name


@pytest.mark.parametrize("kind", KINDS)
def test_rates_fall_from_the_head_to_the_embeddings_and_position_embeddings_do_not_decay(kind: str):
    built = finetune.build_classifier(*sections(kind), setup("full"))
    section = finetune.build_optimizer(sections(kind, layer_decay=0.5)[1], built.shapes[0], "full", 0.01)
    rate = {pattern.replace("\\", ""): value for pattern, value in section.lr_mult}
    assert rate["encoder/words/embedding"] == rate["encoder/positions/embedding"] == 0.125
    assert rate["encoder/block0/fc1/kernel"] == 0.25
    assert rate["encoder/block1/fc2/bias"] == 0.5
    assert rate["head/classifier/kernel"] == 1.0
    decays = {name: next(value for pattern, value in finetune.DECAY if re.fullmatch(pattern, name)) for name in rate}
    assert decays["encoder/positions/embedding"] == decays["encoder/block0/norm1/scale"] == 0.0
    assert decays["encoder/words/embedding"] == decays["encoder/block0/fc1/kernel"] == 1.0
