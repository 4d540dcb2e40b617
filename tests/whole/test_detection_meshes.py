"""A detector's training step on eight devices: what it computes, and what the devices say to each other."""

import functools
from collections import Counter
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding

from launch import hlo
from nml_jax import runtime
from nml_jax.models import detection
from nml_jax.objectives import detection as objectives
from nml_jax.training import loop
from tests.models.detection import ours, twins
from tests.scenes.meshes import mesh_of

BATCH = 8


def make_batch() -> dict[str, np.ndarray]:
    """Make pictures of different sizes, with different objects and different numbers of them."""
    rng = np.random.default_rng(3)
    batch = {name: np.concatenate([x] * (BATCH // 2)) for name, x in twins.BATCH.items()}
    batch["image"] = rng.integers(0, 256, batch["image"].shape, dtype=np.uint8)
    batch["image"], batch["boxes"] = batch["image"][:, :32, :48], batch["boxes"] / 2
    batch["maps"] = np.packbits(np.unpackbits(batch["maps"], -1)[..., ::2, ::2], -1)
    batch["centres"] = batch["centres"] / 2
    batch["size"] = np.int32((32, 48)) - rng.integers(0, 10, (BATCH, 2), dtype=np.int32)
    batch["boxes"] += rng.uniform(0, 4, (BATCH, 5, 1)).astype(np.float32)
    return batch


@functools.cache
def build(system: str, mesh: Mesh, dtype: str) -> tuple[Any, Any]:
    """Build the model and the objective, which draw few of their anchors and regions."""
    config = ours.make_config(system)
    config.detect.rpn.samples, config.detect.roi.samples = 64, 16
    config.model.dtype = dtype
    made = detection.build(
        config.model, config.detect, system, num_classes=twins.CLASSES, canvas=twins.CANVAS, mesh=mesh
    )
    return made, objectives.make(config.detect, system)


def run(system: str, mesh: Mesh) -> dict[str, Any]:
    """Return outputs in training, the loss and its gradient, in float64."""
    model, objective = build(system, mesh, "float64")
    rows, whole = NamedSharding(mesh, runtime.BATCH_SPEC), runtime.replicated_sharding(mesh)
    params, state = jax.device_put(jax.tree.map(np.float64, ours.fill(model)), whole)
    batch, key = jax.device_put(make_batch(), rows), jax.random.key(5)

    @jax.jit
    def step(params, batch):
        outputs, _ = model.apply(params, state, batch, train=True, key=key)
        loss = lambda params: objective.loss(model, params, state, batch, key)  # noqa: E731
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        chosen = {name: x for name, x in outputs.items() if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating)}
        return chosen, value, gradient

    return jax.device_get(step(params, batch))


@pytest.mark.slow  # what devices exchange is counted in the suite
@pytest.mark.parametrize("system", ours.SYSTEMS)
def test_eight_devices_are_one(system: str):
    """The loss, the first gradient, and all that is matched and drawn."""
    with jax.enable_x64(True):
        (ids, loss, gradient), (ids_8, loss_8, gradient_8) = (run(system, mesh_of(n)) for n in (1, 8))
    assert ids
    for name, own in ids.items():
        np.testing.assert_array_equal(ids_8[name], own)
        assert "index" not in name or (own >= 0).any(), name
        assert "index" not in name or (own == -1).any() or name == "mask_index"
    np.testing.assert_allclose(loss_8, loss, rtol=1e-9)
    for a, b in zip(jax.tree.leaves(gradient_8), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


def lower_step(system: str) -> tuple[Any, tuple[Any, ...]]:
    """Return the training step on eight devices, and the shapes of its arguments."""
    mesh = mesh_of(8)
    model, objective = build(system, mesh, "float32")
    loss = functools.partial(objective.loss, model)
    program = loop.assemble(model, loss, optax.sgd(0.1), lambda _: 0.1, 0.0, mesh)
    rows = NamedSharding(mesh, runtime.BATCH_SPEC)
    shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for k, x in make_batch().items()}
    signal = jax.ShapeDtypeStruct((mesh.size,), np.int32, sharding=rows)
    return program.step, (program.shapes, shapes, loop.Signals(*[signal for _ in loop.Signals._fields]))


BY_COST = [pytest.param(name, marks=() if name == "retina" else pytest.mark.slow) for name in ours.SYSTEMS]


@pytest.mark.parametrize("system", BY_COST)
def test_devices_exchange_only_the_gradient_and_counts(system: str):
    """No anchors, proposals or samples are sent, and nothing in a loop: one all-reduce of numbers, one of gradients."""
    step, args = lower_step(system)
    found = hlo.find_collectives(step.lower(*args).compile().as_text(), 8)
    assert {(c.kind, c.times, c.group) for c in found} == {("all-reduce", 1, 8)}
    parameters = sum(4 * x.size for x in jax.tree.leaves(args[0].params))
    assert parameters <= sum(c.bytes for c in found) < parameters + 1024
    assert Counter(c.bytes > 1024 for c in found)[True] == 1
