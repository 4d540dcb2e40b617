import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import resnet50_in1k, vitb16_in1k
from configs.common import get_config
from nml_jax import objectives, settings
from nml_jax.errors import UserError
from nml_jax.training import optim
from nml_jax.training.leaves import name_leaves

# A kernel that decays and a bias that does not, by the default patterns.
PARAMS = {"head": {"kernel": np.array([[0.5, -2.0], [1.0, 0.25]]), "bias": np.array([0.1, -0.3])}}
GRADS = [
    {"head": {"kernel": np.array([[0.1, -0.2], [0.3, 0.4]]), "bias": np.array([-1.0, 0.5])}},
    {"head": {"kernel": np.array([[-0.3, 0.1], [0.0, 2.0]]), "bias": np.array([0.2, 0.0])}},
    {"head": {"kernel": np.array([[0.7, 0.7], [-0.1, 0.2]]), "bias": np.array([0.3, 3.0])}},
]
LRS = [0.02, 0.05, 0.05 * 0.5 * (1 + np.cos(np.pi / 3))]  # one step of warm-up, then a cosine over three


def config(**values) -> ConfigDict:
    c = get_config().optimizer
    c.update({"lr": 0.05, "warmup_lr": 0.02, "warmup_epochs": 1.0, "weight_decay": 0.1, "eps": 1e-3, **values})
    return c


def flatten(tree):
    return {name: np.asarray(x) for name, x in name_leaves(tree).items()}


def train(c, params=PARAMS, grads=GRADS):
    """Return the parameters after each step of the optimiser, in float64: in float32, 1 − β₂ is 3e-5 off."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        tx, _ = optim.make(c, params, steps=4, steps_per_epoch=1)
        state, out = tx.init(params), []
        step = jax.jit(tx.update)
        for g in grads:
            updates, state = step(jax.tree.map(jnp.asarray, g), state, params)
            params = optax.apply_updates(params, updates)
            out.append(flatten(params))
        return out


def compute_reference(rule, decay=0.1, grads=GRADS):
    """Compute the same in NumPy float64, with `rule(memory, step, p, g, wd) -> direction`."""
    params, memory, out = flatten(PARAMS), {}, []
    for t, (lr, g) in enumerate(zip(LRS, grads, strict=True), 1):
        for name, grad in flatten(g).items():
            wd = 0.0 if name.endswith("bias") else decay
            params[name] = params[name] - lr * rule(memory.setdefault(name, {}), t, params[name], grad, wd)
        out.append(dict(params))
    return out


def adam(memory, t, g, b1=0.9, b2=0.999, eps=1e-3):
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
    return memory["m"] / (1 - b1**t) / (np.sqrt(memory["v"] / (1 - b2**t)) + eps)


def adamw_rule(memory, t, p, g, wd):
    return adam(memory, t, g) + wd * p


def lamb_rule(memory, t, p, g, wd):
    u = adam(memory, t, g) + wd * p
    return u * np.linalg.norm(p) / np.linalg.norm(u) if wd else u


def sgd_rule(memory, t, p, g, wd, momentum=0.8, nesterov=False):
    g = g + wd * p
    memory["b"] = momentum * memory.get("b", 0) + g
    return g + momentum * memory["b"] if nesterov else memory["b"]


def assert_same(ours, theirs):
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in b:
            # The schedule is float32: an error of 3e-8 of each step.
            np.testing.assert_allclose(a[name], b[name], rtol=1e-7, atol=1e-8, err_msg=f"{name} after step {step}")


@pytest.mark.parametrize(("name", "rule"), [("adamw", adamw_rule), ("lamb", lamb_rule), ("sgd", sgd_rule)])
def test_three_steps_match_numpy(name, rule):
    assert_same(train(config(name=name, momentum=0.8)), compute_reference(rule))


def test_nesterov():
    ours = train(config(name="sgd", momentum=0.8, nesterov=True))
    assert_same(ours, compute_reference(lambda *a: sgd_rule(*a, nesterov=True)))


def test_lamb_without_decay_is_adam():
    assert_same(train(config(name="lamb", weight_decay=0.0)), compute_reference(adamw_rule, decay=0.0))


def test_lamb_of_a_zero_parameter_moves():
    zero = {"w": np.zeros(3)}
    got = train(config(name="lamb", decay=((".*", 1.0),)), zero, [{"w": np.ones(3)}])[0]["w"]
    np.testing.assert_allclose(got, -0.02 / (1 + 1e-3), rtol=1e-7)


def test_decay_is_multiplied_by_its_pattern_and_the_first_match_wins():
    c = config(weight_decay=0.1, decay=((r".*/bias", 3.0), (r"head/.*", 0.5)))
    got = train(c, grads=[jax.tree.map(np.zeros_like, PARAMS)])[0]
    np.testing.assert_allclose(got["head/bias"], PARAMS["head"]["bias"] * (1 - 0.02 * 0.3), rtol=1e-7)
    np.testing.assert_allclose(got["head/kernel"], PARAMS["head"]["kernel"] * (1 - 0.02 * 0.05), rtol=1e-7)


def test_default_patterns_name_what_does_not_decay():
    params = {
        "cls": 0,
        "pos_embed": 0,
        "norm": {"scale": 0, "bias": 0},
        "conv": {"kernel": 0},
        "cls_head": {"kernel": 0},
    }
    names = list(flatten(params))
    got = optim._find_multipliers("optimizer.decay", get_config().optimizer.decay, names)
    assert {name for name in names if got[name]} == {"conv/kernel", "cls_head/kernel"}


def test_lr_mult_scales_the_whole_step():
    plain, tenth = train(config()), train(config(lr_mult=((r".*/bias", 0.1), (".*", 1.0))))
    np.testing.assert_array_equal(plain[0]["head/kernel"], tenth[0]["head/kernel"])
    moved = plain[0]["head/bias"] - PARAMS["head"]["bias"]
    np.testing.assert_allclose(tenth[0]["head/bias"] - PARAMS["head"]["bias"], 0.1 * moved, rtol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_frozen_parameters_stay_and_cost_nothing(name):
    c = config(name=name, lr_mult=((r".*/kernel", 0.0), (".*", 1.0)), clip_norm=0.5)
    params = jax.tree.map(jnp.float32, PARAMS)
    tx, _ = optim.make(c, params, steps=4, steps_per_epoch=1)
    assert all(np.shape(x) != (2, 2) for x in jax.tree.leaves(tx.init(params)))
    # Infinite gradients of frozen parameters reach neither these nor, by the clipping, the others.
    bias_grad = np.array([-1.0, 0.5])
    got = train(c, grads=[{"head": {"kernel": np.full((2, 2), np.inf), "bias": bias_grad}}])[0]
    np.testing.assert_array_equal(got["head/kernel"], PARAMS["head"]["kernel"])
    c = config(name=name, clip_norm=0.5, decay=((".*", 0.0),))
    alone = train(c, {"head": {"bias": PARAMS["head"]["bias"]}}, [{"head": {"bias": bias_grad}}])[0]
    np.testing.assert_array_equal(got["head/bias"], alone["head/bias"])


def test_clip_is_by_the_global_norm():
    c = config(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=1.0)
    grads = {"head": {"kernel": np.array([[2.0, 0.0], [0.0, 1.0]]), "bias": np.array([2.0, 4.0])}}  # norm 5
    got = train(c, grads=[grads])[0]
    np.testing.assert_allclose(got["head/bias"], PARAMS["head"]["bias"] - 0.02 * np.array([0.4, 0.8]), rtol=1e-7)
    short = train(c, grads=[jax.tree.map(lambda g: g / 10, grads)])[0]
    np.testing.assert_allclose(short["head/bias"], PARAMS["head"]["bias"] - 0.02 * np.array([0.2, 0.4]), rtol=1e-7)


def test_schedule():
    c = config(lr=1.0, warmup_lr=0.1, min_lr=0.2, warmup_epochs=2.5)
    _, schedule = optim.make(c, PARAMS, steps=50, steps_per_epoch=4)  # 10 steps of warm-up, 40 of cosine
    got = [float(schedule(t)) for t in (0, 5, 10, 20, 30, 50, 60)]
    want = [0.1, 0.55, 1.0, 0.2 + 0.4 * (1 + np.cos(np.pi / 4)), 0.6, 0.2, 0.2]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_schedule_without_warmup_starts_at_the_peak():
    schedule = optim.make_schedule(config(warmup_epochs=0.0), steps=10, steps_per_epoch=5)
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [0.05, 0.025, 0.0], atol=1e-9)


def test_warmup_in_steps_takes_the_place_of_epochs():
    c = config(lr=1.0, warmup_lr=0.1, min_lr=0.2, warmup_epochs=99.0, warmup_steps=10)
    schedule = optim.make_schedule(c, steps=50, steps_per_epoch=4)
    np.testing.assert_allclose([schedule(t) for t in (0, 5, 10, 30, 50)], [0.1, 0.55, 1.0, 0.6, 0.2], rtol=1e-6)
    c = config(warmup_epochs=99.0, warmup_steps=0)
    np.testing.assert_allclose(optim.make_schedule(c, steps=10, steps_per_epoch=5)(0), 0.05, rtol=1e-6)


def test_steps_multiply_the_rate_by_gamma_after_each_milestone():
    c = config(lr=1.0, warmup_lr=0.1, warmup_steps=10, schedule="step", milestones=(4.0, 6.5), gamma=0.1)
    schedule = optim.make_schedule(c, steps=40, steps_per_epoch=5)
    got = [float(schedule(t)) for t in (0, 5, 10, 19, 20, 31, 32, 39)]  # 6.5 epochs are 32.5 steps
    np.testing.assert_allclose(got, [0.1, 0.55, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    c = config(lr=1.0, warmup_lr=0.0, warmup_steps=10, schedule="step", milestones=(1.0,), gamma=0.5)
    np.testing.assert_allclose(optim.make_schedule(c, steps=40, steps_per_epoch=5)(5), 0.25, rtol=1e-6)  # both at once
    c = config(lr=1.0, warmup_steps=0, schedule="step", milestones=(1.0,), gamma=0.5)
    np.testing.assert_allclose(optim.make_schedule(c, steps=40, steps_per_epoch=5)(0), 1.0, rtol=1e-6)


LN100 = 4.605170185988092  # the nearest float32 is above it
PLAIN = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0.0, "lr": 1.0, "decay": ((".*", 0.0),)}


@pytest.mark.parametrize("start", [0.1, 1 / 3, 2.659260036932778, 4.6, 1e-30, -7.3, 123.456])
@pytest.mark.parametrize("interval", [(0.0, LN100), (-1e-3, 1000.0), (1 / 3, LN100), (-np.inf, -1e-3)])
def test_a_clamped_parameter_is_within_its_interval_to_the_last_bit(start, interval):
    low, high = interval
    c = config(**PLAIN, clamp=((".*scale", *interval),))
    params = {"logit_scale": jnp.float32(start), "other": jnp.float32(start)}
    tx, _ = optim.make(c, params, steps=4, steps_per_epoch=1)

    @jax.jit
    def step(params, grad):
        updates, _ = tx.update({"logit_scale": grad, "other": grad}, tx.init(params), params)
        return optax.apply_updates(params, updates)

    for grad in (*np.random.default_rng(0).normal(scale=3, size=20), 1e6, -1e6):
        after = step(params, jnp.float32(grad))
        value = float(after["logit_scale"])
        assert low <= value <= high
        free = float(after["other"])
        assert free == np.float32(start) - np.float32(grad)  # no pattern matches it
        target = np.clip(free, low, high)
        assert abs(value - target) <= np.spacing(np.float32(abs(start) + abs(target)))


def test_a_clamped_parameter_leaves_its_bound_at_once():
    c = config(**PLAIN, min_lr=1.0, clamp=((".*", 0.0, LN100),))
    got = [
        float(x["logit_scale"]) for x in train(c, {"logit_scale": 4.0}, [{"logit_scale": g} for g in (-9.0, -9.0, 0.5)])
    ]
    assert got[:2] == [LN100, LN100]
    np.testing.assert_allclose(got[2], LN100 - 0.5, rtol=1e-7)


def test_a_clamp_without_a_match_leaves_the_state_as_it_was():
    trees = []
    for clamp in ((), get_config().optimizer.clamp):
        tx, _ = optim.make(config(clamp=clamp), PARAMS, steps=4, steps_per_epoch=1)
        trees.append(jax.tree.structure(jax.eval_shape(tx.init, PARAMS)))
    assert trees[0] == trees[1]


def test_the_default_clamps_the_logit_scale_alone_and_not_where_it_is_frozen():
    params = {"logit_scale": 9.0, "image": {"kernel": 9.0}}
    c = config(**PLAIN)
    grads = jax.tree.map(np.zeros_like, params)
    got = train(c, params, [grads])[0]
    assert got == {"logit_scale": LN100, "image/kernel": 9.0}
    c = config(**PLAIN, lr_mult=((r"logit_scale", 0.0), (".*", 1.0)))
    assert train(c, params, [grads])[0] == {"logit_scale": 9.0, "image/kernel": 9.0}


def test_shapes_are_enough_to_build_it():
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), PARAMS)
    tx, _ = optim.make(config(), specs, steps=4, steps_per_epoch=1)
    shapes = [x.shape for x in jax.tree.leaves(jax.eval_shape(tx.init, specs))]
    assert shapes.count((2, 2)) == 2  # both moments


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"name": "adam"}, "optimizer.name='adam'"),
        ({"lr": -1.0}, "optimizer.lr=-1.0"),
        ({"min_lr": float("nan")}, "optimizer.min_lr=nan"),
        ({"weight_decay": float("inf")}, "optimizer.weight_decay=inf"),
        ({"b2": 1.0}, "optimizer.b2=1.0"),
        ({"warmup_epochs": 4.0}, "optimizer.warmup_epochs=4.0 is 4 steps, the whole run is 4"),
        ({"warmup_steps": 4}, "optimizer.warmup_steps=4, the whole run is 4"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps=-1 is out of range"),
        ({"schedule": "steps"}, "optimizer.schedule='steps'"),
        ({"gamma": 0.0}, "optimizer.gamma=0.0"),
        ({"schedule": "step"}, "optimizer.milestones=() do not rise"),
        ({"schedule": "step", "warmup_steps": 1, "milestones": (4.0,)}, "within the run of 4 epochs, 4 steps"),
        ({"schedule": "step", "warmup_steps": 1, "milestones": (3.0, 2.0)}, "do not rise"),
        ({"clamp": ((".*", 2.0, 1.0),)}, "low=2.0, high=1.0"),
        ({"clamp": ((".*", float("nan"), 1.0),)}, "low=nan"),
        ({"clamp": ((".*", 1.0),)}, "must be a list of (regex, low, high)"),
        ({"clamp": (("(", 0.0, 1.0),)}, "must be a list of (regex, low, high)"),
        ({"decay": ((r".*/bias", 0.0),)}, "no pattern matches the parameter 'head/kernel'"),
        ({"decay": ((r"hed/.*", 0.0), (".*", 1.0))}, "'hed/.*' matches no parameter"),
        ({"lr_mult": ((".*", 1.0), (r"head/.*", 2.0))}, "or only those of an earlier pattern"),
        ({"lr_mult": ((".*", 0.0),)}, "freezes every parameter"),
        ({"lr_mult": ((".*", -1.0),)}, "multiplier -1.0"),
        ({"lr_mult": (("(", 1.0),)}, "must be a list of (regex, number)"),
        ({"lr_mult": ("abc",)}, "must be a list of (regex, number)"),
    ],
)
def test_bad_values_name_themselves(values, cause):
    with pytest.raises(UserError) as e:
        optim.make(config(**values), PARAMS, steps=4, steps_per_epoch=1)
    assert cause in e.value.cause
    assert e.value.cure


def test_catch_all_may_be_left_with_nothing():
    optim.make(config(lr_mult=((r"head/.*", 1.0), (".*", 0.0))), PARAMS, steps=4, steps_per_epoch=1)


@pytest.mark.parametrize(
    ("load", "batch", "epochs", "lr", "weight_decay", "warmup"),
    [
        (resnet50_in1k.get_config, 2048, 300, 5e-3, 0.02, 5),
        (lambda: resnet50_in1k.get_config("a1"), 2048, 600, 5e-3, 0.01, 5),
        (lambda: resnet50_in1k.get_config("a3"), 2048, 100, 8e-3, 0.02, 5),
        (vitb16_in1k.get_config, 1024, 300, 1e-3, 0.05, 5),
    ],
)
def test_published_recipes(load, batch, epochs, lr, weight_decay, warmup):
    c = load()
    assert c.is_locked
    assert (c.train.batch, c.train.epochs) == (batch, epochs)
    assert (c.optimizer.lr, c.optimizer.weight_decay, c.optimizer.warmup_epochs) == (lr, weight_decay, warmup)
    known, given = (dict(settings.flatten(x.to_dict())) for x in (get_config(), c))
    assert given["sweep.noise"] == (0.0, 0.05, 0.1, 0.2, 0.3)
    assert given.keys() == known.keys()
    objectives.make(c.objective, num_classes=c.data.num_classes)


def test_an_unknown_procedure_is_refused():
    with pytest.raises(UserError, match="a4"):
        resnet50_in1k.get_config("a4")


# ---- layer-wise decay ------------------------------------------------------------------------------------------------


def get_rates(rules) -> dict[str, float]:
    return {pattern.replace("\\", ""): value for pattern, value in rules}


def test_layer_decay_of_a_vit():
    names = ["cls", "pos_embed", "patch/kernel", "norm_pre/scale", "block0/attn/qkv/kernel", "block1/mlp/fc1/bias",
             "block2/norm1/scale", "norm/scale", "head/kernel"]  # fmt: skip
    found = get_rates(optim.decay_layers(nest(names), 0.5))
    assert found == dict(zip(names, [1 / 16] * 4 + [1 / 8, 1 / 4, 1 / 2, 1, 1], strict=True))


def test_layer_decay_of_a_resnet_counts_blocks_through_its_stages():
    names = ["stem_conv/kernel", "stem_bn/scale", "stage1_block0/conv1/kernel", "stage1_block1/bn2/bias",
             "stage2_block0/downsample_conv/kernel", "stage2_block10/conv1/kernel", "stage2_block9/conv1/kernel",
             "pool/pos_embed", "head/bias"]  # fmt: skip
    found = get_rates(optim.decay_layers(nest(names), 0.5))
    powers = [6, 6, 5, 4, 3, 1, 2, 0, 0]
    assert found == dict(zip(names, [0.5**power for power in powers], strict=True))


def test_layer_decay_below_a_prefix_with_a_frozen_part():
    names = ["encoder/base/block0/w", "encoder/base/block1/w", "encoder/lora/block1/w/a", "encoder/text/block7/w",
             "head/w"]  # fmt: skip
    found = get_rates(optim.decay_layers(nest(names), 0.1, frozen=r"encoder/(base|text)/.*"))
    assert found == pytest.approx(dict(zip(names, [0, 0, 0.1, 0, 1], strict=True)))


def test_layer_decay_of_one_leaves_the_rates_alone():
    assert set(get_rates(optim.decay_layers(nest(["patch/kernel", "block0/w", "head/w"]), 1.0)).values()) == {1.0}


@pytest.mark.parametrize("decay", [0.0, -0.1, 1.1, float("nan")])
def test_layer_decay_out_of_range(decay: float):
    with pytest.raises(UserError, match="layer-wise"):
        optim.decay_layers({}, decay)


def nest(names: list[str]) -> dict:
    """Return nested dicts with an array at each name."""
    out: dict = {}
    for name in names:
        *folders, leaf = name.split("/")
        place = out
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = jnp.zeros(2)
    return out


def test_messages_name_the_keys_as_they_are_called_where_they_stand():
    with pytest.raises(UserError, match=r"^mine\.warmup_epochs=5\.0 is 25 steps, the whole run is 4"):
        optim.make_schedule(config(warmup_epochs=5.0), steps=4, steps_per_epoch=5, name_key="mine.{}".format)
