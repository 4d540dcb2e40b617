"""Meshes of some of the simulated devices."""

import jax
from jax.sharding import Mesh

from nml_jax import runtime


def mesh_of(data: int, fsdp: int = 1) -> Mesh:
    """Return the mesh of the first data × fsdp devices."""
    return runtime.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
