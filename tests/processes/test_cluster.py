"""A process recognises its job by the environment alone."""

import socket
from collections.abc import Mapping

import pytest

from nml_jax.errors import PeerLost, UserError
from nml_jax.processes import cluster

NO_TPU = {"TPU_SKIP_MDS_QUERY": "1"}  # JAX sets it where there is none
EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
}  # fmt: skip
MPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in
       {"SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}.items()}  # fmt: skip
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.2", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        (EXPLICIT, {"coordinator_address": "10.0.0.1:1234", "num_processes": 2, "process_id": 1}),
        (SLURM, {}),
        (SLURM | {"SLURM_NTASKS": "1"}, None),  # a task of a sweep
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),  # the batch script itself, without srun
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "n1:9"}, {"coordinator_address": "n1:9"}),  # JAX finds the rest
        (SLURM | {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"},
         {"coordinator_address": "localhost:61447"}),  # as JAX names it; so it can be kept at loopback
        (SLURM | {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1", "JAX_COORDINATOR_PORT": "9"},
         {"coordinator_address": "localhost:9"}),
        (MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:4"}, {}),
        (MPI, {"num_processes": 4, "process_id": 3, "local_device_ids": 1}),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, {"num_processes": 4, "process_id": 3}),  # all devices of its host
        (MPI | {"JAX_LOCAL_DEVICE_IDS": "2,3"}, {"num_processes": 4, "process_id": 3}),  # JAX reads them
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"MEGASCALE_NUM_SLICES": "2"}, {}),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.2"}, None),
        (POD | {"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        (POD | {"TPU_WORKER_HOSTNAMES": "localhost"}, None),  # a slice of one host
        (POD | EXPLICIT, {"coordinator_address": "10.0.0.1:1234", "num_processes": 2, "process_id": 1}),
    ],
)  # fmt: skip
def test_how_a_job_is_recognised(env: Mapping[str, str], expected: dict | None):
    assert cluster.find_job(env | NO_TPU) == expected


def test_a_pod_among_pods_is_not_alone(monkeypatch):
    """JAX finds its place only with the package `kubernetes`."""
    monkeypatch.setattr(cluster, "_is_installed", lambda package: package == "kubernetes")
    assert cluster.find_job(POD | NO_TPU) == {}
    monkeypatch.setattr(cluster, "_is_installed", lambda package: False)
    with pytest.raises(UserError, match="pod 1 of an indexed Kubernetes job") as e:
        cluster.find_job(POD | NO_TPU)
    assert e.value.cure.startswith("pip install kubernetes, or set JAX_COORDINATOR_ADDRESS, ")
    with pytest.raises(UserError, match="no JAX_PROCESS_ID"):
        cluster.find_job(POD | NO_TPU | {"JAX_NUM_PROCESSES": "2"})


def test_on_a_tpu_jax_finds_the_job():
    assert cluster.find_job({}) == {}
    assert cluster.find_job({"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": None}, "no JAX_PROCESS_ID"),
        ({"JAX_COORDINATOR_ADDRESS": None}, "no JAX_COORDINATOR_ADDRESS"),
        ({"JAX_NUM_PROCESSES": "two"}, "'two'"),
    ],
)
def test_incomplete_or_no_number(change: Mapping[str, str | None], message: str):
    env = {k: v for k, v in (EXPLICIT | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        cluster.find_job(env | NO_TPU)


@pytest.mark.parametrize("address", ["", "10.0.0.1", "10.0.0.1:", ":1234", "10.0.0.1:0", "10.0.0.1:99999999", "a:b"])
def test_an_invalid_address(address: str):
    with pytest.raises(UserError, match=r"JAX_COORDINATOR_ADDRESS='.*' is not an address"):
        cluster.find_job(EXPLICIT | NO_TPU | {"JAX_COORDINATOR_ADDRESS": address})


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (SLURM | {"SLURM_STEP_NUM_NODES": "two"}, "SLURM_STEP_NUM_NODES=two must be a positive integer"),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "x"}, "OMPI_COMM_WORLD_LOCAL_SIZE=x must be a positive integer"),
        ({k: v for k, v in MPI.items() if "RANK" not in k}, "has not set OMPI_COMM_WORLD_RANK"),
    ],
)
def test_invalid_variables_of_a_launcher(env: Mapping[str, str], message: str):
    with pytest.raises(UserError, match=message):
        cluster.find_job(env | NO_TPU)


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PeerLost, match=f"cannot listen at port {port}"):
            cluster.require_free(f"localhost:{port}")
    cluster.require_free(f"localhost:{port}")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.1.2.3:1", "localhost:1", "[::1]:1", "LOCALHOST:99"])
@pytest.mark.parametrize("launcher", [SLURM, MPI, {"TPU_WORKER_HOSTNAMES": "a:1,b:1"}], ids=["slurm", "mpi", "tpu"])
def test_a_coordinator_on_loopback_is_an_error_on_several_hosts(address: str, launcher: Mapping[str, str]):
    with pytest.raises(UserError, match="cannot be reached from other hosts"):
        cluster.find_job(launcher | EXPLICIT | {"JAX_COORDINATOR_ADDRESS": address} | NO_TPU)


@pytest.mark.parametrize(
    "launcher", [{}, SLURM | {"SLURM_STEP_NUM_NODES": "1"}, MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}]
)
def test_on_one_host_loopback_is_allowed(launcher: Mapping[str, str]):
    env = launcher | EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"} | NO_TPU
    assert cluster.find_job(env)["coordinator_address"] == "127.0.0.1:1"  # type: ignore[index]


@pytest.mark.parametrize("address", ["10.0.0.1:1", "node1:1", "[fe80::1]:1", "local:1", ""])
def test_other_addresses_are_not_loopback(address: str):
    assert not cluster.is_loopback(address)


def test_jax_names_the_coordinator_under_slurm_the_same(monkeypatch):
    from jax._src.clusters import SlurmCluster

    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost")
    mine = cluster.find_job(SLURM | {"SLURM_JOB_ID": "123456", "SLURM_STEP_NODELIST": "localhost",
                                     "SLURM_STEP_NUM_NODES": "1"} | NO_TPU)  # fmt: skip
    assert mine == {"coordinator_address": SlurmCluster.get_coordinator_address(None, None)}


def test_several_hosts_found_after_joining():
    cluster.require_reachable("127.0.0.1:1", 1)
    with pytest.raises(UserError, match="the job is on 3"):
        cluster.require_reachable("127.0.0.1:1", 3)


@pytest.mark.parametrize(
    ("env", "address", "bind"),
    [
        ({}, "127.0.0.1:5", "127.0.0.1:5"),
        ({}, "localhost:5", "127.0.0.1:5"),
        ({}, "[::1]:5", "[::1]:5"),
        ({}, "host0:5", None),  # others reach it by a name, whose interface only they know
        ({}, "", None),
        ({"JAX_COORDINATOR_BIND_ADDRESS": "0.0.0.0:5"}, "127.0.0.1:5", None),  # JAX reads it
    ],
)
def test_a_coordinator_at_loopback_listens_there_alone(env: Mapping[str, str], address: str, bind: str | None):
    assert cluster.choose_bind_address(env, address) == bind


@pytest.mark.parametrize(
    ("env", "advice"),
    [
        (EXPLICIT, "see that all were started and reach n1:9"),
        (EXPLICIT | SLURM, "see that all were started and reach n1:9"),
        (SLURM, "SLURM_NTASKS=2 says that there are so many: start all with srun, or run alone with SLURM_NTASKS=1"),
        (MPI, "OMPI_COMM_WORLD_SIZE=4 says that there are so many; see that all were started"),
    ],
)
def test_who_waits_in_vain_hears_which_variable_says_so(env: Mapping[str, str], advice: str):
    assert cluster.advise(env, "n1:9").startswith(advice)
