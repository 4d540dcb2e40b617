"""Devices and placement: the mesh, where arrays live, and how a batch gets there."""

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
from nml_jax.processes.forks import refuse_fork

Batch = Mapping[str, Any]
# Smaller arrays are replicated: splitting them saves no memory worth a collective.
SHARD_FROM = 2**16
BATCH_SPEC = PartitionSpec(("data", "fsdp"))
# Options of the CPU compiler. Barriers must stay until operations are fused (`materialise`). YNNPACK is not used:
# with its matrix products, features of transformers take a quarter longer than with Eigen's, and with its convolutions
# twice as long, and three times as long for the gradients of the kernels (jaxlib 0.10.2; benchmarks/published.py).
CPU_OPTIONS = {
    "xla_disable_hlo_passes": "cse_barrier_expander",
    "xla_cpu_experimental_ynn_fusion_type": "",
}


def check_ranges(config: Any) -> None:
    """Refuse values of the section `runtime` that are out of range."""
    ranges.require_at_least(1, "runtime", config, "max_skipped", "log_every", "keep", "timeout")
    ranges.require_at_least(0, "runtime", config, "threads", "prefetch", "eval_every", "keep_every")
    ranges.require_positive("runtime", config, "save_every")


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Make the mesh of all devices, or of those given, with Auto axes "data" and "fsdp"; -1 stands for the rest.

    Devices are ordered by process, so that each process reads consecutive rows of a batch (`find_process_block`) and
    `fsdp` may be any divisor. jax.make_mesh follows the links of a TPU slice instead. That scatters the rows of a host,
    and on a v4, v5p or v6e an axis must be a side of the slice. The order does not change a reduction over all devices.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    refuse_fork()
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
    """Check that all devices can compute a sum together.

    Raises:
        PeerLost: the sum is wrong, or not there after `timeout` seconds.
    """
    n = mesh.size
    sharding = NamedSharding(mesh, BATCH_SPEC)
    numbers = jax.make_array_from_callback((n,), sharding, lambda index: np.arange(1, n + 1, dtype=np.int32)[index])
    try:
        total = job.in_thread(lambda: int(jax.jit(jnp.sum, out_shardings=replicated_sharding(mesh))(numbers)), timeout)
    except TimeoutError as e:
        raise PeerLost(f"the devices have not added up {n} numbers within {timeout:g} s: one does not answer") from e
    if total != n * (n + 1) // 2:
        raise PeerLost(f"the devices add up 1 to {n} to {total}: one of them, or a link, is broken")


def describe(mesh: Mesh) -> str:
    """Describe hosts, processes, devices, mesh and versions in one line."""
    about, hosts = describe_environment(), len(set(peers.list_hosts()))
    axes = " × ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    versions = ", ".join(f"{name} {about[name]}" for name in ("nml_jax", "jax", "jaxlib", "python"))
    return f"{hosts} host(s), {about['processes']} process(es), {about['device']}, mesh {axes}; {versions}"


def choose_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Split arrays of 2¹⁶ elements or more over `fsdp` along their largest divisible axis; replicate the others."""
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not divisible or np.prod(shape) < SHARD_FROM:
        return PartitionSpec()
    axis = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if i == axis else None for i in range(len(shape))))


def choose_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return a NamedSharding for every leaf (with a shape) of `tree`, by `choose_spec`."""
    return jax.tree.map(lambda x: NamedSharding(mesh, choose_spec(x.shape, mesh.shape["fsdp"])), tree)


def make_gather(split: Any, mesh: Mesh) -> Callable[[Any], Any]:
    """Return an identity that all-gathers parameters in the forward pass and reduce-scatters their gradients.

    Without it XLA would gather the activations over `fsdp`, and there are more of them.

    Args:
        split: the shardings of the parameters.
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


def add_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return a tree of shapes as ShapeDtypeStructs with their shardings, as a restore needs them."""
    shardings = choose_shardings(tree, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch: int, mesh: Mesh, key: str) -> None:
    """Raise UserError if `batch`, the value of config key `key`, is not a positive multiple of the mesh's size."""
    if batch < 1 or batch % mesh.size:
        raise UserError(
            f"{key}={batch} cannot be divided over the {mesh.size} device(s) of the mesh",
            f"set {key} to a multiple of {mesh.size}",
        )


def find_process_block(mesh: Mesh) -> tuple[int, int]:
    """Return (block, blocks): which of the equal consecutive blocks of a global batch this process holds."""
    count = jax.process_count()
    if count == 1:
        return 0, 1
    indices = NamedSharding(mesh, BATCH_SPEC).devices_indices_map((mesh.size,))
    rows = sorted(indices[d][0].start or 0 for d in mesh.local_devices)
    size = mesh.size // count
    if len(rows) != size or rows != list(range(rows[0], rows[0] + size)) or rows[0] % size:
        raise RuntimeError(f"process {jax.process_index()} holds rows {rows}, not a block of {size}: reorder the mesh")
    return rows[0] // size, count


def keep_compiled(folder: Path) -> None:
    """Cache compiled code in `folder`, unless the user has named another.

    Do nothing on a CPU, whose compiled code may not run on another host that shares the folder.
    """
    if jax.default_backend() != "cpu" and jax.config.jax_compilation_cache_dir is None:  # pyright: ignore
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


@functools.cache
def _choose_cpu_options() -> dict[str, str] | None:
    """Return CPU_OPTIONS, or None if this version of the compiler does not know them."""
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return CPU_OPTIONS


def jit(function: Callable[..., Any], mesh: Mesh, **how: Any) -> Any:
    """Apply jax.jit to something large, such as a step, with compiler options for its devices."""
    platform = mesh.devices.flat[0].platform
    return jax.jit(function, compiler_options=_choose_cpu_options() if platform == "cpu" else None, **how)


def put_batch(mesh: Mesh) -> Callable[[Batch], dict[str, jax.Array]]:
    """Return a function that puts a process's rows (NumPy) on the devices as a global batch over (data, fsdp)."""
    sharding = NamedSharding(mesh, BATCH_SPEC)

    def put(batch: Batch) -> dict[str, jax.Array]:
        if jax.process_count() == 1:  # the same result, in one call for all arrays
            return jax.device_put(dict(batch), sharding)
        return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}

    return put


def to_mesh(tree: Any, mesh: Mesh) -> Any:
    """Make global arrays, sharded by shape, from arrays that every process holds whole. Each has its own buffer."""
    return jax.tree.map(_put, tree, choose_shardings(tree, mesh))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


def move_to_mesh(tree: Any, mesh: Mesh) -> Any:
    """Do as `to_mesh`, array by array in place: what is not referenced elsewhere is never in memory twice.

    Args:
        tree: nested dicts of arrays, or a tuple of such; the dicts then hold the global arrays.
    """

    def move(node: dict[str, Any], shardings: dict[str, Any]) -> None:
        for name, own in node.items():
            if isinstance(own, dict):
                move(own, shardings[name])
            else:
                node[name] = _put(own, shardings[name])

    whole = choose_shardings(tree, mesh)
    for part, shardings in zip(tree, whole, strict=True) if isinstance(tree, tuple) else [(tree, whole)]:
        move(part, shardings)
    return tree


def fetch(tree: Any, mesh: Mesh) -> Any:
    """Return global arrays as whole NumPy arrays on every process; gathers one array at a time."""
    if jax.process_count() > 1:
        return jax.tree.map(lambda x: np.asarray(_make_replicate(mesh)(x)), tree)
    return jax.tree.map(np.asarray, jax.device_get(tree))


@functools.lru_cache(maxsize=2)
def _make_replicate(mesh: Mesh) -> Callable[[Any], Any]:
    """Return the identity onto every device. The cache spares compiling it again for a known shape and sharding."""
    return jax.jit(lambda x: x, out_shardings=replicated_sharding(mesh))


def any_process(value: bool) -> bool:
    """Return on every process whether `value` is true on any."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.int32(value))))


def count_threads() -> int:
    """Return the number of threads that share one operation on the CPU: as many as the process may use cores.

    Sums are split among them, so other numbers of threads round differently. XLA takes the number from NPROC, if it is
    set, and has at least one thread for each device.
    """
    asked = os.environ.get("NPROC", "")
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(asked) if asked.isdecimal() and int(asked) else own, jax.local_device_count())


def describe_environment() -> dict[str, str]:
    """Return the device and versions that a number was computed with."""
    import platform
    from importlib.metadata import version

    device = jax.devices()[0]
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else ""
    packages = ("nml_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "device": f"{jax.device_count()} × {device.device_kind} ({device.platform}{cores})",
        "processes": str(jax.process_count()),
        **({"threads": str(count_threads())} if device.platform == "cpu" else {}),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
