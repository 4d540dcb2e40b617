"""Weights under other preprocessing are told, or refused where nobody can mean it."""

import pytest

from configs import clip_vitb16, digits
from nml_jax.errors import UserError
from nml_jax.training import pretrained


def make(made=None, **overrides):
    config = made or clip_vitb16.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(autouse=True)
def forget_notices():
    pretrained._notice.cache_clear()


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
