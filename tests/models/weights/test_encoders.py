"""Test small encoders against timm in float64, and in float32 against how far torch's own float32 is."""

import functools
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from configs.common import get_config
from nml_jax.models import build
from nml_jax.models.weights import openclip, timm
from tests.models.weights.compare import assert_equal

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_encoders.py"))))
MODELS = {
    "tf_efficientnet": {
        "name": "tf_efficientnet_b0",
        "blocks": (1, 1, 1, 2, 2, 2, 1),
        "widths": (8, 8, 8, 16, 24, 32, 48, 80, 320),
    },
    "tf_efficientnet_odd": {"name": "tf_efficientnet_b3", "blocks": (1, 1, 1), "widths": (16, 8, 16, 24, 640)},
    "efficientnet_odd": {"name": "efficientnet_b0", "blocks": (1, 2, 2), "widths": (16, 8, 16, 24, 640)},
    "efficientnet_lite0": {"name": "efficientnet_lite0", "blocks": (1, 1, 1, 2), "widths": (8, 8, 8, 16, 24, 320)},
    "convnext": {"name": "convnext_t", "blocks": (1, 2, 1, 1), "widths": (8, 16, 24, 32)},
    "clip_convnext": {
        **{"name": "clip_convnext_large_d", "blocks": (1, 1, 1, 1), "widths": (8, 16, 24, 32), "hidden": 40},
        **{"embed_dim": 20, "text_context": 5, "text_vocab": 9, "text_width": 8, "text_heads": 2, "text_depth": 1},
    },
    "convnext_mlp_odd": {
        "name": "convnext_l_mlp",
        "blocks": (1, 2, 1, 1),
        "widths": (8, 16, 24, 32),
        "hidden": 48,
    },
}
# In float32 one of each family is enough; without its MLP, ConvNeXt is that of the CLIP.
NARROW = [name if name in ("efficientnet_odd", "convnext_mlp_odd") else pytest.param(name, marks=pytest.mark.slow)
          for name in MODELS]  # fmt: skip
WIDE = [pytest.param(name, marks=pytest.mark.slow) if name == "convnext" else name for name in MODELS]


@functools.cache
def about():
    with safe_open(golden.FILE, framework="np") as f:
        return json.loads(f.metadata()["about"])


def tensors(name: str) -> dict[str, np.ndarray]:
    """Return the state dict of a case, drawn by NumPy, with the statistics of the file."""
    drawn = golden.weights({key: tuple(shape) for key, shape in about()["shapes"][name].items()})
    stored, prefix = load_file(golden.FILE), f"{name}/state/"
    return drawn | {key.removeprefix(prefix): x for key, x in stored.items() if key.startswith(prefix)}


def run(name: str, dtype: str, compiled) -> dict[str, np.ndarray]:
    config = get_config().model
    config.update({**MODELS[name], "dtype": dtype, "mean": golden.MEAN, "std": golden.STD})
    model = build(config, num_classes=golden.CLASSES, image_size=golden.CASES[name][1])
    weights = tensors(name)
    layout = openclip if "image" in model.shapes[0] else timm
    params, state = layout.import_weights(weights, model.shapes)
    back = {key.removeprefix("text."): x for key, x in weights.items() if not key.endswith("tracked")}
    assert_equal(layout.export_weights(params, state), back)
    apply = compiled(lambda p, s, x: model.apply(p, s, {"image": x}, train=False, key=None)[0])
    return jax.device_get(apply(params, state, golden.images(name)))


def compare(name: str, found: dict[str, np.ndarray], measure) -> None:
    """Check `measure(ours, theirs)` < the bound that it returns, for every output in the file."""
    want = {key.partition("/")[2]: x for key, x in load_file(golden.FILE).items() if key.startswith(f"{name}/")}
    want = {key: x for key, x in want.items() if not key.startswith("state/")}
    assert {"stem", "stage1", "features", "embedding" if "clip" in name else "logits"} < want.keys()
    for key, x in want.items():
        assert np.abs(x[0] - x[1]).max() > 0.1 * x.std(), "the images matter"
        error, bound = measure(key, found["hidden" if "mlp" in name and key == "features" else key], x)
        assert error < bound, key


@pytest.mark.parametrize("name", WIDE)
def test_agrees_with_timm(name: str, compiled):
    """Features, logits and every stage: within 1e-10 standard deviations in float64."""
    with jax.enable_x64(True):
        found = run(name, "float64", compiled)
    assert found["features"].dtype == np.float64
    compare(name, found, lambda key, ours, x: (np.abs(ours - x).max(), 1e-10 * x.std()))


@pytest.mark.parametrize("name", NARROW)
def test_float32_is_no_further_off_than_twice_torchs(name: str, compiled):
    bounds = about()["float32"][name]
    compare(name, run(name, "float32", compiled), lambda key, ours, x: (golden.measure(ours, x), 2 * bounds[key]))
