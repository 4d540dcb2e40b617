"""LoRA in parameter space: the start is the identity, factors merge, only factors train, targets select kernels."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from nml_jax import models
from nml_jax.errors import UserError
from nml_jax.training import lora, optim

KEY = jax.random.key(0)
IMAGES = {"image": np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)}


def build_tiny(name: str) -> models.Model:
    config = common.get_config().model
    with config.unlocked():
        config.update({"stem": "small", "width": 4, "blocks": (1, 1), "patch": 4, "dim": 8, "depth": 2, "heads": 2,
                       "zero_init_residual": False})  # fmt: skip
        config.name = name
    return models.build(config, num_classes=3, image_size=8)


@functools.cache
def init_tiny(name: str):
    """Return (model, params, model_state)."""
    model = build_tiny(name)
    return model, *jax.device_get(model.init(KEY, model.spec))


ADAPTED = {
    "vit_ti": ("vit_attention", "vit_mlp"),
    "resnet18": ("resnet_conv",),
}


def draw_factors(factors):
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: np.float32(x + 0.3 * rng.normal(size=x.shape)), factors)


def run_model(model: models.Model, params, state):
    return jax.jit(lambda p, s: model.apply(p, s, IMAGES, train=False, key=None)[0])(params, state)


@pytest.mark.parametrize("name", ADAPTED)
def test_the_start_is_the_model_to_the_bit(name: str):
    model, plain, plain_state = init_tiny(name)
    adapted = lora.adapt_model(model, rank=2, alpha=8.0, targets=ADAPTED[name])
    params, state = adapted.init(KEY, adapted.spec)
    jax.tree.map(np.testing.assert_array_equal, (params["base"], state), (plain, plain_state))
    assert all(np.any(x) for path, x in jax.tree_util.tree_leaves_with_path(params["lora"]) if path[-1].key == "a")
    theirs = run_model(model, plain, plain_state)
    jax.tree.map(np.testing.assert_array_equal, run_model(adapted, params, state), theirs)


@pytest.mark.parametrize("name", ADAPTED)
def test_merged_weights_give_the_same_outputs(name: str):
    model, base, state = init_tiny(name)
    adapted = lora.adapt_model(model, rank=2, alpha=3.0, targets=ADAPTED[name])
    factors = draw_factors(lora.init(KEY, base, rank=2, targets=ADAPTED[name]))
    params = {"base": base, "lora": factors}
    merged = jax.device_get(lora.merge(params["base"], params["lora"], 1.5))
    ours = run_model(adapted, params, state)
    theirs = run_model(model, merged, state)
    untouched = run_model(model, params["base"], state)
    for output in ("logits", "features"):
        assert np.abs(ours[output] - theirs[output]).max() <= 1e-6 * np.abs(theirs[output]).max()
        assert np.abs(ours[output] - untouched[output]).max() > 1e-2  # the factors have an effect


def test_merging_a_convolution_by_hand():
    rng = np.random.default_rng(1)
    W = rng.normal(size=(3, 2, 4, 5)).astype(np.float32)
    a, b = rng.normal(size=(24, 3)).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)
    params = {"conv": {"kernel": jnp.array(W), "bias": jnp.ones(5)}, "other": {"kernel": jnp.ones((2, 2))}}
    out = lora.merge(params, {"conv": {"kernel": {"a": jnp.array(a), "b": jnp.array(b)}}}, 0.25)
    expected = W.astype(np.float64)
    for i, j, c in np.ndindex(3, 2, 4):
        expected[i, j, c] += 0.25 * np.float64(a[(i * 2 + j) * 4 + c]) @ np.float64(b)
    np.testing.assert_allclose(out["conv"]["kernel"], expected, atol=1e-6)
    assert out["conv"]["bias"] is params["conv"]["bias"]
    assert out["other"]["kernel"] is params["other"]["kernel"]


@pytest.mark.parametrize("name", ADAPTED)
def test_only_the_factors_learn(name: str):
    plain, base, state = init_tiny(name)
    model = lora.adapt_model(plain, rank=2, alpha=8.0, targets=ADAPTED[name])
    params = {"base": base, "lora": lora.init(KEY, base, rank=2, targets=ADAPTED[name])}
    section = common.get_config().optimizer
    with section.unlocked():
        section.lr, section.warmup_epochs, section.clamp = 0.01, 0.0, ()
        section.lr_mult = ((r"base/.*", 0.0), (r".*", 1.0))
        section.decay = ((r".*", 1.0),)
    tx, _ = optim.make(section, params, steps=5, steps_per_epoch=1)
    opt_state = tx.init(params)
    moments = sum(x.size for x in jax.tree.leaves(opt_state))
    assert moments <= 2 * count(params["lora"]) + 4  # and counters; none of the base

    @jax.jit
    def step(params, opt_state):
        def loss(p):
            logits = model.apply(p, state, IMAGES, train=True, key=None)[0]["logits"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, np.arange(16) % 3).mean()

        grads = jax.grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, grads

    before = jax.device_get(params)
    for _ in range(3):
        params, opt_state, grads = step(params, opt_state)
    assert not any(np.any(g) for g in jax.tree.leaves(grads["base"]))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params["base"]), before["base"])
    for old, new in zip(jax.tree.leaves(before["lora"]), jax.tree.leaves(params["lora"]), strict=True):
        assert np.any(old != new)


def count(factors) -> int:
    return sum(x.size for x in jax.tree.leaves(factors))


def test_counts():
    vit = init_tiny("vit_ti")[1]
    one = {"vit_attention": (8 + 24) + (8 + 8), "vit_mlp": (8 + 32) + (32 + 8)}  # rows + columns of dim 8
    for target, sides in one.items():
        assert count(lora.init(KEY, vit, rank=3, targets=(target,))) == 3 * 2 * sides
    resnet = init_tiny("resnet18")[1]
    sides = (27 + 4) + 2 * (36 + 4) + (36 + 8) + (72 + 8) + (4 + 8)  # stem, stage 1, stage 2 with its shortcut
    assert count(lora.init(KEY, resnet, rank=2, targets=("resnet_conv",))) == 2 * sides
    assert count(lora.init(KEY, resnet, rank=3, targets=(r"head/kernel",))) == 3 * (8 + 3)


def test_targets_of_clip_are_those_of_the_image_tower():
    names = [f"{tower}/block0/{part}/kernel" for tower in ("image", "text") for part in ("attn/qkv", "mlp/fc1")]
    assert lora.select(names, ("vit_attention", "vit_mlp")) == names[:2]


@pytest.mark.parametrize(
    ("rank", "targets", "cause"),
    [
        (2, ("vit_mlp",), "'vit_mlp' matches no parameter"),
        (2, ("resnet_conv", "stage9.*"), "'stage9.*' matches no parameter"),
        (2, (), "no targets"),
        (2, ("(",), "is not a regex"),
        (2, (r"head/bias",), "'head/bias' of shape (3,)"),
        (4, (r"head/kernel",), "rank 4 on 'head/kernel', a matrix of 8 × 3"),
        (0, (r"head/kernel",), "rank 0"),
    ],
)
def test_what_cannot_be_adapted_is_refused(rank: int, targets: tuple[str, ...], cause: str):
    params = init_tiny("resnet18")[1]
    with pytest.raises(UserError, match=re.escape(cause)):
        lora.init(KEY, params, rank=rank, targets=targets)
