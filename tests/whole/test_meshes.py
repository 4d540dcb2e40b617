"""One training, whatever the mesh: 1 = 2 = 4 = 8 simulated devices, every source of randomness switched on.

Sums over a batch are added up in another order on another mesh. So float32 is compared after one step (and after 20
where a network forgives it), float64 after 20.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from nml_jax import models, runtime
from nml_jax.models.layers import depthwise
from tests.scenes import leaving, mesh_cases, process_scenes
from tests.scenes.mesh_cases import (
    CASES,
    FAMILIES,
    STEPS,
    Run,
    build_program,
    count_comparable_steps,
    measure_difference,
    train,
)
from tests.scenes.meshes import mesh_of

SHAPES = [(2, 1), (1, 2), (2, 2), (8, 1), (2, 4), (1, 8)]
SLOW = pytest.mark.slow


def cells(quick: set[tuple[str, tuple[int, int]]]) -> list[Any]:
    """All cases on all meshes, of which those that are not `quick` are left out of the suite."""
    return [
        pytest.param(case, shape, id=f"{case} on {shape[0]}x{shape[1]}", marks=() if (case, shape) in quick else SLOW)
        for case in CASES | FAMILIES
        for shape in SHAPES
    ]


@functools.cache
def on_one_device(case: str, dtype: str, steps: int) -> Run:
    return train(case, mesh_of(1), dtype, steps)


@pytest.fixture(autouse=True)
def small_parameters_are_split_too(monkeypatch):
    monkeypatch.setattr(runtime, "SHARD_FROM", mesh_cases.SHARD_FROM)


def same_in_float32(many: Run, one: Run) -> None:
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-5)
    for name, gradient in one.gradient.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(many.gradient[name], gradient, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def same_in_float64(many: Run, one: Run) -> None:
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-9)
    assert measure_difference(many.params, one.params) < 1e-9
    assert measure_difference(many.gradient, one.gradient) < 1e-9


@pytest.mark.parametrize(("case", "shape"), cells({("resnet", (2, 4))}))
def test_in_float32(case: str, shape: tuple[int, int]):
    """The first step's loss and every parameter's gradient; a ViT's losses of 20 steps."""
    steps = count_comparable_steps(case, "float32")
    same_in_float32(train(case, mesh_of(*shape), "float32", steps), on_one_device(case, "float32", steps))


@pytest.mark.parametrize("case", FAMILIES)
def test_a_gradient_of_every_family(case: str, monkeypatch):
    """In float64, on eight devices over which the parameters are split, and on one.

    The sum over the places of a depthwise kernel is EfficientNet's case: with ConvNeXt's 49 it compiles for long.
    """
    if case == "convnext":
        monkeypatch.setattr(depthwise, "_shift_and_add", depthwise._convolve)
    with jax.enable_x64(True):
        one, many = (differentiate(case, mesh) for mesh in (mesh_of(1), mesh_of(2, 4)))
    assert measure_difference(many, one) < 1e-9


def differentiate(case: str, mesh: Mesh) -> dict[str, np.ndarray]:
    """Return the logits, statistics and gradient of a batch in training, with stochastic depth."""
    config = mesh_cases.make_config(case, "float64")
    model = models.build(config.model, num_classes=mesh_cases.CLASSES, image_size=mesh_cases.SIZE)
    split = runtime.choose_shardings(model.shapes, mesh)
    assert mesh.size == 1 or sum(not x.is_fully_replicated for x in jax.tree.leaves(split)) >= 5

    def lose(params, state, images):
        outputs, state = model.apply(params, state, {"image": images}, train=True, key=jax.random.key(0))
        return jnp.sum(outputs["logits"] ** 2), (outputs["logits"], state)

    weights = jax.device_put(jax.tree.map(np.float64, leaving.make_weights(model)), split)
    images = jax.device_put(mesh_cases.make_batch(case, 0)["image"], NamedSharding(mesh, runtime.BATCH_SPEC))
    found = jax.jit(jax.grad(lose, has_aux=True), out_shardings=(split[0], None))(*weights, images)
    return mesh_cases.flatten(jax.device_get(found))


@pytest.mark.parametrize(("case", "shape"), cells(set()))
def test_in_float64(case: str, shape: tuple[int, int]):
    """20 steps: losses, weights, statistics and average."""
    with jax.enable_x64(True):
        same_in_float64(train(case, mesh_of(*shape), "float64", STEPS), on_one_device(case, "float64", STEPS))


@SLOW
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fsdp", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_two_processes(case: str, fsdp: int, dtype: str, tmp_path: Path):
    """The same, with each of two devices in a process of its own."""
    steps = count_comparable_steps(case, dtype)
    args = ["-m", "tests.scenes.mesh_cases", case, dtype, str(steps), str(fsdp), str(tmp_path)]
    ended = process_scenes.end(process_scenes.begin(args), 300)
    assert [e.code for e in ended] == [0, 0], ended
    with jax.enable_x64(dtype == "float64"):
        one = on_one_device(case, dtype, steps)
    (same_in_float64 if dtype == "float64" else same_in_float32)(mesh_cases.read(tmp_path), one)


def test_parameters_are_split(mesh):
    shapes = build_program("vit", mesh_of(2, 4), "float32").shapes
    split = [x for x in jax.tree.leaves(shapes.params) if "fsdp" in x.sharding.spec]
    assert len(split) > 10
    assert all(isinstance(x.sharding, NamedSharding) for x in split)
