"""Compare what a twin computes with the stored values of torchvision, or of mmdetection."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file

from nml_jax.objectives import detection as objectives
from tests.models.detection import ours, twins

PARTS = ("torchvision", "mmdetection", "trained")  # of the golden values


@functools.cache
def load() -> dict[str, np.ndarray]:
    """Load what torchvision computes, and mmdetection's SOLOv2, with random and with trained weights."""
    files = (Path(__file__).parent / f"golden_{name}.safetensors" for name in PARTS)
    return {name: x for file in files for name, x in load_file(file).items()}


def get_golden(name: str) -> np.ndarray:
    return load()[name]


def list_golden(prefix: str) -> list[str]:
    """List the names below a prefix, without it."""
    return [name.removeprefix(f"{prefix}/") for name in load() if name.startswith(f"{prefix}/")]


def compare_gradients(gradient: Any, prefix: str) -> None:
    """Compare the norm of the whole gradient, and the parameters that are stored, to 1e-4 of their largest value."""
    square, seen = 0.0, set()
    for path, x in jax.tree_util.tree_leaves_with_path(gradient):
        square += float(np.square(np.float64(x)).sum())
        name = ours.rename("/".join(str(key.key) for key in path))
        if name in list_golden(f"{prefix}/gradient"):
            theirs = ours.convert(name, get_golden(f"{prefix}/gradient/{name}"))
            assert np.abs(x - theirs).max() <= 1e-4 * np.abs(theirs).max(), name
            seen.add(name)
    np.testing.assert_allclose(square**0.5, get_golden(f"{prefix}/gradient_norm"), rtol=1e-4)
    assert seen == set(list_golden(f"{prefix}/gradient"))


def compare_detections(found: Any, prefix: str, offset: int) -> None:
    """Compare the detections of every picture: their number, classes, boxes to 1e-2 pixels and scores to 1e-4."""
    for i, classes in enumerate(found["classes"]):
        theirs = {name: get_golden(f"{prefix}/detections/{i}/{name}") for name in ("boxes", "scores", "labels")}
        count = int((classes >= 0).sum())
        assert count == len(theirs["scores"]) > 0
        np.testing.assert_array_equal(classes[:count] + offset, theirs["labels"])
        np.testing.assert_allclose(found["scores"][i, :count], theirs["scores"], atol=1e-4)
        np.testing.assert_allclose(found["boxes"][i, :count], theirs["boxes"], atol=1e-2)


class Twin(NamedTuple):
    """A twin, compiled: `run(params, batch)` gives its outputs in training, metrics, gradient and detections."""

    run: Any
    params: Any
    plain: Any  # of twins.BATCH


@functools.cache
def get_twin(system: str) -> Twin:
    model, config = ours.build(system)
    params, state = ours.fill(model)
    objective, key = objectives.make(config, system), jax.random.key(0)

    @jax.jit
    def run(params, batch):
        def loss(params):
            outputs, _ = model.apply(params, state, batch, train=True, key=key)
            given = dataclasses.replace(model, apply=lambda *args, **how: (outputs, state))
            total, (_, metrics) = objective.loss(given, params, state, batch, key)
            return total, (outputs, metrics)

        (_, (outputs, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return outputs, metrics, gradient, model.apply(params, state, batch, train=False, key=None)[0]

    return Twin(run, params, jax.device_get(run(params, twins.BATCH)))


def check_losses(system: str, names: dict[str, str]) -> None:
    """Compare the losses, ours -> torchvision's, and the gradients of a twin."""
    _, metrics, gradient, _ = get_twin(system).plain
    assert set(names.values()) == set(list_golden(f"{system}/loss"))
    for name, there in names.items():
        np.testing.assert_allclose(metrics[name][0], get_golden(f"{system}/loss/{there}"), rtol=1e-4, err_msg=name)
    compare_gradients(gradient, system)


def check_padding(system: str) -> None:
    """Check that other values in padded objects, and other pixels beyond the picture, give the same to the bit.

    The same are the losses and their gradient, which hold all that is learned from, and the detections.
    """
    run, params, _ = get_twin(system)
    small = {**twins.BATCH, "size": np.int32([[64, 96], [44, 70]])}
    rng = np.random.default_rng(1)
    other = {name: x.copy() for name, x in small.items()}
    other["image"][1, 44:] = rng.integers(0, 256, (20, 96, 3))
    other["image"][1, :, 70:] = 255
    other["boxes"][1, 1:] = rng.uniform(-50, 200, (4, 4))
    other["boxes"][1, 1:3] = [[14, 9, 26, 21], [33, 8, 59, 34]]  # objects that any system would learn from
    other["masks"][1, 1:] = 1
    other["maps"][1, 1:] = 255
    other["centres"][1, 1:3] = [[20, 15], [46, 21]]
    one, two = jax.device_get((run(params, small), run(params, other)))
    for a, b in zip(jax.tree.leaves(one[1:]), jax.tree.leaves(two[1:]), strict=True):
        np.testing.assert_array_equal(a, b)
    found = one[3]["boxes"][1]
    assert found[:, 2].max() <= 70
    assert found[:, 3].max() <= 44
    assert (one[3]["classes"][1] >= 0).any()


def check_degenerate(system: str) -> None:
    """Check that an image without objects, and objects without extent, give finite losses and gradients."""
    run, params, _ = get_twin(system)
    batch = {name: x.copy() for name, x in twins.BATCH.items()}
    batch["labels"][1] = -1
    batch["boxes"][0] = batch["boxes"][0][:, [0, 1, 0, 1]]
    _, metrics, gradient, _ = run(params, batch)
    assert all(bool(np.isfinite(x).all()) for x in jax.tree.leaves((metrics, gradient)))
