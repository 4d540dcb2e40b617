"""Small trainings that must not depend on the mesh, with every source of randomness switched on.

`python -m tests.scenes.mesh_cases CASE DTYPE STEPS FSDP OUT` is one process of several that train together.
"""

import dataclasses
import functools
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from configs import clip_pairs, digits
from nml_jax import models, objectives, runtime, settings
from nml_jax.models.micro_batches import split_batches
from nml_jax.processes import peers
from nml_jax.training import loop, optim
from nml_jax.training.state import TrainState
from nml_jax.training.window import put_signals

BATCH, CLASSES, SIZE, CONTEXT, STEPS = 16, 3, 8, 8, 20

BASE = {"train.batch": BATCH, "train.ema": 0.9, "data.image_size": SIZE, "optimizer.warmup_epochs": 1.0}
RESNET = {"model.name": "resnet18", "model.width": 4, "model.blocks": (1,), "model.stem": "small",
          "model.drop_path": 0.2}  # fmt: skip
VIT = {"model.name": "vit_ti", "model.patch": 4, "model.dim": 16, "model.depth": 2, "model.heads": 2,
       "model.dropout": 0.1, "model.drop_path": 0.2, "model.width": None, "model.blocks": None}  # fmt: skip
MIXED = {"objective.mixup": 0.2, "objective.cutmix": 1.0, "objective.label_smoothing": 0.1}
TEXT = {"model.name": "clip", "model.embed_dim": 8, "model.text_context": CONTEXT, "model.text_vocab": 64,
        "model.text_width": 16, "model.text_depth": 1, "model.text_heads": 2}  # fmt: skip
LANGUAGE = {"model.name": "bert", "model.pool": "mean", "model.dim": 16, "model.depth": 2, "model.heads": 2,
            "model.hidden": 16, "model.vocab": 64, "model.context": CONTEXT, "model.dropout": 0.1}  # fmt: skip
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
    "bert": (digits, LANGUAGE | {"objective.label_smoothing": 0.1}),
}
PLAIN = MIXED | {"model.stem": "imagenet", "model.width": None, "model.blocks": (1,), "model.drop_path": 0.2}
# Further families of encoders, whose programs test_platforms.py has in another form.
FAMILIES: dict[str, tuple[types.ModuleType, dict[str, Any]]] = {
    "efficientnet": (digits, PLAIN | {"model.name": "tf_efficientnet_b0", "model.blocks": (1, 1),
                                      "model.widths": (8, 8, 16, 32)}),
    "bit": (digits, PLAIN | {"model.name": "bit_50x1", "model.width": 32}),
    "swin": (digits, PLAIN | {"model.name": "swin_t", "model.width": 16, "model.heads": 2, "model.patch": 2,
                              "model.window": 2, "model.blocks": (2,)}),
    "convnext": (digits, PLAIN | {"model.name": "convnext_t", "model.widths": (16,)}),
    "dinov2": (digits, VIT | MIXED | {"model.name": "vit_s14_dinov2", "model.stem": "imagenet", "model.depth": 1}),
}  # fmt: skip
SHARD_FROM = 64  # splits these small parameters, too


def make_batch(case: str, step: int) -> dict[str, np.ndarray]:
    """Make the global batch of a step."""
    rng = np.random.default_rng(step)
    out = {"image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)}
    if "model.vocab" in (CASES | FAMILIES)[case][1]:
        length = rng.integers(1, CONTEXT + 1, BATCH).astype(np.int32)
        out = {"tokens": rng.integers(0, 64, (BATCH, CONTEXT)).astype(np.int32), "length": length,
               "second": length // 2}  # fmt: skip
    if "model.text_width" not in (CASES | FAMILIES)[case][1]:
        return out | {"label": rng.integers(0, CLASSES, BATCH).astype(np.int32), "mask": np.ones(BATCH, np.float32)}
    text = rng.integers(1, 60, (BATCH, CONTEXT)).astype(np.int32)
    text[:, 5:] = [63, 0, 0]
    return out | {"text": text}


def make_config(case: str, dtype: str) -> Any:
    module, values = (CASES | FAMILIES)[case]
    config = next(iter(settings.expand_sweep(module.get_config()).values()))
    with config.unlocked():
        config.update_from_flattened_dict(BASE | values | {"model.dtype": dtype})
    return config


def keep_gradients() -> optax.GradientTransformation:
    """Return a transformation that changes nothing, and whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda updates, state, params=None: (updates, updates)
    )


def build_program(case: str, mesh: Mesh, dtype: str) -> loop.Program:
    """Build the program as `loop.build` does, with an optimiser that keeps the gradient."""
    config = make_config(case, dtype)
    model = models.build(config.model, num_classes=CLASSES, image_size=SIZE)
    parts = split_batches(model, config.train.micro_batches, blocks=mesh.size)
    objective = objectives.make(config.objective, num_classes=CLASSES, blocks=mesh.size)
    tx, schedule = optim.make(config.optimizer, model.shapes[0], steps=STEPS, steps_per_epoch=4.0)
    loss = functools.partial(objective.loss, parts)
    return loop.assemble(model, loss, optax.chain(keep_gradients(), tx), schedule, config.train.ema, mesh)


@functools.cache
def draw_initial(case: str) -> TrainState:
    """Draw the initial state on one device of this process, and return it on the host."""
    one = runtime.make_mesh(devices=jax.local_devices()[:1])
    with jax.enable_x64(False):
        state = build_program(case, one, "float32").init(jax.random.key(1))
    return jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key)))


@dataclasses.dataclass
class Run:
    losses: list[float]  # of every step
    gradient: dict[str, np.ndarray]  # of the first
    params: dict[str, np.ndarray]  # of the raw weights, statistics and average after the last


def train(case: str, mesh: Mesh, dtype: str, steps: int) -> Run:
    """Train on all devices of the mesh, and return the same result in each of its processes."""
    program = build_program(case, mesh, dtype)

    def place(value: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        wide = value.astype(dtype if value.dtype == np.float32 else value.dtype)
        return jax.make_array_from_callback(wide.shape, like.sharding, lambda index: wide[index])

    start, shapes = draw_initial(case), program.shapes
    key = jax.jit(jax.random.wrap_key_data, out_shardings=shapes.key.sharding)(start.key)
    start, shapes = dataclasses.replace(start, key=None), dataclasses.replace(shapes, key=None)  # type: ignore[arg-type]
    state = dataclasses.replace(jax.tree.map(place, start, shapes), key=key)
    put, losses, gradient = runtime.put_batch(mesh), [], {}
    quiet = put_signals(mesh)
    block, blocks = runtime.find_process_block(mesh)
    for k in range(steps):
        own = {name: np.split(x, blocks)[block] for name, x in make_batch(case, k).items()}
        state, metrics = program.step(state, put(own), quiet)
        total, count = runtime.fetch(metrics["loss"], mesh)
        losses.append(float(total) / float(count))
        gradient = gradient or flatten(runtime.fetch(state.opt_state[0], mesh))
    return Run(losses, gradient, flatten(runtime.fetch((state.params, state.model_state, state.ema), mesh)))


def count_comparable_steps(case: str, dtype: str) -> int:
    """Return for how many steps rounding leaves two trainings comparable; a ResNet in float32 for one."""
    return STEPS if "vit" in case or dtype == "float64" else 1


def flatten(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def measure_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Return the norm of the difference of two trees, divided by that of the second."""
    assert ours.keys() == theirs.keys()
    square = {name: np.sum(np.square(np.float64(x))) for name, x in theirs.items()}
    difference = sum(np.sum(np.square(np.float64(ours[name]) - theirs[name])) for name in theirs)
    return float(np.sqrt(difference / sum(square.values())))


def main(case: str, dtype: str, steps: str, fsdp: str, out: str) -> None:
    """Train as one process of a job; process 0 writes the result to the folder `out`."""
    peers.start(120)
    runtime.SHARD_FROM = SHARD_FROM
    with jax.enable_x64(dtype == "float64"):
        run = train(case, runtime.make_mesh(-1, int(fsdp)), dtype, int(steps))
    if jax.process_index() == 0:
        np.savez(Path(out) / "gradient.npz", **run.gradient)
        np.savez(Path(out) / "params.npz", **run.params)
        np.save(Path(out) / "losses.npy", run.losses)
    peers.barrier("the end", 120)


def read(out: Path) -> Run:
    gradient, params = (dict(np.load(out / f"{name}.npz")) for name in ("gradient", "params"))
    return Run(np.load(out / "losses.npy").tolist(), gradient, params)


if __name__ == "__main__":
    main(*sys.argv[1:])
