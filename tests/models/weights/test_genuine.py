"""Test genuine weights of EfficientNet-Lite0 on photos, from the folder to the logits, against timm."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import published
from nml_jax import runtime
from nml_jax.data.images.transforms import eval_transform
from nml_jax.models import build
from nml_jax.models.weights import files

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_genuine.py"))))


@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_features_and_classes_are_timms(shared_data: Path, mesh, count: int):
    folder = shared_data / "efficientnet_lite0"
    config = published.get_config(str(folder))
    model = build(config.model, num_classes=files.count_classes(folder), image_size=config.data.image_size)
    params, state = files.read_weights(folder, model.shapes)
    transform = eval_transform(config.augment, config.data.image_size)
    photos = np.stack([transform({"image": photo})["image"] for photo in golden.list_photos(shared_data)[:count]])

    def apply(params, state, x):
        outputs = model.apply(params, state, {"image": x}, train=False, key=None)[0]
        return outputs["features"], outputs["logits"]

    encode = runtime.jit(apply, mesh)
    found = [jax.device_get(encode(params, state, photos[i : i + 4])) for i in range(0, count, 4)]
    features, logits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    want = np.load(golden.FILE)
    np.testing.assert_array_equal(logits.argmax(1), want["classes"][:count])
    ours, theirs = golden.project(features), want["features"][:count]
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    assert np.linalg.norm(theirs[0] - theirs[1]) > 0.1 * np.linalg.norm(theirs[0]), "the photos matter"
