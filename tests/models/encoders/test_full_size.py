"""Swin, BiT and ViT at their published sizes, by shapes alone: names and shapes of the published weights."""

import json
import math
from pathlib import Path

import pytest

from configs.common import get_config
from nml_jax.models import build
from nml_jax.models.architectures import TIMM
from nml_jax.models.weights import timm
from nml_jax.models.weights.state_dict import find_places

PUBLISHED = (
    "swin_tiny_patch4_window7_224.ms_in1k",
    pytest.param("swin_large_patch4_window7_224.ms_in22k", marks=pytest.mark.slow),
    "resnetv2_50x1_bit.goog_in21k",
    pytest.param("resnetv2_152x2_bit.goog_in21k", marks=pytest.mark.slow),
    pytest.param("vit_base_patch16_clip_224.laion2b", marks=pytest.mark.slow),
    "vit_large_patch14_clip_224.laion2b",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_the_published_weights(name: str, shared_data: Path):
    about = json.loads((shared_data / "encoder_keys.json").read_text("utf-8"))[name]
    row = TIMM[name.partition(".")[0]]
    config = get_config().model
    keys = {key.removeprefix("model."): value for key, value in row.keys.items() if key.startswith("model.")}
    config.update({"name": row.name, **keys})
    classes = about["keys"][about["pretrained_cfg"]["classifier"] + ".bias"][0]
    params, state = build(config, num_classes=classes, image_size=about["preprocessing"]["input_size"][1]).shapes
    places = find_places(params, state, timm.choose_names(params)).values()
    assert {place.name: list(place.shape) for place in places} == about["keys"]
    assert sum(math.prod(place.shape) for place in places) == about["params"]
