"""Small models with weights drawn by NumPy: compiling an initialisation costs more than most of what is tested."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from nml_jax.models import Model, build


class DrawnModel(NamedTuple):
    """A model with weights."""

    model: Model
    params: Any
    state: Any

    def __call__(self, batch: Any, *, train: bool = False, key: jax.Array | None = None):
        """Return (outputs, new model_state) of the compiled model. An array is a batch of images."""
        batch = batch if isinstance(batch, dict) else {"image": batch}
        return _apply(self.model, train)(self.params, self.state, batch, key)


def compiled(f):
    """Compile `f` without the optimisations that cost more than they save on models of this size."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _apply(model: Model, train: bool):
    return compiled(lambda params, state, batch, key: model.apply(params, state, batch, train=train, key=key))


@pytest.fixture(name="compiled")
def compiled_fixture():
    return compiled


@pytest.fixture
def draw():
    """Return `draw(config, size) -> DrawnModel`, which draws the same weights for the same shapes."""

    def draw(config: Any, size: int) -> DrawnModel:
        model = build(config, num_classes=5, image_size=size)
        rng = np.random.default_rng(0)

        def leaf(path: Any, like: jax.ShapeDtypeStruct) -> np.ndarray:
            z, name = rng.standard_normal(like.shape, np.float32), path[-1].key
            if name == "kernel":
                return z / np.sqrt(np.prod(like.shape[:-1]), dtype=np.float32)
            return np.exp(z / 4) if name == "var" else z / 4 + np.float32(name == "scale")

        return DrawnModel(model, *jax.tree_util.tree_map_with_path(leaf, model.shapes))

    return draw


@pytest.fixture
def images():
    """Return `images(batch, size)`, which draws uint8 [batch, size, size, 3]."""
    return lambda batch, size=8: np.random.default_rng(1).integers(0, 256, (batch, size, size, 3), np.uint8)
