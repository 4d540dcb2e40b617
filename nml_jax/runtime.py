"""Devices and placement: the mesh, where arrays live, and how a batch gets there. For processes see `processes`."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nml_jax import ranges
from nml_jax.errors import PeerLost, UserError
from nml_jax.processes import job, peers

Batch = Mapping[str, Any]
# Smaller arrays are replicated: splitting them saves no memory worth a collective.
SHARD_FROM = 2**16
BATCH_SPEC = PartitionSpec(("data", "fsdp"))
# Of the compiler for CPUs. Barriers stay until operations are fused (`models.materialise`); and YNNPACK computes matrix
# products and sums, as by default, but no convolutions: for those it takes twice the time of Eigen, and three times
# for the gradients of their kernels (jaxlib 0.10.2).
CPU_OPTIONS = {
    "xla_disable_hlo_passes": "cse_barrier_expander",
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}


def check_ranges(config: Any) -> None:
    """Refuse values of the section `runtime` that are out of range."""
    ranges.require_at_least(1, "runtime", config, "max_skipped", "log_every", "keep", "timeout")
    ranges.require_at_least(0, "runtime", config, "threads", "prefetch", "eval_every", "keep_every")
    ranges.require_positive("runtime", config, "save_every")


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices, or of those given, with Auto axes "data" and "fsdp"; -1 stands for the rest.

    The devices stand process by process, so that each process reads consecutive rows of a batch (`rows_of_process`) and
    any size of `fsdp` that divides them will do. jax.make_mesh follows the links of a TPU slice instead: there the rows
    of a host are scattered, and on a v4, v5p or v6e it refuses an axis that is no side of the slice. A reduction among
    all devices does not depend on their order.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    n = len(devices)
    sizes = [data, fsdp]
    if sizes.count(-1) == 1:
        known = sizes[1 - sizes.index(-1)]
        if known > 0 and n % known == 0:
            sizes[sizes.index(-1)] = n // known
    if min(sizes) < 1 or sizes[0] * sizes[1] != n:
        raise UserError(
            f"a mesh of data_axis={data} × fsdp_axis={fsdp} does not fit {n} device(s)",
            "set runtime.data_axis=-1 and a runtime.fsdp_axis that divides the number of devices",
        )
    return Mesh(np.reshape(devices, sizes), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def check_devices(mesh: Mesh, timeout: float = 120) -> None:
    """Add up a number of every device, on all of them.

    Raises:
        PeerLost: the sum is wrong, or not there after `timeout` seconds.
    """
    n = mesh.size
    sharding = NamedSharding(mesh, BATCH_SPEC)
    numbers = jax.make_array_from_callback((n,), sharding, lambda index: np.arange(1, n + 1, dtype=np.int32)[index])
    try:
        found = job.in_thread(lambda: int(jax.jit(jnp.sum, out_shardings=replicated_sharding(mesh))(numbers)), timeout)
    except TimeoutError as e:
        raise PeerLost(f"the devices have not added up {n} numbers within {timeout:g} s: one does not answer") from e
    if found != n * (n + 1) // 2:
        raise PeerLost(f"the devices add up 1 to {n} to {found}: one of them, or a link, is broken")


def describe(mesh: Mesh) -> str:
    """One line: hosts, processes, devices, mesh, versions."""
    about, hosts = describe_environment(), len(set(peers.list_hosts()))
    axes = " × ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    versions = ", ".join(f"{name} {about[name]}" for name in ("nml_jax", "jax", "jaxlib", "python"))
    return f"{hosts} host(s), {about['processes']} process(es), {about['device']}, mesh {axes}; {versions}"


def leaf_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Sharding by shape: arrays of 2¹⁶ elements or more are split over `fsdp` along their largest divisible axis."""
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not divisible or np.prod(shape) < SHARD_FROM:
        return PartitionSpec()
    axis = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if i == axis else None for i in range(len(shape))))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf (with a shape) of `tree`, by `leaf_spec`."""
    return jax.tree.map(lambda x: NamedSharding(mesh, leaf_spec(x.shape, mesh.shape["fsdp"])), tree)


def make_gather(split: Any, mesh: Mesh) -> Callable[[Any], Any]:
    """The identity of parameters that lie as `split` says. Forward every device gathers the whole ones, backward it
    keeps its part of their gradient; left alone, XLA would gather activations over `fsdp`: there are more of them.
    """
    if mesh.shape["fsdp"] == 1:
        return lambda params: params

    @jax.custom_vjp
    def whole(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, replicated_sharding(mesh))

    def forward(params: Any) -> tuple[Any, None]:
        return whole(params), None

    def backward(_: None, grads: Any) -> tuple[Any]:
        return (jax.lax.with_sharding_constraint(grads, split),)

    whole.defvjp(forward, backward)
    return whole


def with_shardings(tree: Any, mesh: Mesh) -> Any:
    """`tree` of shapes as ShapeDtypeStructs that carry their sharding, which a restore asks for."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings(tree, mesh))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch: int, mesh: Mesh, key: str) -> None:
    """Every device gets the same number of rows.

    Raises:
        UserError: the mesh does not divide `batch`, the value of config key `key`.
    """
    if batch < 1 or batch % mesh.size:
        raise UserError(
            f"{key}={batch} cannot be divided over the {mesh.size} device(s) of the mesh",
            f"set {key} to a multiple of {mesh.size}",
        )


def process_rows(mesh: Mesh) -> tuple[int, int]:
    """(block, blocks): which of the equal consecutive blocks of a global batch this process's devices hold."""
    count = jax.process_count()
    if count == 1:
        return 0, 1
    indices = NamedSharding(mesh, BATCH_SPEC).devices_indices_map((mesh.size,))
    rows = sorted(indices[d][0].start or 0 for d in mesh.local_devices)
    size = mesh.size // count
    if len(rows) != size or rows != list(range(rows[0], rows[0] + size)) or rows[0] % size:
        raise RuntimeError(f"process {jax.process_index()} holds rows {rows}, no block of {size}: reorder the mesh")
    return rows[0] // size, count


def keep_compiled(folder: Path) -> None:
    """What one start compiles the next one reads from `folder`, unless the user has named another.

    On a CPU nothing is kept: there compiled code may not run on the next host that shares the folder.
    """
    if jax.default_backend() != "cpu" and jax.config.jax_compilation_cache_dir is None:  # pyright: ignore
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


@functools.cache
def _cpu_options() -> dict[str, str] | None:
    """CPU_OPTIONS, or nothing where this version of the compiler does not know them."""
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return CPU_OPTIONS


def jit(function: Callable[..., Any], mesh: Mesh, **how: Any) -> Any:
    """jax.jit of something large, such as a step, with the options of the compiler that its devices want."""
    platform = mesh.devices.flat[0].platform
    return jax.jit(function, compiler_options=_cpu_options() if platform == "cpu" else None, **how)


def put_batch(mesh: Mesh) -> Callable[[Batch], dict[str, jax.Array]]:
    """A function from a process's rows (NumPy) to the global batch on the devices, split over (data, fsdp)."""
    sharding = NamedSharding(mesh, BATCH_SPEC)

    def put(batch: Batch) -> dict[str, jax.Array]:
        if jax.process_count() == 1:  # the same, all arrays in one call
            return jax.device_put(dict(batch), sharding)
        return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}

    return put


def to_mesh(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds whole, as global arrays sharded by shape. Each is a buffer of its own."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))

    return jax.tree.map(put, tree, shardings(tree, mesh))


def fetch(tree: Any, mesh: Mesh) -> Any:
    """`tree` of global arrays as NumPy, whole, on every process; gathered one array at a time."""
    if jax.process_count() > 1:
        return jax.tree.map(lambda x: np.asarray(_gather(mesh)(x)), tree)
    return jax.tree.map(np.asarray, jax.device_get(tree))


@functools.lru_cache(maxsize=2)
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    """The identity, onto every device; kept, so that an array of known shape and sharding is not compiled for anew."""
    return jax.jit(lambda x: x, out_shardings=replicated_sharding(mesh))


def any_process(value: bool) -> bool:
    """Whether any process says so, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.int32(value))))


def describe_environment() -> dict[str, str]:
    """What a number was computed with: device and versions."""
    import platform
    from importlib.metadata import version

    device = jax.devices()[0]
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else ""
    packages = ("nml_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "device": f"{jax.device_count()} × {device.device_kind} ({device.platform}{cores})",
        "processes": str(jax.process_count()),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
