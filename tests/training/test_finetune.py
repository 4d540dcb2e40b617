"""The classifier that is fine-tuned: its parts, its start, what is frozen, and interpolation."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from configs import common
from nml_jax import runtime, settings
from nml_jax.errors import UserError
from nml_jax.models.heads import mlp as heads
from nml_jax.training import finetune, loop, optim
from tests.scenes.meshes import mesh_of

MODELS = {
    "resnet18": {"stem": "small", "width": 4, "blocks": (1, 1), "zero_init_residual": False},
    "vit_ti": {"patch": 4, "dim": 8, "depth": 2, "heads": 2},
    "clip": {"tower": "vit_ti", "patch": 4, "dim": 8, "depth": 1, "heads": 2, "embed_dim": 6, "text_width": 8,
             "text_depth": 1, "text_heads": 2, "text_context": 8, "text_vocab": 32},
}  # fmt: skip
TARGETS = {"resnet18": ("resnet_conv",), "vit_ti": ("vit_mlp",), "clip": ("vit_mlp",)}
rng = np.random.default_rng(0)
BATCH = {
    "image": rng.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8), "label": np.arange(16, dtype=np.int32) % 3,
    "id": np.arange(16, dtype=np.int32), "mask": np.ones(16, np.float32),
}  # fmt: skip
KEY = jax.random.key(5)


def one() -> Mesh:
    """Make a mesh of one device, for which programs compile fastest; the stage's test uses two."""
    return mesh_of(1)


def sections(name: str, **tuning) -> tuple[FrozenConfigDict, FrozenConfigDict]:
    config = common.get_config()
    with config.unlocked():
        config.model.update({"name": name, **MODELS[name]})
        config.finetune.update({"rank": 2, "targets": TARGETS[name], **tuning})
    model, own = settings.freeze_sections(config.model, config.finetune)
    return model, own


def setup(method: str, terms: str = "none", *, mlp: bool = False, layer: str = "features") -> finetune.Setup:
    return finetune.Setup(method, terms, heads.Form(mlp), layer, 3, 8)


@functools.cache
def program(name: str, made: finetune.Setup, **tuning) -> loop.Program:
    return finetune.build(*sections(name, **tuning), made, 0.01, loop.Plan(4, 2.0), one())


@functools.cache
def encoder(name: str):
    """Return (params, model_state) of a pre-trained encoder, on the host."""
    model = finetune.build_classifier(*sections(name), setup("full"))
    params, state = model.init(jax.random.key(11), model.spec)
    return jax.device_get((params["encoder"], state["encoder"]))


def begin(name: str, made: finetune.Setup, head=None, noisytune: float = 0.0, **tuning):
    return finetune.start(program(name, made, **tuning), encoder(name), head, one(), KEY, noisytune)


def after(name: str, made: finetune.Setup, steps: int = 2, **tuning):
    """Return parameters and statistics at the start and after some steps, on the host, and the last metrics."""
    state, metrics = begin(name, made, **tuning), {}
    first = jax.device_get((state.params, state.model_state))
    for _ in range(steps):
        state, metrics = program(name, made, **tuning).step(state, runtime.put_batch(one())(BATCH))
    return first, jax.device_get((state.params, state.model_state)), jax.device_get(metrics)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_lora_trains_only_factors_and_head():
    (params, state), (trained, statistics), metrics = after("resnet18", setup("lora", "paper"))
    assert same(trained["encoder"]["base"], params["encoder"]["base"])
    assert same(params["encoder"]["base"], encoder("resnet18")[0])
    assert not same(trained["encoder"]["lora"], params["encoder"]["lora"])
    assert not same(trained["head"], params["head"])
    assert {"cov", "svd"} <= metrics.keys()
    plain, running = finetune.merge_factors((trained, statistics), sections("resnet18")[1])
    assert jax.tree.structure(plain["encoder"]) == jax.tree.structure(encoder("resnet18")[0])
    assert not same(running["encoder"], state["encoder"])  # BatchNorm follows the adapted activations


def test_full_trains_everything_but_the_initial_encoder_that_it_is_compared_with():
    (params, state), (trained, statistics), metrics = after("resnet18", setup("full", "code"), consistency=True)
    assert "mse" in metrics
    assert same((params["initial"], state["initial"]), encoder("resnet18"))
    assert same((trained["initial"], statistics["initial"]), encoder("resnet18"))
    for old, new in zip(jax.tree.leaves(params["encoder"]), jax.tree.leaves(trained["encoder"]), strict=True):
        assert np.any(old != new)
    merged = finetune.merge_factors((trained, statistics), sections("resnet18")[1])
    assert [tree.keys() for tree in merged] == [{"encoder", "head"}] * 2


def test_a_probe_trains_only_the_head():
    (params, state), (trained, statistics), _ = after("resnet18", setup(finetune.PROBE))
    assert same((params["encoder"], state["encoder"]), (trained["encoder"], statistics["encoder"]))
    assert not same(params["head"], trained["head"])


def test_the_text_tower_of_clip_is_not_trained():
    params, _ = shapes("clip", setup("full"))
    trained = rates("clip", params, "full")
    frozen = {name for name, rate in trained.items() if not rate}
    assert frozen == {name for name in trained if "/text/" in name or "logit_scale" in name or "projection" in name}
    with_embedding = rates("clip", params, "full", head_init="zeroshot")
    assert {name for name, rate in with_embedding.items() if rate > 0 == trained[name]} == {
        "encoder/image/projection/kernel"
    }


def test_training_starts_from_a_given_head_and_noisytune_perturbs_matrices_of_the_encoder():
    head = {"classifier": {"kernel": np.full((8, 3), 0.5, np.float32), "bias": np.ones(3, np.float32)}}, {}
    made = setup("lora", "paper")
    plain, given = (jax.device_get(begin("resnet18", made, *how).params) for how in ((None, 0.0), (head, 0.2)))
    W, V = (tree["encoder"]["base"]["stem_conv"]["kernel"] for tree in (plain, given))
    assert 0.05 * W.std() < np.abs(V - W).max() <= 0.1 * W.std() * 1.001
    assert same(plain["encoder"]["base"]["stem_bn"], given["encoder"]["base"]["stem_bn"])
    assert same(plain["encoder"]["lora"], given["encoder"]["lora"])
    assert same(given["head"], head[0])
    assert not same(plain["head"], head[0])


@pytest.mark.parametrize("name", ["resnet18", "vit_ti"])
def test_neftune_acts_in_training_only_and_where_it_should(name: str):
    made = setup("full")
    models = [finetune.build_classifier(*sections(name, neftune=x), made) for x in (0.0, 3.0)]
    params, state = models[0].init(KEY, models[0].spec)
    reads = "features" if name == "resnet18" else "embed_tokens"

    def outputs(model, train: bool):
        @jax.jit
        def run(key):
            return model.apply(params, state, BATCH, train=train, key=key)[0][reads]

        return [np.asarray(run(key)) for key in (KEY, jax.random.key(6))]

    plain, noisy = (outputs(model, True) for model in models)
    np.testing.assert_array_equal(outputs(models[0], False)[0], outputs(models[1], False)[0])
    np.testing.assert_array_equal(*plain)
    assert not np.array_equal(*noisy)
    added, tokens = noisy[0] - plain[0], 1
    if name == "vit_ti":
        assert not added[:, 0].any()  # the class token
        added, tokens = added[:, 1:], 4
    bound = 3.0 / np.sqrt(tokens * 8)
    assert 0.9 * bound < np.abs(added).max() <= bound * 1.0001


def test_layer_wise_rates_of_the_classifier():
    params, _ = shapes("vit_ti", setup("lora"))
    rate = rates("vit_ti", params, "lora", layer_decay=0.5)
    assert {value for name, value in rate.items() if name.startswith("encoder/base/")} == {0.0}
    assert rate["encoder/lora/block0/mlp/fc1/kernel/a"] == 0.25
    assert rate["encoder/lora/block1/mlp/fc2/kernel/b"] == 0.5
    assert rate["head/classifier/kernel"] == 1.0


def shapes(name: str, made: finetune.Setup):
    model = finetune.build_classifier(*sections(name), made)
    return jax.eval_shape(lambda key: model.init(key, model.spec), KEY)


def rates(name: str, params, method: str, **tuning) -> dict[str, float]:
    """Return the learning-rate multiplier of every parameter, and check that the optimiser accepts them."""
    section = finetune.build_optimizer(sections(name, **tuning)[1], params, method, 0.01)
    optim.make(section, params, steps=4, steps_per_epoch=2.0)
    return {pattern.replace("\\", ""): value for pattern, value in section.lr_mult}


def test_wise_has_the_two_models_at_its_ends_and_lies_between():
    trees = [{"w": np.array(values, np.float32)} for values in ((1.0, -2.0, 1e-8), (3.0, 2.0, 1e8))]
    assert same(finetune.interpolate(*trees, 0.0), trees[0])
    assert same(finetune.interpolate(*trees, 1.0), trees[1])
    np.testing.assert_allclose(finetune.interpolate(*trees, 0.25)["w"], [1.5, -1.0, 0.25e8], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"methods": ("lora", "fulll")}, "unknown 'fulll'"),
        ({"methods": ()}, "finetune.methods must be a tuple of at least one name, each once, got ()"),
        ({"terms": ("paper", "paper")}, "finetune.terms must be a tuple of at least one name, each once"),
        ({"terms": ("papers",)}, "no terms 'papers'"),
        ({"head": "conv"}, "finetune.head='conv'"),
        ({"head": "mlp", "head_init": "zeroshot"}, "no zero-shot weights"),
        ({"rank": 0}, "finetune.rank must be at least 1, got 0"),
        ({"lrs": (0.1, 0.0)}, "finetune.lrs must be a tuple of distinct positive numbers, got (0.1, 0.0)"),
        ({"epochs": float("nan")}, "finetune.epochs must be above 0, got nan"),
        ({"wise": (0.5, 1.5)}, "finetune.wise"),
        ({"layer_decay": 0.0}, "layer-wise"),
    ],
)
def test_mistakes_raise_an_error(values, cause: str):
    config = common.get_config().finetune
    with config.unlocked():
        config.update(values)
    with pytest.raises(UserError) as e:
        finetune.check(config)
    assert cause in e.value.cause


def test_the_defaults_are_valid():
    finetune.check(common.get_config().finetune)
