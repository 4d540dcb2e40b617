"""EfficientNet and ConvNeXt: outputs, types, stochastic depth, remat, statistics of groups, and wrong sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from nml_jax.errors import UserError
from nml_jax.models import build
from nml_jax.models.encoders.efficientnet import scale_blocks, scale_widths

EFFICIENTNET = {"name": "efficientnet_b0", "blocks": (1, 2), "widths": (8, 8, 8, 16)}
CONVNEXT = {"name": "convnext_t", "blocks": (1, 1), "widths": (4, 8)}


def config(**values):
    out = get_config().model
    out.update(values)
    return out


def shapes(size=33, **values):
    model = build(config(**values), num_classes=5, image_size=size)
    apply = lambda p, s, b: model.apply(p, s, b, train=False, key=None)[0]  # noqa: E731
    return jax.eval_shape(apply, *model.shapes, {"image": jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs(dtype):
    outputs = {name: (x.shape, x.dtype.name) for name, x in shapes(**EFFICIENTNET, dtype=dtype).items()}
    assert outputs == {
        **{"stem_map": ((2, 17, 17, 8), dtype), "stage1_map": ((2, 17, 17, 8), dtype)},
        **{"stage2_map": ((2, 9, 9, 8), dtype), "stem": ((2, 8), "float32"), "stage1": ((2, 8), "float32")},
        **{"stage2": ((2, 8), "float32"), "features": ((2, 16), "float32"), "logits": ((2, 5), "float32")},
    }
    outputs = {name: (x.shape, x.dtype.name) for name, x in shapes(**CONVNEXT, hidden=6, dtype=dtype).items()}
    assert outputs == {
        **{"stem_map": ((2, 8, 8, 4), dtype), "stage1_map": ((2, 8, 8, 4), dtype), "hidden": ((2, 6), "float32")},
        **{"stage2_map": ((2, 4, 4, 8), dtype), "stem": ((2, 4), "float32"), "stage1": ((2, 4), "float32")},
        **{"stage2": ((2, 8), "float32"), "features": ((2, 8), "float32"), "logits": ((2, 5), "float32")},
    }


def test_scaling_is_that_of_the_paper():
    """Values are those of timm's tf_efficientnet_b3."""
    assert scale_blocks(1.4) == (2, 3, 3, 5, 5, 6, 2)
    assert scale_widths(1.2) == (40, 24, 32, 48, 96, 136, 232, 384, 1536)


def test_stochastic_depth_depends_on_the_key(draw, images):
    keys = {"blocks": (2,), "widths": (8, 8, 16)}
    model, plain = (draw(config(**EFFICIENTNET | keys, drop_path=rate), 16) for rate in (0.9, 0.0))
    x = images(8, 16)
    one, same, other = (model(x, train=True, key=jax.random.key(k))[0]["features"] for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(model(x)[0]["features"], plain(x)[0]["features"])


def test_groups_of_batch_norm_have_their_own_statistics(draw, images):
    x, keys = images(4, 16), EFFICIENTNET | {"blocks": (1,), "widths": (8, 8, 16)}
    groups, whole = (draw(config(**keys, bn_group=group), 16) for group in (2, 0))
    ours = groups(x, train=True)[0]["features"]
    np.testing.assert_allclose(ours[:2], whole(x[:2], train=True)[0]["features"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "keys",
    [EFFICIENTNET | {"blocks": (1,), "widths": (8, 8, 16)}, CONVNEXT | {"blocks": (1,), "widths": (4,)}],
    ids=["efficientnet", "convnext"],
)
def test_remat_is_asked_for(keys, draw, images):
    for remat in (True, False):
        model, params, state = draw(config(**keys, remat=remat), 16)

        def loss(params, model=model, state=state):
            return model.apply(params, state, {"image": images(2, 16)}, train=True, key=None)[0]["features"].sum()

        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(params))) == remat


@pytest.mark.slow
@pytest.mark.parametrize("keys", [EFFICIENTNET, CONVNEXT], ids=["efficientnet", "convnext"])
def test_remat_changes_nothing(keys, draw, images, compiled):
    values = []
    for remat in (False, True):
        model = draw(config(**keys, remat=remat), 16)

        def loss(params, state, model=model.model):
            outputs, new = model.apply(params, state, {"image": images(4, 16)}, train=True, key=None)
            return jnp.sum(outputs["logits"] ** 2), (outputs["features"], new)

        values.append(compiled(jax.value_and_grad(loss, has_aux=True))(model.params, model.state))
    for one, other in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (EFFICIENTNET | {"widths": (8, 8, 8)}, "has 3 numbers for 2 stages"),
        (EFFICIENTNET | {"blocks": (1,) * 8}, "has 8 stages"),
        (CONVNEXT | {"widths": (8,)}, "has 1 numbers for 2 stages"),
        (EFFICIENTNET | {"padding": "valid"}, "model.padding is 'valid'"),
        (EFFICIENTNET | {"epsilon": 0.0}, "model.epsilon is 0.0"),
        (CONVNEXT | {"hidden": -1}, "model.hidden is -1"),
        (CONVNEXT | {"size": 7}, "images of 7x7 pixels cannot be reduced 8-fold"),
    ],
)
def test_wrong_values_are_one_line(keys, said):
    with pytest.raises(UserError, match=said):
        shapes(**keys)
