"""What the environment says of the job that this process is one of; JAX itself reads most of it."""

import importlib.util
import ipaddress
from collections.abc import Mapping
from typing import Any

from nml_jax.errors import UserError

VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def arguments(env: Mapping[str, str]) -> dict[str, Any] | None:
    """Those of `jax.distributed.initialize` for this process, less what JAX finds itself; None: it is alone.

    JAX finds its place under Slurm, Open MPI 4, GKE, Kubernetes (with the package `kubernetes`) and on a Cloud TPU.
    Anywhere else, and where it shall not look, the three VARIABLES say it. Of Open MPI 5, whose variables JAX does not
    know, rank and size are read here.

    Raises:
        UserError: the variables are incomplete or no numbers, or name a coordinator that other hosts cannot reach; or
            this is one of the pods of a Kubernetes job, and nothing says how many there are.
    """
    given = {argument: env[name] for argument, name in VARIABLES.items() if name in env}
    if several(env, "OMPI_COMM_WORLD_SIZE") and "OMPI_MCA_orte_hnp_uri" not in env:
        own = {"num_processes": "SIZE", "process_id": "RANK"}
        if several(env, "OMPI_COMM_WORLD_LOCAL_SIZE") and "JAX_LOCAL_DEVICE_IDS" not in env:
            own["local_device_ids"] = "LOCAL_RANK"  # as JAX has it of Open MPI 4; one process of a host takes all
        given = {argument: env[f"OMPI_COMM_WORLD_{name}"] for argument, name in own.items()} | given
    if not given and not launched(env):
        if "JOB_COMPLETION_INDEX" in env and not env.keys() & {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"}:
            # Alone, each of its pods would train the whole run into the same folder.
            raise UserError(
                f"this is pod {env['JOB_COMPLETION_INDEX']} of an indexed Kubernetes job, and nothing says of how many",
                f"pip install kubernetes, or set {', '.join(VARIABLES.values())} (alone: localhost:1234, 1, 0)",
            )
        # JAX notes at import whether there is a TPU, and knows more of it than its environment does.
        return {} if "TPU_SKIP_MDS_QUERY" not in env and env.get("JAX_PLATFORMS", "tpu") != "cpu" else None
    if given and not launched(env) and not VARIABLES.keys() <= given.keys():
        absent = [name for argument, name in VARIABLES.items() if argument not in given]
        raise UserError(
            f"cannot join the job: {', '.join(f'{VARIABLES.get(k, k)}={v}' for k, v in given.items())}, and no "
            f"{', no '.join(absent)}",
            f"set {', '.join(VARIABLES.values())} for every process",
        )
    try:
        given |= {argument: int(value) for argument, value in given.items() if argument != "coordinator_address"}
    except ValueError as e:
        raise UserError(f"cannot join the job: {e}", f"set {', '.join(VARIABLES.values())}") from e
    require_reachable(str(given.get("coordinator_address", "")), hosts(env))
    return given


def launched(env: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows has started several processes."""
    return (
        ("SLURM_STEP_NODELIST" in env and several(env, "SLURM_NTASKS"))
        or several(env, "OMPI_COMM_WORLD_SIZE")
        or several(env, "MEGASCALE_NUM_SLICES")
        or "," in env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
        or ({"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= env.keys() and _installed("kubernetes"))
    )


def several(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "1") not in ("", "0", "1")


def hosts(env: Mapping[str, str]) -> int:
    """On how many hosts the job is, as far as its launcher tells; 1 where it does not."""
    size, local = (int(env.get(f"OMPI_COMM_WORLD_{name}") or 1) for name in ("SIZE", "LOCAL_SIZE"))
    workers = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", "")).split(",")
    slurm = int(env.get("SLURM_STEP_NUM_NODES") or 1)
    return max(slurm, -(-size // local), len({worker.split(":")[0] for worker in workers}))


def require_reachable(address: str, hosts: int) -> None:
    """Refuse a coordinator that is on a host's own loopback where there are several hosts.

    Raises:
        UserError: with the address.
    """
    if hosts > 1 and is_loopback(address):
        raise UserError(
            f"the coordinator {address} cannot be reached from other hosts, and the job is on {hosts}",
            "set JAX_COORDINATOR_ADDRESS to the name of process 0's host, and a port, on all of them",
        )


def is_loopback(address: str) -> bool:
    """Whether "host:port" names every host's own interface."""
    host = address.rpartition(":")[0].strip("[]").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost" or host.endswith(".localhost")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
