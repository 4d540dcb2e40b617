"""Swin, BiT, CLIP's image tower and DINOv2 against timm in float64, with weights that NumPy draws."""

import functools
import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from configs.common import get_config
from nml_jax.models import Model, build
from nml_jax.models.weights import timm
from tests.models.encoders import golden_timm

SWIN = {"name": "swin_t", "width": 16, "window": 4}
DINOV2 = {"name": "vit_s14_dinov2", "dim": 32, "heads": 2}
MODELS = {
    "swin": {**SWIN, "blocks": (2, 2), "heads": 2},
    "swin_padded": {**SWIN, "blocks": (2, 2, 2), "heads": 1},
    "bit": {"name": "bit_50x1", "blocks": (2, 1), "width": 32},
    "clip": {"name": "vit_b16_clip", "dim": 32, "depth": 2, "heads": 2},
    "dinov2": {**DINOV2, "depth": 2},
    "dinov2_larger": {**DINOV2, "depth": 1},
    "dinov2_smaller": {**DINOV2, "depth": 1},
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
    grid = golden_timm.CASES[case][3]
    for name, value in want.items():
        # timm and we resample position embeddings in float32
        limit = (1e-6 if grid else 1e-10) * value.std()
        np.testing.assert_allclose(exact[name], value, rtol=0, atol=limit, err_msg=name)
        error = golden_timm.measure_error(rough[name], exact[name])
        print(case, name, np.abs(exact[name] - value).max() / value.std(), error / read_about()["float32"][case][name])
        assert error < 2 * read_about()["float32"][case][name], name
    features = want["features"]
    assert np.abs(features[0] - features[1]).max() > 0.1 * features.std(), "the images matter"
