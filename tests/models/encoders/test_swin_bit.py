"""Swin and BiT: what training, types and sizes do to them. Their numbers are in test_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from nml_jax.errors import UserError
from nml_jax.models import build
from nml_jax.models.encoders.swin import find_regions, index_positions
from nml_jax.models.layers.layer_scale import LayerScale
from nml_jax.models.variants import TOWERS

SMALL = {
    "swin": ({"name": "swin_t", "width": 8, "blocks": (2,), "heads": 2, "patch": 2, "window": 2}, 8),
    "bit": ({"name": "bit_50x1", "width": 32, "blocks": (2,)}, 8),
}


def small(case: str, **values):
    """Return (config, image size) of a network of one stage with two blocks."""
    config = get_config().model
    config.update({**SMALL[case][0], **values})
    return config, SMALL[case][1]


def test_positions_of_a_window_of_two():
    """Four places; the table's rows are the positions (-1, -1), (-1, 0), ..., (1, 1)."""
    assert index_positions(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_regions_of_four_windows():
    """A side of 4 with windows of 2 rolled by 1: only the last window's places come from four regions."""
    assert find_regions(4, 2, 1).tolist() == [[0, 0, 0, 0], [1, 2, 1, 2], [3, 3, 6, 6], [4, 5, 7, 8]]


@pytest.mark.parametrize("case", SMALL)
def test_bf16_keeps_parameters_and_outputs_in_float32(draw, images, case: str):
    full, half = draw(*small(case)), draw(*small(case, dtype="bfloat16"))
    want, got = full(images(2))[0], half(images(2))[0]
    assert got["stage1_map"].dtype == jnp.bfloat16
    assert {got[name].dtype for name in ("features", "logits", "stage1", "stem")} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype("float32")}
    assert 0 < np.abs(got["features"] - want["features"]).max() < 0.1 * np.std(want["features"])


@pytest.mark.parametrize("case", SMALL)
def test_drop_path_scales_what_it_keeps_and_drops_the_rest(draw, images, case: str):
    """The last of two blocks has rate 0.25; with one branch of it alone, that is absent or 4/3 as strong."""
    batch = np.repeat(images(1), 256, axis=0)
    run, plain = draw(*small(case, drop_path=0.25)), draw(*small(case))
    params = jax.tree.map(np.copy, run.params)
    if case == "swin":
        for block in ("stage1_block0", "stage1_block1"):
            for leaf in jax.tree.leaves(params[block]["mlp"]["fc2"]):
                leaf[:] = 0
    got = run._replace(params=params)(batch, train=True, key=jax.random.key(0))[0]["stage1"]
    want = plain._replace(params=params)(batch[:1])[0]["stage1"]
    without = jax.tree.map(np.copy, params)
    last = without["stage1_block1"]
    for leaf in jax.tree.leaves(last["attn"]["proj"] if case == "swin" else last["conv3"]):
        leaf[:] = 0  # a standardised kernel of zeros is zero
    base = plain._replace(params=without)(batch[:1])[0]["stage1"]
    change = np.asarray(got - base)
    kept = np.abs(change).max(1) > 1e-3
    assert 0.65 < kept.mean() < 0.85  # 0.75 within 3.7 standard deviations
    np.testing.assert_allclose(change[kept], np.repeat((want - base) * 4 / 3, kept.sum(), 0), atol=2e-3)


def make_loss(draw, images, case: str, **values):
    """Return (a loss of the parameters, parameters) of a network of one block in training."""
    model, params, state = draw(*small(case, blocks=(1,), **values))

    def loss(params):
        outputs, _ = model.apply(params, state, {"image": images(2)}, train=True, key=None)
        return (outputs["logits"] ** 2).sum()

    return loss, params


@pytest.mark.parametrize("case", SMALL)
def test_remat_is_asked_for(draw, images, case: str):
    for remat in (True, False):
        loss, params = make_loss(draw, images, case, remat=remat)
        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(params))) == remat


@pytest.mark.parametrize("case", SMALL)
def test_every_parameter_has_a_gradient(draw, images, compiled, case: str):
    loss, params = make_loss(draw, images, case)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(compiled(jax.grad(loss))(params)))


def test_sizes_that_do_not_fit_are_user_errors(draw, images):
    with pytest.raises(UserError, match="9 pixels cannot be cut into patches of 2"):
        build(small("swin")[0], num_classes=5, image_size=9)
    with pytest.raises(UserError, match=r"width of 8 \(model.width\) cannot be split over 3 heads"):
        build(small("swin", heads=3)[0], num_classes=5, image_size=8)
    with pytest.raises(UserError, match="window"):
        build(small("swin", window=0)[0], num_classes=5, image_size=8)
    with pytest.raises(UserError, match=r"48 channels \(model.width\) cannot be split into 32 groups"):
        build(small("bit", width=48)[0], num_classes=5, image_size=8)
    model, params, state = draw(*small("swin"))
    with pytest.raises(UserError, match="built for 8x8 pixels got images of 12x12"):
        model.apply(params, state, {"image": images(2, 12)}, train=False, key=None)
    model, params, state = draw(*small("bit"))
    outputs = jax.eval_shape(lambda: model.apply(params, state, {"image": images(2, 12)}, train=False, key=None)[0])
    assert outputs["stage1_map"].shape == (2, 3, 3, 128)


def test_layer_scale():
    scale = LayerScale(1e-5)
    params = scale.init(jax.random.key(0), np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(params["params"]["scale"], np.full(3, 1e-5, np.float32))
    found = scale.apply({"params": {"scale": jnp.arange(3.0)}}, np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found, [[0, 1, 2]] * 2)
    assert TOWERS["vit_s14_dinov2"].make.keywords["layer_scale"] == 1e-5


@pytest.mark.parametrize("name", ["swin_t", "bit_50x1"])
def test_initial_values(compiled, name: str):
    """Kernels of Swin are N(0, 0.02²), of BiT He's; every scale is 1, every bias 0."""
    config = get_config().model
    config.update({"name": name, "width": 32, "blocks": (1,), "heads": 4, "window": 7})
    model = build(config, num_classes=400, image_size=56)
    params, _ = compiled(lambda key: model.init(key, model.spec))(jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if "position" in where or "qkv/kernel" in where:
            assert float(leaf.std()) == pytest.approx(0.02, rel=0.2), where
        elif where.endswith("scale"):
            np.testing.assert_array_equal(leaf, np.float32(1), where)
        elif where.endswith("bias"):
            assert not leaf.any(), where
        elif name == "bit_50x1" and "conv" in where:
            fan_out = leaf.size // leaf.shape[-2]
            assert float(leaf.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), where
    spread = 0.02 if name == "swin_t" else 0.01
    assert float(params["head"]["kernel"].std()) == pytest.approx(spread, rel=0.1)
