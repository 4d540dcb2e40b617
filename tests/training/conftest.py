"""The fixture of the training tests."""

import pytest

from nml_jax import runtime
from tests.training.tiny import Run, tiny_config


@pytest.fixture
def make_run(tmp_path):
    """Return a function that makes a small run in its own folder, from config overrides."""

    def make(name: str = "run", *, data: int = -1, fsdp: int = 1, **overrides) -> Run:
        return Run(tmp_path / name, tiny_config(**overrides), runtime.make_mesh(data, fsdp))

    return make
