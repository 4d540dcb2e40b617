"""What names parameters knows every family of encoders: layer-wise rates, decay and LoRA's targets."""

import functools
import re

import pytest

from configs.common import get_config
from nml_jax import models
from nml_jax.training import lora, optim
from nml_jax.training.leaves import name_leaves

# Two stages, or two blocks, of each; the kernels that each named target selects, as a regex.
FAMILIES = {
    "resnet50": ({"blocks": (2, 1)}, {"resnet_conv": r"(stem_|downsample_)?conv\d?"}),
    "bit_50x1": ({"blocks": (2, 1)}, {"resnet_conv": r"(stem_|downsample_)?conv\d?"}),
    "efficientnet_b0": (
        {"blocks": (1, 2), "widths": (16, 8, 16, 64)},
        {"resnet_conv": "(stem|expand|project|head)_conv"},
    ),
    "convnext_t": (
        {"blocks": (2, 1), "widths": (8, 16)},
        {"resnet_conv": "(stem|stage2)_conv", "vit_mlp": "fc[12]"},
    ),
    "swin_t": (
        {"blocks": (2, 1)},
        {"vit_attention": "qkv|proj", "vit_mlp": "fc[12]"},
    ),
    "vit_s14_dinov2": ({"depth": 2}, {"vit_attention": "qkv|proj", "vit_mlp": "fc[12]"}),
}


@functools.cache
def name_parameters(family: str) -> dict:
    config = get_config().model
    config.update({"name": family, **FAMILIES[family][0]})
    return models.build(config, num_classes=3, image_size=56).shapes[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_begin_with_the_stem_and_end_with_the_head(family: str):
    rates = {}
    for pattern, rate in optim.decay_layers(name_parameters(family), 0.5):
        rates[pattern.replace("\\", "")] = rate
    blocks = sorted({found[0] for name in rates if (found := re.match(r"(stage\d+_)?block\d+", name))})
    ladder = {block: 0.5 ** (len(blocks) - i) for i, block in enumerate(blocks)}
    for name, rate in rates.items():
        part = name.split("/")[0]
        if part in ladder:
            assert rate == ladder[part], name
        elif part.startswith("stage2_"):
            assert rate == ladder["stage2_block0"], name
        elif part.startswith(("norm", "head")) and part != "norm_pre":
            assert rate == 1, name
        else:
            assert rate == 0.5 ** (len(blocks) + 1), name


@pytest.mark.parametrize("family", FAMILIES)
def test_only_kernels_decay(family: str):
    names = list(name_leaves(name_parameters(family)))
    decay = optim._find_multipliers("optimizer.decay", [(get_config().optimizer.decay[0][0], 0.0), (".*", 1.0)], names)
    assert {name for name, value in decay.items() if value} == {name for name in names if name.endswith("/kernel")}


@pytest.mark.parametrize("family", FAMILIES)
def test_named_targets_select_the_kernels_of_every_family(family: str):
    names = list(name_leaves(name_parameters(family)))
    for target, layer in FAMILIES[family][1].items():
        want = [name for name in names if re.fullmatch(rf"(.*/)?({layer})/kernel", name)]
        assert lora.select(names, (target,)) == want
        assert len(want) >= 2
