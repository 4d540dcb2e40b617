"""The table of a model's parameters."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from nml_jax.models.overview import describe_parameters
from tests.scenes.meshes import mesh_of


def leaf(*shape: int, spec: tuple = ()) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh_of(1, 2), jax.P(*spec)))


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[0] == "|"]


def test_a_small_model_has_a_line_for_each_parameter():
    table = describe_parameters({"head": {"bias": leaf(3), "kernel": leaf(8, 3, spec=("fsdp",))}, "scale": leaf()})
    assert cells(table)[1:] == [
        ["head/bias", "3", "3", "whole"], ["head/kernel", "8 × 3", "24", "fsdp"], ["scale", "a number", "1", "whole"],
    ]  # fmt: skip
    assert table.splitlines()[-1] == "28 parameters in 3 arrays"


def test_a_large_model_has_a_line_for_each_block():
    block = {"attn": {"kernel": leaf(1000, 4, spec=("fsdp",))}, "norm": {"scale": leaf(4)}}
    table = describe_parameters({"image": {f"block{i}": block for i in range(12)}, "cls": leaf(4)})
    lines = cells(table)[1:]
    assert len(lines) == 13
    assert lines[1] == ["image/block0", "2 arrays", "4,004", "fsdp: 1 of 2"]
    assert table.splitlines()[-1] == "48,052 parameters in 25 arrays"
