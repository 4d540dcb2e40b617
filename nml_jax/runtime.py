"""Processes, devices and placement: joining a job, the mesh, where arrays live, and how a batch gets there."""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nml_jax.errors import PeerLost, UserError

Batch = Mapping[str, Any]

# Smaller arrays are replicated: splitting them saves no memory worth a collective.
SHARD_FROM = 2**16

BATCH_SPEC = PartitionSpec(("data", "fsdp"))


def start(timeout: int = 120) -> None:
    """Join the other processes of this job, if there are any.

    A job is recognised by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by the environment of
    Slurm, Open MPI or a TPU pod, where JAX finds the rest itself.

    Args:
        timeout: seconds to wait for the peers.

    Raises:
        UserError: the three variables are incomplete or no numbers.
        PeerLost: the job refused this process. If its peers do not come in time, the process ends with that exit code.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    explicit: dict[str, Any] = {}
    if given:
        try:
            address, count, index = given[names[0]], int(given[names[1]]), int(given[names[2]])
        except (KeyError, ValueError) as e:
            raise UserError(
                f"cannot join the job: {given} is incomplete or no number", f"set {', '.join(names)}"
            ) from e
        explicit = {"coordinator_address": address, "num_processes": count, "process_id": index}
    elif not _in_a_job():
        return
    if jax.distributed.is_initialized():
        return
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX ends a process that waits in vain with an abort and a stack trace; we are a little earlier.
    who = f"process {explicit['process_id']} of {explicit['num_processes']}" if explicit else "this process"
    watch = threading.Timer(timeout, _give_up, [f"{who} waited {timeout} s for the other processes of its job"])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(initialization_timeout=timeout + 60, **explicit)
    except (RuntimeError, ValueError) as e:
        raise PeerLost(f"{who} could not join its job: {str(e).splitlines()[0]}") from e
    finally:
        watch.cancel()


def _give_up(cause: str) -> None:
    """End the process although its main thread is in a library that does not return."""
    print(f"stopped: {cause}; see that all were started and reach the coordinator", file=sys.stderr, flush=True)
    os._exit(PeerLost.exit_code)


def _in_a_job() -> bool:
    env = os.environ
    several = (int(env.get(name, "1")) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    inside = "SLURM_PROCID" in env or "OMPI_COMM_WORLD_RANK" in env
    return (inside and any(several)) or "," in env.get("TPU_WORKER_HOSTNAMES", "")


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """The mesh of all devices with Auto axes "data" and "fsdp"; -1 stands for the rest.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    n = jax.device_count()
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
    return jax.make_mesh((sizes[0], sizes[1]), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


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


def with_shardings(tree: Any, mesh: Mesh) -> Any:
    """`tree` of shapes as ShapeDtypeStructs that carry their sharding, which a restore asks for."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings(tree, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
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


def rows_of_process(mesh: Mesh) -> tuple[int, int]:
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


def put_batch(mesh: Mesh) -> Callable[[Batch], dict[str, jax.Array]]:
    """A function from a process's rows (NumPy) to the global batch on the devices, split over (data, fsdp)."""
    sharding = NamedSharding(mesh, BATCH_SPEC)

    def put(batch: Batch) -> dict[str, jax.Array]:
        return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}

    return put


def place(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds whole, as global arrays sharded by shape. Each is a buffer of its own."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))

    return jax.tree.map(put, tree, shardings(tree, mesh))


def fetch(tree: Any, mesh: Mesh) -> Any:
    """`tree` of global arrays as NumPy, whole, on every process."""
    if jax.process_count() > 1:
        tree = _gather(mesh)(tree)
    return jax.tree.map(np.asarray, jax.device_get(tree))


@functools.lru_cache(maxsize=2)
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    """The identity, onto every device; kept, so that a tree of known shapes is not compiled for anew."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def agree(value: bool) -> bool:
    """The first process's answer, on every process: what all must decide alike is decided once."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


class Preemption:
    """While active, SIGTERM sets `asked` in place of ending the process."""

    def __enter__(self) -> "Preemption":
        self.asked = False
        try:
            self.previous = signal.signal(signal.SIGTERM, self._ask)
        except ValueError:  # not in the main thread: whoever called handles signals
            self.previous = None
        return self

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)


def environment() -> dict[str, str]:
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
