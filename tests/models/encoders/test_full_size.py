"""Encoders at their published sizes, by shapes alone: names and shapes of the published weights."""

import json
import math
from pathlib import Path

import jax
import pytest

from configs.common import get_config
from nml_jax.models import build
from nml_jax.models.architectures import TIMM
from nml_jax.models.variants import MODELS, Input
from nml_jax.models.weights import timm
from nml_jax.models.weights.state_dict import find_places

PUBLISHED = (
    pytest.param("tf_efficientnet_b3.ns_jft_in1k", marks=pytest.mark.slow),
    pytest.param("efficientnet_b0.ra_in1k", marks=pytest.mark.slow),  # test_export.py has those of tf_efficientnet_b0
    "convnext_tiny.fb_in1k",
    pytest.param("convnext_large_mlp.clip_laion2b_augreg", marks=pytest.mark.slow),
    "swin_tiny_patch4_window7_224.ms_in1k",
    pytest.param("swin_large_patch4_window7_224.ms_in22k", marks=pytest.mark.slow),
    pytest.param("resnetv2_50x1_bit.goog_in21k", marks=pytest.mark.slow),  # also in test_export.py
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
    theirs = {key: shape for key, shape in about["keys"].items() if not key.endswith("num_batches_tracked")}
    assert {place.name: list(place.shape) for place in places} == theirs
    assert sum(x.size for x in jax.tree.leaves(params)) == about["params"]
    if "vit_large" not in name:  # others' weights of this size have OpenAI's pixels
        given = about["preprocessing"]
        own = Input(
            given["input_size"][1],
            given["crop_pct"],
            given["interpolation"],
            (tuple(given["mean"]), tuple(given["std"])),
        )
        assert MODELS[row.name].input == own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("clip_convnext_base_w", 179_385_345), ("clip_convnext_large_d", 351_772_609), ("clip_vitl14", 427_616_513)],
)
def test_two_towers_have_the_parameters_of_the_published_ones(name: str, count: int):
    """Counts are those of open_clip 3.3.0's models of the same names."""
    config = get_config().model
    config.update({"name": name})
    params, _ = build(config, num_classes=0, image_size=MODELS[name].input.size).shapes
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == count
