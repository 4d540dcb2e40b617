"""Stochastic depth grows from block to block by the rule of each family; layer scales start where theirs do."""

import flax.linen as nn
import jax
import pytest

from configs.common import get_config
from nml_jax.models import build
from nml_jax.models.layers.layer_scale import LayerScale

LINEAR = (0.0, 0.2, 0.4, 0.6)
# keys of config.model, and the rates of four blocks for drop_path=0.6
FAMILIES = {
    "resnet18": ({"blocks": (2, 2)}, LINEAR),
    "bit_50x1": ({"blocks": (1, 3), "width": 32}, LINEAR),
    "swin_t": ({"blocks": (2, 2), "width": 16, "heads": 2, "window": 2}, LINEAR),
    "convnext_t": ({"blocks": (1, 3), "widths": (4, 8)}, LINEAR),
    "vit_ti": ({"depth": 4, "dim": 12}, LINEAR),
    "vit_s14_dinov2": ({"depth": 4, "dim": 12, "patch": 16}, LINEAR),
    # as in timm and Google's code the last has less than the rate, and the second no residual
    "efficientnet_b0": ({"blocks": (1, 3), "widths": (8, 8, 8, 16)}, (0.0, 0.3, 0.45)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_rates_of_blocks(name: str):
    keys, want = FAMILIES[name]
    config = get_config().model
    config.update({"name": name, **keys, "drop_path": 0.6})
    found: dict[str, float] = {}

    def see(call, args, kwargs, context):
        block = next((part for part in context.module.path if "block" in part), None)
        if isinstance(context.module, nn.Dropout) and block and context.module.broadcast_dims:
            assert found.setdefault(block, context.module.rate) == context.module.rate
        return call(*args, **kwargs)

    with nn.intercept_methods(see):
        model = build(config, num_classes=2, image_size=32)
        jax.eval_shape(lambda key: model.init(key, model.spec), jax.random.key(0))
    assert list(found.values()) == pytest.approx(want)


@pytest.mark.parametrize(("name", "start"), [("convnext_t", 1e-6), ("vit_s14_dinov2", 1e-5)])
def test_layer_scales_start_near_nothing(name: str, start: float):
    """The values are those of the papers' code, with which timm starts too."""
    config = get_config().model
    config.update({"name": name, **FAMILIES[name][0]})
    found = []

    def see(call, args, kwargs, context):
        found.extend([context.module.initial] if isinstance(context.module, LayerScale) else [])
        return call(*args, **kwargs)

    with nn.intercept_methods(see):
        model = build(config, num_classes=2, image_size=32)
        jax.eval_shape(lambda key: model.init(key, model.spec), jax.random.key(0))
    assert set(found) == {start}
