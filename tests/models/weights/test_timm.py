import importlib.util
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from configs.common import get_config
from nml_jax.errors import UserError
from nml_jax.models import build
from nml_jax.models.weights import files, timm
from tests.models.weights.compare import assert_equal

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden.py"))))
MODELS = {
    "resnet50": {"name": "resnet50"},
    "resnet18_train": {"name": "resnet18"},
    "vit_b": {"name": "vit_b"},
    "vit_ti_gap": {"name": "vit_ti", "depth": 2, "pool": "gap"},
}


def case(name: str):
    """Return (model, shapes of its trees, a timm state dict drawn from names and shapes) of one of the golden cases."""
    _, kwargs, size, _, _ = golden.CASES[name]
    config = get_config().model
    config.update({**MODELS[name], "mean": golden.MEAN, "std": golden.STD})
    model = build(config, num_classes=kwargs.get("num_classes", 1000), image_size=size)
    spec = {"image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)}
    like = jax.eval_shape(lambda key: model.init(key, spec), jax.random.key(0))
    with safe_open(golden.FILE, framework="np") as f:
        shapes = json.loads(f.metadata()["about"])["shapes"][name]
    return model, like, golden.weights({key: tuple(shape) for key, shape in shapes.items()})


def without_counters(tensors):
    return {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_timm_and_comes_back_bit_by_bit(name):
    """Features, logits and intermediates agree to 1e-4 on random weights; for one ResNet in training mode too."""
    model, like, tensors = case(name)
    train = golden.CASES[name][-1]
    params, state = timm.import_weights(tensors, like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    assert_equal(timm.export_weights(params, state), without_counters(tensors))  # and so the other way round

    apply = jax.jit(lambda p, s, x: model.apply(p, s, {"image": x}, train=train, key=None))
    outputs, new_state = jax.device_get(apply(params, state, golden.images(name)))
    if train:
        outputs |= {key: value for key, value in timm.export_weights(params, new_state).items() if "running" in key}
    want = {key.partition("/")[2]: value for key, value in load_file(golden.FILE).items() if key.startswith(name + "/")}
    assert {"features", "logits"} < want.keys()
    if "gap" in name:  # golden intermediates are class tokens
        outputs |= {key: outputs[f"{key}_tokens"][:, 0] for key in ("block0", "block1")}
    for key, value in want.items():
        assert 0.05 < value.std() < 10, key
        np.testing.assert_allclose(outputs[key], value, rtol=1e-4, atol=1e-4, err_msg=key)
    assert np.abs(want["features"][0] - want["features"][1]).max() > 0.1  # the images matter


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed; golden values stand in")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18_train", "vit_ti_gap"])
def test_agrees_with_the_timm_that_is_here(name, tmp_path):
    """Read timm's own random weights through a file, and load ours back into timm, strictly."""
    import torch

    model, like, _ = case(name)
    timm_name, kwargs, _, _, train = golden.CASES[name]
    torch.manual_seed(0)
    theirs = golden.timm().create_model(timm_name, **kwargs)
    save_file({key: value.numpy() for key, value in theirs.state_dict().items()}, tmp_path / "a.safetensors")
    params, state = files.read_weights(tmp_path / "a.safetensors", like)
    outputs, _ = model.apply(params, state, {"image": golden.images(name)}, train=train, key=None)
    fresh = golden.timm().create_model(timm_name, **kwargs)
    save_file(timm.export_weights(params, state), tmp_path / "b.safetensors")
    missing = fresh.load_state_dict({k: torch.from_numpy(v) for k, v in load_file(tmp_path / "b.safetensors").items()})
    assert (missing.missing_keys, missing.unexpected_keys) == ([], [])
    want = golden.run(fresh, golden.images(name), train=train)
    for key in ("features", "logits"):
        np.testing.assert_allclose(outputs[key], want[key], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def tiny():
    """Return (like, tensors) of the smallest case."""
    _, like, tensors = case("vit_ti_gap")
    return like, tensors


def test_missing_unexpected_and_unfit_tensors_are_named(tiny):
    like, tensors = tiny
    wrong = dict(tensors)
    del wrong["cls_token"], wrong["blocks.0.norm1.weight"]
    wrong |= {"fc_norm.weight": np.zeros(3), "norm.bias": np.zeros(3, np.float32)}
    wrong["norm.weight"] = np.zeros(192, np.int32)
    wrong["blocks.1.mlp.fc1.weight"] = wrong["blocks.1.mlp.fc1.weight"].T
    with pytest.raises(UserError) as e:
        timm.import_weights(wrong, like)
    missing, unexpected, unfit = e.value.cause.split("; ")
    assert missing.endswith("missing: blocks.0.norm1.weight, cls_token")
    assert unexpected == "unexpected: fc_norm.weight"
    assert "blocks.1.mlp.fc1.weight is (192, 768) and not (768, 192)" in unfit
    assert "norm.bias is (3,) and not (192,)" in unfit
    assert "norm.weight is int32 and not a float" in unfit
    assert "\n" not in e.value.cause


def test_weights_of_another_family_are_one_short_line(tiny):
    like, _ = tiny
    with pytest.raises(UserError) as e:
        timm.import_weights(case("resnet18_train")[2], like)
    assert re.search(r"missing: \S+, \S+, \S+ and 29 more; unexpected: \S+, \S+, \S+ and 99 more$", e.value.cause)


def test_another_image_size_is_a_user_error(tiny):
    like, tensors = tiny
    with pytest.raises(UserError, match=r"pos_embed is \(1, 26, 192\) and not \(1, 17, 192\)") as e:
        timm.import_weights({**tensors, "pos_embed": np.zeros((1, 26, 192), np.float32)}, like)
    assert "data.image_size" in e.value.cure


def test_result_owns_its_memory(tiny):
    like, tensors = tiny
    params, _ = timm.import_weights(tensors, like)
    before = tensors["cls_token"].copy()
    params["cls"][:] = 0
    np.testing.assert_array_equal(tensors["cls_token"], before)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_every_float_becomes_float32(tiny, dtype):
    like, tensors = tiny
    params, _ = timm.import_weights({name: value.astype(dtype) for name, value in tensors.items()}, like)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_array_equal(params["cls"], tensors["cls_token"].astype(dtype).astype(np.float32))


@pytest.mark.parametrize("head", ["fits", "other classes", "absent"])
def test_reading_leaves_out_a_head_that_does_not_fit(tiny, tmp_path, head):
    like, tensors = tiny
    tensors = dict(tensors)
    if head == "other classes":
        tensors |= {"head.weight": np.zeros((7, 192), np.float32), "head.bias": np.zeros(7, np.float32)}
    elif head == "absent":
        del tensors["head.weight"], tensors["head.bias"]
    save_file(tensors, tmp_path / "w.safetensors")
    params, state = files.read_weights(tmp_path / "w.safetensors", like)
    assert ("head" in params) == (head == "fits")
    assert params.keys() | {"head"} == like[0].keys()
    assert state == {}
    np.testing.assert_array_equal(params["block1"]["mlp"]["fc1"]["kernel"], tensors["blocks.1.mlp.fc1.weight"].T)


def test_a_head_of_other_classes_is_an_error_where_the_head_is_asked_for(tiny):
    like, tensors = tiny
    tensors = {**tensors, "head.weight": np.zeros((7, 192), np.float32), "head.bias": np.zeros(7, np.float32)}
    with pytest.raises(UserError, match=r"head.bias is \(7,\) and not \(10,\)"):
        timm.import_weights(tensors, like)
    assert "head" not in timm.import_weights(tensors, like, head=False)[0]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "float8"])
def test_an_unreadable_file_is_a_user_error(tiny, tmp_path, damage):
    like, tensors = tiny
    path = tmp_path / "w.safetensors"
    save_file(tensors, path)
    content = path.read_bytes()
    header = b'{"x":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    contents = {
        "truncated": content[:-1],
        "garbage": b"\x80\x04" * 99,
        "empty": b"",
        "float8": len(header).to_bytes(8, "little") + header + b"\0",
    }
    path.write_bytes(contents[damage])
    with pytest.raises(UserError, match=f"cannot read {re.escape(str(path))} as safetensors"):
        files.read_weights(path, like)
