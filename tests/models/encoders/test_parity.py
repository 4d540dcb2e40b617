"""Swin, BiT, CLIP's image tower and DINOv2 against timm in float64, with weights that NumPy draws."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from configs.common import get_config
from nml_jax.errors import UserError
from nml_jax.models import Model, build
from nml_jax.models.weights import files, positions, timm
from tests.models.encoders import golden_timm
from tests.models.weights.compare import assert_equal

SWIN = {"name": "swin_t", "width": 16, "window": 4}
MODELS = {
    "swin": {**SWIN, "blocks": (2, 2), "heads": 2},
    "swin_padded": {**SWIN, "blocks": (2, 1, 1), "heads": 1},
    "bit": {"name": "bit_50x1", "blocks": (2, 1), "width": 32},
    "clip": {"name": "vit_b16_clip", "dim": 32, "depth": 2, "heads": 2},
    "dinov2": {"name": "vit_s14_dinov2", "dim": 32, "depth": 2, "heads": 2},
}


def make(case: str, **values) -> Model:
    config = get_config().model
    config.update(
        {**MODELS[case], "mean": tuple(golden_timm.MEAN.tolist()), "std": tuple(golden_timm.STD.tolist()), **values}
    )
    return build(config, num_classes=golden_timm.CLASSES, image_size=golden_timm.CASES[case][2])


@functools.cache
def read_about() -> dict:
    with safe_open(golden_timm.FILE, framework="np") as f:
        return json.loads(f.metadata()["about"])


@functools.cache
def load_case(case: str):
    """Return (timm's state dict, our params) of a case."""
    tensors = golden_timm.draw({key: tuple(shape) for key, shape in read_about()["shapes"][case].items()})
    return tensors, timm.import_weights(tensors, make(case).shapes)[0]


def run(case: str, dtype: str, **values) -> dict[str, np.ndarray]:
    """Return the outputs that are in the file, in float64."""
    with jax.enable_x64(dtype == "float64"):
        model = make(case, dtype=dtype, **values)
        images = golden_timm.images(case)
        apply = jax.jit(lambda p: model.apply(p, {}, {"image": images}, train=False, key=None)[0],
                        compiler_options={"xla_backend_optimization_level": 0})  # fmt: skip
        outputs = jax.device_get(apply(load_case(case)[1]))
    for name in outputs:  # what is pooled belongs to what is not
        if name + "_map" in outputs:
            np.testing.assert_allclose(outputs[name], outputs[name + "_map"].mean((1, 2)), rtol=1e-5, atol=1e-6)
    return golden_timm.shrink({name: np.asarray(x, np.float64) for name, x in outputs.items()})


@pytest.mark.parametrize("case", MODELS)
def test_agrees_with_timm(case: str):
    """In float64 to rounding; in float32 no further from float64 than twice timm itself."""
    want = {key.partition("/")[2]: x for key, x in load_file(golden_timm.FILE).items() if key.startswith(case + "/")}
    assert {"features", "logits"} < want.keys()
    exact, rough = run(case, "float64"), run(case, "float32")
    for name, value in want.items():
        np.testing.assert_allclose(exact[name], value, rtol=0, atol=1e-10 * value.std(), err_msg=name)
        assert golden_timm.measure_error(rough[name], exact[name]) < 2 * read_about()["float32"][case][name], name
    features = want["features"]
    assert np.abs(features[0] - features[1]).max() > 0.1 * features.std(), "the images matter"


@pytest.mark.parametrize("name", golden_timm.GRIDS)
def test_position_embeddings_of_another_grid_are_those_of_timm(name: str, capfd):
    theirs = golden_timm.draw_positions(name)
    want = load_file(golden_timm.FILE)[name]
    found = positions.fit("pos_embed", theirs, want.shape)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[:, 0], theirs[:, 0])
    old, new = golden_timm.GRIDS[name]
    assert f"pos_embed of {old}x{old} patches is resampled to {new}x{new}" in capfd.readouterr().err


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 10, 4), (10, 8)])
def test_position_embeddings_that_do_not_fit_are_left_to_the_check_of_shapes(shape: tuple[int, ...]):
    theirs = np.zeros(shape, np.float32)
    assert positions.fit("pos_embed", theirs, (1, 5, 8)) is theirs


def test_dinov2_is_read_for_another_size_and_a_plain_vit_is_not():
    tensors, _ = load_case("dinov2")
    tensors = tensors | {"pos_embed": np.zeros((1, 17, 32), np.float32), "mask_token": np.zeros((1, 32), np.float32)}
    assert timm.import_weights(tensors, make("dinov2").shapes)[0]["pos_embed"].shape == (1, 10, 32)
    tensors = load_case("clip")[0] | {"pos_embed": np.zeros((1, 17, 32), np.float32)}
    with pytest.raises(UserError, match=r"pos_embed is \(1, 17, 32\) and not \(1, 5, 32\)"):
        timm.import_weights(tensors, make("clip").shapes)


@pytest.mark.parametrize("case", ["swin", "bit", "dinov2"])
def test_weights_come_back_bit_by_bit(case: str):
    tensors, params = load_case(case)
    assert_equal(timm.export_weights(params, {}), tensors)


def test_microsofts_layout_is_read_as_timm_reads_it(tmp_path):
    """There the merging of patches ends a stage, the head has no "fc", and buffers are stored."""
    tensors, params = load_case("swin_padded")
    theirs = {}
    for name, value in tensors.items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        theirs[name.replace("head.fc.", "head.")] = value
    theirs["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((16, 16), np.int64)
    theirs["layers.0.blocks.1.attn_mask"] = np.zeros((9, 16, 16), np.float32)
    save_file(theirs, tmp_path / "swin.safetensors")
    found, _ = files.read_weights(tmp_path / "swin.safetensors", make("swin_padded").shapes)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_table_of_positions_of_another_window_is_named():
    """With windows of 2 the tables have 9 rows; so with another image size, if a map becomes smaller than a window."""
    tensors, _ = load_case("swin")
    with pytest.raises(UserError, match=r"relative_position_bias_table is \(49, 2\) and not \(9, 2\)") as e:
        timm.import_weights(tensors, make("swin", window=2).shapes)
    assert "data.image_size" in e.value.cure
