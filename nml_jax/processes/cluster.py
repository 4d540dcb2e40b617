"""Find out from the environment which job this process belongs to. JAX itself reads most of it."""

import importlib.util
import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Any

from nml_jax.errors import PeerLost, UserError

VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def find_job(env: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what `jax.distributed.initialize` needs and JAX does not find itself; None if this process is alone.

    JAX finds its place under Slurm, Open MPI 4, GKE, Kubernetes (with the package `kubernetes`) and on a Cloud TPU.
    Elsewhere, or to override it, set the three VARIABLES. JAX does not know the variables of Open MPI 5: its rank and
    size are read here.

    Raises:
        UserError: a variable is missing or not a number; other hosts cannot reach the coordinator; or this is one pod
            of a Kubernetes job of unknown size.
    """
    given = {argument: env[name] for argument, name in VARIABLES.items() if name in env}
    if are_several(env, "OMPI_COMM_WORLD_SIZE") and "OMPI_MCA_orte_hnp_uri" not in env:
        own = {"num_processes": "SIZE", "process_id": "RANK"}
        if are_several(env, "OMPI_COMM_WORLD_LOCAL_SIZE") and "JAX_LOCAL_DEVICE_IDS" not in env:
            own["local_device_ids"] = "LOCAL_RANK"  # as JAX does under Open MPI 4; a single process takes all devices
        given = {argument: _require(env, f"OMPI_COMM_WORLD_{name}") for argument, name in own.items()} | given
    if not given and not is_launched(env):
        if "JOB_COMPLETION_INDEX" in env and not env.keys() & {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"}:
            # Otherwise each pod would train the whole run into the same folder.
            raise UserError(
                f"this is pod {env['JOB_COMPLETION_INDEX']} of an indexed Kubernetes job of unknown size",
                f"pip install kubernetes, or set {', '.join(VARIABLES.values())} (alone: localhost:1234, 1, 0)",
            )
        # JAX checks for a TPU at import, and sets this variable if there is none.
        return {} if "TPU_SKIP_MDS_QUERY" not in env and env.get("JAX_PLATFORMS", "tpu") != "cpu" else None
    if given and not is_launched(env) and not VARIABLES.keys() <= given.keys():
        absent = [name for argument, name in VARIABLES.items() if argument not in given]
        raise UserError(
            f"cannot join the job: {', '.join(f'{VARIABLES.get(k, k)}={v}' for k, v in given.items())}, but no "
            f"{', no '.join(absent)}",
            f"set {', '.join(VARIABLES.values())} for every process",
        )
    if "coordinator_address" not in given and (address := _find_slurm_loopback(env)):
        given["coordinator_address"] = address
    try:
        given |= {argument: int(value) for argument, value in given.items() if argument != "coordinator_address"}
    except ValueError as e:
        raise UserError(f"cannot join the job: {e}", f"set {', '.join(VARIABLES.values())}") from e
    address = str(given.get("coordinator_address", ""))
    if "coordinator_address" in given and not _is_address(address):
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS={address!r} is not an address", "give process 0's host and port, as host0:1234"
        )
    require_reachable(address, count_hosts(env))
    return given


def is_launched(env: Mapping[str, str]) -> bool:
    """Return whether a launcher that JAX knows has started several processes."""
    return (
        ("SLURM_STEP_NODELIST" in env and are_several(env, "SLURM_NTASKS"))
        or are_several(env, "OMPI_COMM_WORLD_SIZE")
        or are_several(env, "MEGASCALE_NUM_SLICES")
        or "," in env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
        or ({"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= env.keys() and _is_installed("kubernetes"))
    )


def are_several(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "1") not in ("", "0", "1")


def count_hosts(env: Mapping[str, str]) -> int:
    """Return the number of hosts that the launcher names; 1 if it names none."""
    size, local = (_read_count(env, f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "LOCAL_SIZE"))
    workers = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", "")).split(",")
    slurm = _read_count(env, "SLURM_STEP_NUM_NODES")
    return max(slurm, -(-size // local), len({worker.split(":")[0] for worker in workers}))


def require_reachable(address: str, hosts: int) -> None:
    """Raise UserError if there are several hosts and the coordinator's "host:port" is a loopback address."""
    if hosts > 1 and is_loopback(address):
        raise UserError(
            f"the coordinator {address} cannot be reached from other hosts, and the job is on {hosts}",
            "set JAX_COORDINATOR_ADDRESS to the name of process 0's host, and a port, on all of them",
        )


def advise(env: Mapping[str, str], address: str) -> str:
    """Return what to do if other processes do not come, in words that fit the launcher that says they exist."""
    reach = f"see that all were started and reach {address}"
    if VARIABLES["num_processes"] in env:
        return reach
    if "SLURM_STEP_NODELIST" in env and are_several(env, "SLURM_NTASKS"):
        return (
            f"SLURM_NTASKS={env['SLURM_NTASKS']} says that there are so many: start all with srun, or run alone with "
            "SLURM_NTASKS=1 before the command"
        )
    if are_several(env, "OMPI_COMM_WORLD_SIZE"):
        return f"OMPI_COMM_WORLD_SIZE={env['OMPI_COMM_WORLD_SIZE']} says that there are so many; {reach}"
    return reach


def choose_bind_address(env: Mapping[str, str], address: str) -> str | None:
    """Return where the coordinator at "host:port" must listen; None: where JAX says, at every interface of its host.

    A coordinator at loopback listens at that address alone. It asks nobody who they are: whoever reaches it can join
    the job and end it.
    """
    if "JAX_COORDINATOR_BIND_ADDRESS" in env or not is_loopback(address):
        return None
    host, _, port = address.rpartition(":")
    return f"{host if _is_number(host) else '127.0.0.1'}:{port}"


def require_free(address: str) -> None:
    """Raise PeerLost if the port of "host:port" is taken on this host; the library might crash."""
    host, _, port = (choose_bind_address({}, address) or address).rpartition(":")
    own = host.strip("[]") if is_loopback(address) else ""
    with socket.socket(socket.AF_INET6 if ":" in own else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((own, int(port)))
        except OSError as e:
            raise PeerLost(
                f"process 0 cannot listen at port {port}: {e.strerror}; another job or program uses it"
            ) from e


def _find_slurm_loopback(env: Mapping[str, str]) -> str:
    """Return the "host:port" that JAX chooses under Slurm if it is at loopback, as on one workstation, else ""."""
    host, job = re.split(r"[,[]", env.get("SLURM_STEP_NODELIST", ""))[0], env.get("SLURM_JOB_ID", "")
    if are_several(env, "OMPI_COMM_WORLD_SIZE") or not (are_several(env, "SLURM_NTASKS") and job.isdecimal()):
        return ""
    port = env.get("JAX_COORDINATOR_PORT") or str(61_440 + int(job) % 4096)
    return f"{host}:{port}" if is_loopback(f"{host}:{port}") else ""


def is_loopback(address: str) -> bool:
    """Return whether "host:port" is a loopback address, which every host has for itself."""
    host = address.rpartition(":")[0].strip("[]").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost" or host.endswith(".localhost")


def _is_number(host: str) -> bool:
    """Return whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _require(env: Mapping[str, str], name: str) -> str:
    if name not in env:
        raise UserError(f"the launcher has not set {name}", "see how it was called")
    return env[name]


def _read_count(env: Mapping[str, str], name: str) -> int:
    """Return a launcher's variable as a positive integer; 1 if it is not set."""
    value = env.get(name) or "1"
    if not re.fullmatch("[1-9][0-9]{0,8}", value):
        raise UserError(f"{name}={value} must be a positive integer", "see how the launcher was called")
    return int(value)


def _is_address(text: str) -> bool:
    """Return whether the text has the form "host:port"."""
    host, _, port = text.rpartition(":")
    return bool(host) and bool(re.fullmatch("[0-9]{1,5}", port)) and 0 < int(port) < 2**16


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
