"""Weights under other preprocessing are told, or refused where nobody can mean it."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import clip_vitb16, common, digits, published
from nml_jax import console, models
from nml_jax.errors import UserError
from nml_jax.models.weights import timm
from nml_jax.training import pretrained


def make(made=None, **overrides):
    config = made or clip_vitb16.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(autouse=True)
def forget_notices():
    console.notice_once.cache_clear()


def test_a_difference_is_a_line(capsys):
    theirs = make(**{"model.mean": (0.5, 0.5, 0.5), "model.std": (0.5, 0.5, 0.5), "data.image_size": 160})
    pretrained.compare_preprocessing("runs/a", theirs, make())
    assert capsys.readouterr().err.strip() == (
        "init_from=runs/a was trained otherwise: model.mean was (0.5, 0.5, 0.5) and is (0.48145466, 0.4578275, "
        "0.40821073); model.std was (0.5, 0.5, 0.5) and is (0.26862954, 0.26130258, 0.27577711); "
        "data.image_size was 160 and is 224"
    )
    pretrained.compare_preprocessing("runs/a", make(**{"model.pool": "gap"}), make())
    assert "model.pool was gap and is cls" in capsys.readouterr().err


def test_equal_preprocessing_is_no_line(capsys):
    pretrained.compare_preprocessing("runs/a", make(), make())
    pretrained.compare_preprocessing("runs/a", make(**{"model.patch": 16}), make())  # the variant's own
    resnet = digits.get_config()
    pretrained.compare_preprocessing("runs/a", make(digits.get_config(), **{"model.quick_gelu": True}), resnet)
    assert not capsys.readouterr().err


def test_another_activation_cannot_be_meant():
    with pytest.raises(UserError, match=r"model\.quick_gelu was True and is False") as e:
        pretrained.compare_preprocessing("runs/a", make(**{"model.quick_gelu": True}), make())
    assert e.value.cure == "set --config.model.quick_gelu=True"


def test_what_is_assumed_of_a_file():
    text = pretrained.describe_preprocessing(make())
    assert "model.mean=(0.48145466, 0.4578275, 0.40821073)" in text
    assert "model.quick_gelu=False" in text
    assert "augment.test_crop=1.0, augment.interpolation=bicubic, augment.resize=shortest" in text
    text = pretrained.describe_preprocessing(make(digits.get_config(), **{"model.name": "tf_efficientnet_b0"}))
    assert "model.epsilon=0.001, model.padding=same" in text
    assert "pool" not in pretrained.describe_preprocessing(digits.get_config())


@pytest.fixture
def published_folder(tmp_path):
    """A published ConvNeXt with a head of 21 classes."""
    config = common.get_config()
    config.model.update({"name": "convnext_t", "blocks": (1,), "widths": (4,)})
    params, state = models.build(config.model, num_classes=21, image_size=8).shapes
    weights = timm.export_weights(*jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), (params, state)))
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    own = {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bicubic"}
    arguments = {"depths": [1], "dims": [4]}
    text = {"architecture": "convnext_tiny", "pretrained_cfg": own, "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(text))
    return tmp_path


def test_a_published_head_for_other_classes_starts_fresh(published_folder, capsys):
    config = published.get_config(str(published_folder))
    key, model = jax.random.key(0), models.build(config.model, num_classes=10, image_size=8)
    params, state = pretrained.load_weights(config.init_from, config, model, key)
    assert "has a head for 21 classes, and this model has 10: the head starts fresh" in capsys.readouterr().err
    np.testing.assert_array_equal(params["head"]["kernel"], model.init(key, model.spec)[0]["head"]["kernel"])
    np.testing.assert_array_equal(params["stem_conv"]["bias"], np.full(4, 0.5))
    assert state == {}
    with pytest.raises(UserError, match="has a head for 21 classes") as e:
        pretrained.load_weights(config.init_from, config, model, key, head_for="logits")
    assert e.value.cure == "set --config.data.num_classes=21"
    assert pretrained.count_classes(config.init_from) == 21


def test_nothing_random_is_drawn_that_is_not_used(published_folder, monkeypatch):
    config = published.get_config(str(published_folder))
    model = models.build(config.model, num_classes=21, image_size=8)
    assert model.shapes  # traced before
    monkeypatch.setattr(pretrained, "_draw_leaves", None)
    params, _ = pretrained.load_weights(config.init_from, config, model, jax.random.key(0))
    assert {float(leaf.min()) for leaf in jax.tree.leaves(params)} == {0.5}


def test_weights_that_do_not_fit_name_the_key_that_the_folder_says(published_folder):
    config = published.get_config(str(published_folder))
    with config.unlocked():
        config.model.widths = (8,)
    model = models.build(config.model, num_classes=21, image_size=8)
    with pytest.raises(UserError, match=r"head.norm.bias is \(4,\) and not \(8,\)") as e:
        pretrained.load_weights(config.init_from, config, model, jax.random.key(0))
    assert e.value.cure == "set what the folder's config says: --config.model.widths=(4,)"
