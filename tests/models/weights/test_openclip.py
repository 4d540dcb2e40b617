import importlib.util
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from configs.common import get_config
from nml_jax.errors import UserError
from nml_jax.models import build
from nml_jax.models.weights import files, openclip
from tests.models.weights.compare import assert_equal

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_clip.py"))))
TEXT = {"text_context": 12, "text_vocab": 99, "text_width": 48, "text_heads": 3, "text_depth": 2, "embed_dim": 24}
RESNET = {"name": "clip_rn50", "blocks": (1, 2, 1, 1), "width": 16}
MODELS = {
    "resnet": RESNET,
    "resnet_train": RESNET,
    "vit": {
        **{"name": "clip_vitb16", "depth": 2, "dim": 64, "heads": 2, "patch": 8},
        **{"quick_gelu": True, "logit_bias": -10.0},
    },
    "vit_gap": {"name": "clip_vitb16", "depth": 1, "dim": 64, "heads": 2, "patch": 8, "pool": "gap"},
    "timm": {"name": "clip", "tower": "resnet18"},
}


def case(name: str):
    """Return (model, shapes of its trees, an open_clip state dict from names and shapes) of one of the golden cases."""
    config = get_config().model
    config.update({**TEXT, **MODELS[name], "mean": golden.MEAN, "std": golden.STD})
    model = build(config, num_classes=0, image_size=golden.CASES[name][3])
    like = jax.eval_shape(lambda key: model.init(key, model.spec), jax.random.key(0))
    with safe_open(golden.FILE, framework="np") as f:
        shapes = json.loads(f.metadata()["about"])["shapes"][name]
    return model, like, golden.golden.weights({key: tuple(shape) for key, shape in shapes.items()})


@pytest.fixture
def run(compiled):
    """Return `run(model, params, state, inputs, train=...)` -> (the outputs with logits, the new state)."""
    return lambda *args, train: _run(compiled, *args, train=train)


def _run(compiled, model, params, state, inputs, *, train: bool):
    apply = compiled(lambda p, s, x: model.apply(p, s, x, train=train, key=None))
    outputs, new_state = jax.device_get(apply(params, state, inputs))
    logits = outputs["logit_scale"] * outputs["embedding"] @ outputs["text_embedding"].T
    return {**outputs, "logits": logits + outputs.get("logit_bias", 0)}, new_state


def to_clip_names(tensors):
    """Drop the counters and put the text tower where open_clip's `CLIP` has it."""
    counted = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    return {name.removeprefix("text."): value for name, value in counted.items()}


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_open_clip_and_comes_back_bit_by_bit(name, run):
    """Embeddings, logits and intermediates agree to 1e-4 on random weights; for the ResNet in training mode too."""
    model, like, tensors = case(name)
    train = golden.CASES[name][-1]
    params, state = openclip.import_weights(tensors, like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    back = openclip.export_weights(params, state)
    assert_equal(back, to_clip_names(tensors))
    again = openclip.import_weights(back, like)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), again, (params, state)))

    outputs, new_state = run(model, params, state, golden.batch(name), train=train)
    if train:
        outputs |= {key: value for key, value in openclip.export_weights(params, new_state).items() if "running" in key}
    want = {key.partition("/")[2]: value for key, value in load_file(golden.FILE).items() if key.startswith(name + "/")}
    assert {"embedding", "text_embedding", "logits"} < want.keys()
    if "gap" in name:  # golden intermediates are class tokens
        outputs["block0"] = outputs["block0_tokens"][:, 0]
    for key, value in want.items():
        assert 0.05 < value.std() < 10, key
        np.testing.assert_allclose(outputs[key], value, rtol=1e-4, atol=1e-4, err_msg=key)
    for key in ("embedding", "text_embedding"):
        assert np.abs(want[key][0] - want[key][1]).max() > 0.01  # the inputs matter, a hundred tolerances


@pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed; golden values stand in"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_open_clip_that_is_here(name, run, tmp_path):
    """Read open_clip's random weights, with statistics and biases changed, from a file; load ours back, strictly."""
    import torch

    model, like, _ = case(name)
    train = golden.CASES[name][-1]
    torch.manual_seed(0)
    theirs = golden.create(name)
    drawn = {}
    for key, value in theirs.state_dict().items():
        noise = torch.randn_like(value, dtype=torch.float32) / 8
        drawn[key] = value * noise.exp() if "running_var" in key else value + noise if value.ndim == 1 else value
    save_file({key: value.numpy() for key, value in drawn.items()}, tmp_path / "a.safetensors")
    params, state = files.read_weights(tmp_path / "a.safetensors", like)
    outputs, _ = run(model, params, state, golden.batch(name), train=train)

    save_file(openclip.export_weights(params, state), tmp_path / "b.safetensors")
    ours = {key: torch.from_numpy(value) for key, value in load_file(tmp_path / "b.safetensors").items()}
    if hasattr(theirs, "text"):
        text = {key for key in ours if not key.startswith(("visual.", "logit_"))}
        ours = {f"text.{key}" if key in text else key: value for key, value in ours.items()}
    loaded = theirs.load_state_dict(ours)
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
    want = golden.run(theirs, golden.batch(name), train=train)
    for key in ("embedding", "text_embedding", "logits"):
        np.testing.assert_allclose(outputs[key], want[key], rtol=1e-4, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_reading_a_file_and_exporting_gives_the_same_tensors(name, tmp_path):
    _, like, tensors = case(name)
    save_file(tensors, tmp_path / "w.safetensors")
    params, state = files.read_weights(tmp_path / "w.safetensors", like)
    assert_equal(openclip.export_weights(params, state), to_clip_names(tensors))


def test_missing_unexpected_and_unfit_tensors_are_named():
    _, like, tensors = case("vit")
    wrong = dict(tensors)
    del wrong["visual.ln_pre.bias"], wrong["logit_bias"]
    wrong |= {"visual.attn_pool.query": np.zeros(3, np.float32)}
    wrong["text_projection"] = wrong["text_projection"].T
    wrong["positional_embedding"] = np.zeros((77, 48), np.float32)
    with pytest.raises(UserError) as e:
        openclip.import_weights(wrong, like)
    missing, unexpected, unfit = e.value.cause.split("; ")
    assert missing.endswith(("missing: visual.ln_pre.bias, logit_bias", "missing: logit_bias, visual.ln_pre.bias"))
    assert unexpected == "unexpected: visual.attn_pool.query"
    assert "text_projection is (24, 48) and not (48, 24)" in unfit
    assert "positional_embedding is (77, 48) and not (12, 48)" in unfit
    assert "\n" not in e.value.cause


def test_weights_of_another_kind_of_model_are_a_user_error(tmp_path):
    _, like, tensors = case("timm")
    save_file(tensors, tmp_path / "two.safetensors")
    trunk = {n.removeprefix("visual.trunk."): v for n, v in tensors.items() if n.startswith("visual.trunk.")}
    save_file(trunk, tmp_path / "one.safetensors")
    with pytest.raises(UserError, match=r"one\.safetensors holds the weights of an image model, but the model is a"):
        files.read_weights(tmp_path / "one.safetensors", like)
    config = get_config().model
    config.name = "resnet18"
    model = build(config, num_classes=3, image_size=64)
    single = jax.eval_shape(lambda key: model.init(key, model.spec), jax.random.key(0))
    with pytest.raises(UserError, match=r"two\.safetensors holds the weights of a CLIP model, but the model is an"):
        files.read_weights(tmp_path / "two.safetensors", single)
    params, state = files.read_weights(tmp_path / "one.safetensors", single)  # the trunk is a timm model without a head
    assert "head" not in params
    assert state["batch_stats"].keys() == single[1]["batch_stats"].keys()
