"""One training, whatever the mesh: 1 = 2 = 4 = 8 simulated devices, every source of randomness switched on.

Sums over a batch are added up in another order on another mesh. So float32 is compared after one step (and after 20
where a network forgives it), float64 after 20.
"""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding

from configs import clip_pairs, digits
from nml_jax import models, objectives, runtime, settings
from nml_jax.models import micro
from nml_jax.training import loop, optim
from nml_jax.training.state import TrainState
from tests.meshes import mesh_of

BATCH, CLASSES, SIZE, CONTEXT, STEPS = 16, 3, 8, 8, 20

BASE = {"train.batch": BATCH, "train.ema": 0.9, "data.image_size": SIZE, "optimizer.warmup_epochs": 1.0}
RESNET = {"model.name": "resnet18", "model.width": 4, "model.blocks": (1,), "model.stem": "small",
          "model.drop_path": 0.2}  # fmt: skip
VIT = {"model.name": "vit_ti", "model.patch": 4, "model.dim": 16, "model.depth": 2, "model.heads": 2,
       "model.dropout": 0.1, "model.drop_path": 0.2, "model.width": None, "model.blocks": None}  # fmt: skip
MIXED = {"objective.mixup": 0.2, "objective.cutmix": 1.0, "objective.label_smoothing": 0.1}
TEXT = {"model.name": "clip", "model.embed_dim": 8, "model.text_context": CONTEXT, "model.text_vocab": 64,
        "model.text_width": 16, "model.text_depth": 1, "model.text_heads": 2}  # fmt: skip
CLIP_VIT = VIT | TEXT | {"model.tower": "vit_ti", "model.patch_dropout": 0.5}

CASES: dict[str, tuple[types.ModuleType, dict[str, Any]]] = {
    "resnet": (digits, RESNET | MIXED),
    "resnet, groups of BatchNorm": (digits, RESNET | MIXED | {"model.bn_group": 4}),
    "resnet in parts": (digits, RESNET | MIXED | {"train.micro_batches": 2}),
    "vit": (digits, VIT | MIXED),
    "vit in parts, with remat": (digits, VIT | MIXED | {"train.micro_batches": 2, "model.remat": True}),
    "clip vit": (clip_pairs, CLIP_VIT),
    "clip vit in parts and chunks": (clip_pairs, CLIP_VIT | {"objective.chunk": 1, "train.micro_batches": 2}),
    "siglip vit": (clip_pairs, CLIP_VIT | {"objective.name": "siglip", "model.logit_bias": -10.0}),
    "clip resnet": (clip_pairs, RESNET | TEXT | {"model.tower": "resnet18"}),
}
SHAPES = [(2, 1), (1, 2), (2, 2), (8, 1), (2, 4), (1, 8)]
SLOW = pytest.mark.slow


def cells(quick: set[tuple[str, tuple[int, int]]]) -> list[Any]:
    """All cases on all meshes, of which those that are not `quick` are left out of the suite."""
    return [
        pytest.param(case, shape, id=f"{case} on {shape[0]}x{shape[1]}", marks=() if (case, shape) in quick else SLOW)
        for case in CASES
        for shape in SHAPES
    ]


def batch(case: str, step: int) -> dict[str, np.ndarray]:
    """The global batch of a step."""
    rng = np.random.default_rng(step)
    out = {"image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)}
    if "model.text_width" not in CASES[case][1]:
        return out | {"label": rng.integers(0, CLASSES, BATCH).astype(np.int32), "mask": np.ones(BATCH, np.float32)}
    text = rng.integers(1, 60, (BATCH, CONTEXT)).astype(np.int32)
    text[:, 5:] = [63, 0, 0]
    return out | {"text": text}


def keeping_gradients() -> optax.GradientTransformation:
    """Changes nothing; its state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda updates, state, params=None: (updates, updates)
    )


def program(case: str, mesh: Mesh, dtype: str) -> loop.Program:
    """As `loop.build` makes it, and its optimiser keeps the gradient."""
    module, values = CASES[case]
    config = next(iter(settings.cells(module.get_config()).values()))
    with config.unlocked():
        config.update_from_flattened_dict(BASE | values | {"model.dtype": dtype})
    model = models.build(config.model, num_classes=CLASSES, image_size=SIZE)
    parts = micro.in_micro_batches(model, config.train.micro_batches, blocks=mesh.size)
    objective = objectives.make(config.objective, num_classes=CLASSES, blocks=mesh.size)
    params, _ = jax.eval_shape(lambda key: model.init(key, model.spec), jax.random.key(0))
    tx, schedule = optim.make(config.optimizer, params, steps=STEPS, steps_per_epoch=4.0)
    loss = functools.partial(objective.loss, parts)
    return loop.assemble(model, loss, optax.chain(keeping_gradients(), tx), schedule, config.train.ema, mesh)


@functools.cache
def initial(case: str) -> TrainState:
    """Drawn on one device, on the host."""
    state = program(case, mesh_of(1, 1), "float32").init(jax.random.key(1))
    return jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key)))


@dataclasses.dataclass
class Run:
    losses: list[float]  # of every step
    gradient: dict[str, np.ndarray]  # of the first
    params: dict[str, np.ndarray]  # of the raw weights, statistics and average after the last


def train(case: str, shape: tuple[int, int], dtype: str, steps: int) -> Run:
    mesh = mesh_of(*shape)
    built = program(case, mesh, dtype)

    def place(value: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        wide = dtype if value.dtype == np.float32 else value.dtype
        return jax.device_put(value.astype(wide), like.sharding)

    start, shapes = initial(case), built.shapes
    key = jax.device_put(jax.random.wrap_key_data(start.key), shapes.key.sharding)
    start, shapes = dataclasses.replace(start, key=None), dataclasses.replace(shapes, key=None)  # type: ignore[arg-type]
    state = dataclasses.replace(jax.tree.map(place, start, shapes), key=key)
    put, losses, gradient = runtime.put_batch(mesh), [], {}
    for k in range(steps):
        asked = {"asked": np.zeros(mesh.size, np.int32)}
        state, metrics = built.step(state, put(batch(case, k) | asked))
        total, count = jax.device_get(metrics["loss"])
        losses.append(float(total) / float(count))
        gradient = gradient or leaves(state.opt_state[0])
    return Run(losses, gradient, leaves((state.params, state.model_state, state.ema)))


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def apart(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The norm of the difference of two trees over that of the second."""
    assert ours.keys() == theirs.keys()
    square = {name: np.sum(np.square(np.float64(x))) for name, x in theirs.items()}
    difference = sum(np.sum(np.square(np.float64(ours[name]) - theirs[name])) for name in theirs)
    return float(np.sqrt(difference / sum(square.values())))


@functools.cache
def on_one_device(case: str, dtype: str, steps: int) -> Run:
    return train(case, (1, 1), dtype, steps)


@pytest.fixture(autouse=True)
def small_parameters_are_split_too(monkeypatch):
    monkeypatch.setattr(runtime, "SHARD_FROM", 64)


@pytest.mark.parametrize(("case", "shape"), cells({("resnet", (2, 4))}))
def test_in_float32(case: str, shape: tuple[int, int]):
    """The first step's loss and every parameter's gradient; a ViT's losses of 20 steps."""
    steps = STEPS if "vit" in case else 1
    one, many = on_one_device(case, "float32", steps), train(case, shape, "float32", steps)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-5)
    for name, gradient in one.gradient.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(many.gradient[name], gradient, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize(("case", "shape"), cells(set()))
def test_in_float64(case: str, shape: tuple[int, int]):
    """20 steps: losses, weights, statistics and average."""
    with jax.enable_x64(True):
        one, many = on_one_device(case, "float64", STEPS), train(case, shape, "float64", STEPS)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-9)
    assert apart(many.params, one.params) < 1e-9
    assert apart(many.gradient, one.gradient) < 1e-9


def test_parameters_are_split(mesh):
    shapes = program("vit", mesh_of(2, 4), "float32").shapes
    split = [x for x in jax.tree.leaves(shapes.params) if "fsdp" in x.sharding.spec]
    assert len(split) > 10
    assert all(isinstance(x.sharding, NamedSharding) for x in split)
