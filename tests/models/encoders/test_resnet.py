import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs.common import get_config
from nml_jax.errors import UserError
from nml_jax.models import MODELS, build
from nml_jax.models.encoders.resnet import BatchNorm

PUBLISHED = {"resnet18": 11_689_512, "resnet50": 25_557_032, "resnet101": 44_549_160}


def spec(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {"image": jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8)}


def small(**values):
    """Return the config of the smallest sensible ResNet: 8-px images, one basic block in each of two stages."""
    config = get_config().model
    config.update({"name": "resnet18", "stem": "small", "width": 4, "blocks": (1, 1), **values})
    return config


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name, count):
    config = get_config().model
    config.name = name
    model = build(config, num_classes=1000, image_size=224)
    params, state = jax.eval_shape(lambda key: model.init(key, spec(224)), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype("float32")}
    assert set(state) == {"batch_stats"}


def test_a_wide_image_has_wide_maps():
    model = build(small(), num_classes=5, image_size=(8, 16))
    assert model.spec["image"].shape == (1, 8, 16, 3)
    params, state = model.shapes
    batch = dict(model.spec)
    outputs, _ = jax.eval_shape(lambda p, s, x: model.apply(p, s, x, train=False, key=None), params, state, batch)
    assert outputs["stage2_map"].shape == (1, 4, 8, 8)
    with pytest.raises(UserError, match="ViT takes square images alone"):
        build(small(name="vit_ti", width=None, blocks=None), num_classes=5, image_size=(8, 16))


def test_shapes_of_every_output(draw, images):
    model, params, state = draw(small(blocks=(1, 1, 1)), 8)
    outputs, _ = jax.eval_shape(lambda x: model.apply(params, state, {"image": x}, train=False, key=None), images(2))
    assert {name: value.shape for name, value in outputs.items()} == {
        "stem": (2, 4),
        "stem_map": (2, 8, 8, 4),
        "stage1": (2, 4),
        "stage1_map": (2, 8, 8, 4),
        "stage2": (2, 8),
        "stage2_map": (2, 4, 4, 8),
        "stage3": (2, 16),
        "stage3_map": (2, 2, 2, 16),
        "features": (2, 16),
        "logits": (2, 5),
    }


def test_imagenet_stem_quarters_the_image_and_a_bottleneck_quadruples_the_channels(images):
    config = get_config().model
    config.name = "resnet50"
    model = build(config, num_classes=5, image_size=64)
    shapes = jax.eval_shape(lambda key: model.init(key, spec(64)), jax.random.key(0))
    outputs, _ = jax.eval_shape(
        lambda p, s: model.apply(p, s, {"image": images(2, 64)}, train=False, key=None), *shapes
    )
    assert outputs["stem_map"].shape == (2, 16, 16, 64)
    assert [outputs[f"stage{i}_map"].shape for i in (1, 4)] == [(2, 16, 16, 256), (2, 2, 2, 2048)]


def test_initial_values(compiled):
    model = build(small(width=64), num_classes=5, image_size=8)
    init = compiled(lambda key: model.init(key, spec(8)))
    params, state = init(jax.random.key(0))
    kernel = params["stage2_block0"]["conv2"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)  # Kaiming over fan-out
    bound = 1 / 128**0.5
    head = np.abs(params["head"]["kernel"])
    assert 0.98 * bound < head.max() <= bound
    assert head.mean() == pytest.approx(bound / 2, rel=0.1)
    assert not params["head"]["bias"].any()
    assert not params["stage1_block0"]["bn2"]["scale"].any()  # the last of the block: zero_init_residual
    assert (params["stage1_block0"]["bn1"]["scale"] == 1).all()
    assert (params["stage2_block0"]["downsample_bn"]["scale"] == 1).all()
    assert (state["batch_stats"]["stem_bn"]["var"] == 1).all()

    jax.tree.map(np.testing.assert_array_equal, init(jax.random.key(0)), (params, state))
    other, _ = init(jax.random.key(1))
    assert not np.array_equal(params["head"]["kernel"], other["head"]["kernel"])


def test_without_zero_init_every_scale_starts_at_one():
    model = build(small(blocks=(1,), zero_init_residual=False), num_classes=5, image_size=8)
    params, _ = model.init(jax.random.key(0), spec(8))  # not under jit, as in a notebook
    assert (params["stage1_block0"]["bn2"]["scale"] == 1).all()


def norm(x: np.ndarray, *, train: bool, scale=1.0, bias=0.0, mean=0.0, var=1.0, **fields):
    """Return BatchNorm's output and new statistics."""
    c = x.shape[-1]
    variables = {
        "params": {"scale": np.full(c, scale, np.float32), "bias": np.full(c, bias, np.float32)},
        "batch_stats": {"mean": np.full(c, mean, np.float32), "var": np.full(c, var, np.float32)},
    }
    apply = jax.jit(lambda x: BatchNorm(**fields).apply(variables, x, train, mutable=["batch_stats"]))
    y, new = jax.device_get(apply(x))
    return y, new["batch_stats"]


def reference(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the normalised values, and the mean and unbiased variance averaged over groups, in float64."""
    parts = np.split(x.astype(np.float64), len(x) // group)
    means = [p.mean((0, 1, 2)) for p in parts]
    y = [(p - m) / np.sqrt(p.var((0, 1, 2)) + 1e-5) for p, m in zip(parts, means, strict=True)]
    return np.concatenate(y), np.mean(means, 0), np.mean([p.var((0, 1, 2), ddof=1) for p in parts], 0)


@pytest.mark.parametrize("group", [0, 2, 6])
def test_batch_norm_by_hand(group):
    x = np.random.default_rng(0).normal(3, 2, (6, 2, 3, 4)).astype(np.float32)
    x[:2] += 5  # groups differ
    y, stats = norm(x, train=True, scale=2.0, bias=0.5, mean=0.25, var=4.0, group=group, momentum=0.75)
    want, mean, var = reference(x, group or 6)
    np.testing.assert_allclose(y, 2 * want + 0.5, atol=2e-6)
    np.testing.assert_allclose(stats["mean"], 0.75 * 0.25 + 0.25 * mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.75 * 4.0 + 0.25 * var, rtol=1e-6)


def test_batch_norm_at_test_time_uses_and_keeps_the_running_statistics():
    x = np.random.default_rng(0).normal(size=(2, 2, 2, 3)).astype(np.float32)
    y, stats = norm(x, train=False, scale=2.0, bias=0.5, mean=0.25, var=4.0)
    np.testing.assert_allclose(y, 2 * (x - 0.25) / np.sqrt(4 + 1e-5) + 0.5, rtol=1e-5, atol=1e-6)
    assert (stats["mean"] == 0.25).all()
    assert (stats["var"] == 4).all()


@pytest.mark.parametrize("x", [np.full((4, 2, 2, 1), 1e4, np.float32), np.full((1, 1, 1, 1), 3, np.float32)])
def test_batch_norm_of_a_constant_is_its_bias_with_a_finite_gradient(x):
    y, stats = norm(x, train=True, bias=0.5)
    np.testing.assert_array_equal(y, np.full_like(x, 0.5))
    assert stats["var"] == np.float32(0.9)  # of 1, and the variance is 0 even where n - 1 is
    variables = BatchNorm().init(jax.random.key(0), x, False)
    loss = lambda x: jnp.sum(BatchNorm().apply(variables, x, True, mutable=["batch_stats"])[0] ** 2)  # noqa: E731
    assert np.isfinite(jax.jit(jax.grad(loss))(x)).all()


def test_a_group_of_the_whole_batch_is_no_group(draw, images):
    plain, grouped = draw(small(), 8), draw(small(bn_group=6), 8)
    want, got = plain(images(6), train=True), grouped(images(6), train=True)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_groups_do_not_see_each_other(draw, images):
    """With bn_group, the outputs of the first group are those of a batch that holds it alone."""
    run = draw(small(bn_group=2), 8)
    whole, _ = run(images(6), train=True)
    alone, _ = run(images(6)[:2], train=True)
    np.testing.assert_allclose(whole["logits"][:2], alone["logits"], atol=1e-4)
    together, _ = draw(small(), 8)(images(6), train=True)
    assert np.abs(together["logits"][:2] - alone["logits"]).max() > 0.05


def test_training_changes_the_statistics_and_testing_does_not(draw, images):
    run = draw(small(), 8)
    _, kept = run(images(4))
    _, new = run(images(4), train=True)
    jax.tree.map(np.testing.assert_array_equal, kept, run.state)
    assert jax.tree.structure(new) == jax.tree.structure(run.state)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), new, run.state)))


def test_images_are_normalised_once_and_equally_for_uint8_and_float(draw):
    """On 1x1 images the stem sees (x/255 - mean)/std and a kernel of one tap: everything is known by hand."""
    run = draw(small(blocks=(1,), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)), 1)
    bn, stats = run.params["stem_bn"], run.state["batch_stats"]["stem_bn"]
    x = np.array([1.8, 0.0, -0.3]) @ run.params["stem_conv"]["kernel"][1, 1]
    stem = np.maximum((x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * bn["scale"] + bn["bias"], 0)
    assert stem.any()
    image = np.array([[[[255, 51, 0]]]], np.uint8)
    for pixels in (image, image.astype(np.float32)):
        np.testing.assert_allclose(run(pixels)[0]["stem"][0], stem, atol=1e-6)


def test_bf16_keeps_parameters_statistics_and_outputs_in_float32(draw, images):
    full, half = draw(small(), 8), draw(small(dtype="bfloat16"), 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype("float32")}
    want, _ = full(images(8), train=True)
    got, new_state = half(images(8), train=True)
    assert got["stage2_map"].dtype == jnp.bfloat16
    assert {got[name].dtype for name in ("features", "logits", "stage2")} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(new_state)} == {np.dtype("float32")}
    error = np.abs(got["features"] - want["features"]).max()
    assert 0 < error < 0.1  # eight bits of mantissa


def test_drop_path_scales_what_it_keeps_and_drops_the_rest(draw, images):
    """The last of two blocks has rate 0.25: the branch of an example is either absent or 4/3 as strong."""
    run, full = draw(small(blocks=(2,), drop_path=0.25), 8), draw(small(blocks=(2,)), 8)
    for drawn in (run, full):
        drawn.params["stage1_block1"]["bn2"]["bias"][:] = 50  # a branch so positive that the last ReLU is the identity
    batch = np.repeat(images(4), 64, axis=0)
    want = full(batch, train=True)[0]["features"].mean(1)

    def share(key: int) -> np.ndarray:
        """Return roughly how much of the branch each example got: the rest is small beside 50."""
        return np.asarray(run(batch, train=True, key=jax.random.key(key))[0]["features"].mean(1) / want)

    got = share(0)
    kept = got > 0.5
    assert 0.65 < kept.mean() < 0.85  # 0.75 within 3.7 standard deviations
    assert got[~kept].max() < 0.1
    np.testing.assert_allclose(got[kept], 4 / 3, rtol=0.02)
    np.testing.assert_array_equal(share(0), got)
    assert (share(1) > 0.5).tolist() != kept.tolist()


def test_drop_path_is_off_at_test_time_and_at_rate_zero(draw, images):
    plain, dropping = draw(small(), 8), draw(small(drop_path=0.5), 8)
    key = jax.random.key(3)
    np.testing.assert_array_equal(dropping(images(4), key=key)[0]["logits"], plain(images(4))[0]["logits"])
    want, _ = plain(images(4), train=True)
    np.testing.assert_array_equal(plain(images(4), train=True, key=key)[0]["logits"], want["logits"])


def test_remat_gives_the_same_gradient_and_statistics(draw, images, compiled):
    def run(remat: bool):
        model, params, state = draw(small(drop_path=0.3, remat=remat), 8)

        def loss(params):
            outputs, new = model.apply(params, state, {"image": images(4)}, train=True, key=jax.random.key(1))
            return (outputs["logits"] ** 2).sum(), new

        gradient = jax.grad(loss, has_aux=True)
        assert ("remat" in str(jax.make_jaxpr(gradient)(params))) == remat
        return compiled(gradient)(params)

    got, want = run(True), run(False)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_config_may_be_frozen(draw):
    assert draw(FrozenConfigDict(small()), 8).params["stage2_block0"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "resnet34"),
        ("dtype", "float16"),
        ("stem", "big"),
        ("pool", "max"),
        ("blocks", ()),
        ("blocks", (2, 0)),
        ("blocks", (2, 1.5)),
        ("width", 0),
        ("drop_path", 1.0),
        ("drop_path", float("nan")),
        ("dropout", -0.1),
        ("bn_group", -1),
        ("bn_momentum", 1.5),
        ("std", (0.2, 0.0, 0.2)),
        ("mean", (0.5,)),
    ],
)
def test_wrong_values_are_named(key, value):
    with pytest.raises(UserError) as e:
        build(small(**{key: value}), num_classes=5, image_size=8)
    assert f"model.{key} is {value!r}" in e.value.cause


def test_an_unknown_name_lists_the_right_ones():
    with pytest.raises(UserError) as e:
        build(small(name="resnet34"), num_classes=5, image_size=8)
    assert all(name in e.value.cure for name in MODELS)


def test_a_batch_that_groups_do_not_divide_is_a_user_error_when_traced(draw, images):
    model, params, state = draw(small(bn_group=4), 8)
    with pytest.raises(UserError, match="batch of 6 cannot be split into BatchNorm groups of 4"):
        jax.eval_shape(lambda: model.apply(params, state, {"image": images(6)}, train=True, key=None))


def test_grey_images_are_a_user_error(draw, images):
    model, params, state = draw(small(), 8)
    with pytest.raises(UserError, match=r"\(2, 8, 8, 1\)"):
        model.apply(params, state, {"image": images(2)[..., :1]}, train=False, key=None)
