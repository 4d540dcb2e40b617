"""Meshes and placement on eight simulated devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nml_jax import __version__, runtime
from nml_jax.errors import PeerLost, UserError
from nml_jax.processes import peers


@pytest.mark.parametrize(
    ("data", "fsdp", "expected"), [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (8, 1, (8, 1)), (1, 8, (1, 8))]
)
def test_mesh_sizes(data: int, fsdp: int, expected: tuple[int, int]):
    mesh = runtime.make_mesh(data, fsdp)
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == expected


@pytest.mark.parametrize(("data", "fsdp"), [(3, 1), (-1, 3), (-1, -1), (0, 8), (4, 1), (16, 1), (-1, 0)])
def test_a_mesh_that_does_not_fit(data: int, fsdp: int):
    with pytest.raises(UserError, match="8 device"):
        runtime.make_mesh(data, fsdp)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((65_535,), PartitionSpec()),
        ((65_536,), PartitionSpec("fsdp")),
        ((256, 256), PartitionSpec("fsdp", None)),
        ((256, 512), PartitionSpec(None, "fsdp")),
        ((3, 3, 512, 100), PartitionSpec(None, None, "fsdp", None)),
        ((99_999, 3), PartitionSpec()),
        ((99_999, 4), PartitionSpec(None, "fsdp")),
        ((), PartitionSpec()),
    ],
)
def test_sharding_by_shape(shape: tuple[int, ...], spec: PartitionSpec):
    assert runtime.choose_spec(shape, 4) == spec


def test_without_fsdp_everything_is_replicated():
    assert runtime.choose_spec((1024, 1024), 1) == PartitionSpec()


def test_a_batch_is_split_over_both_axes():
    mesh = runtime.make_mesh(2, 4)
    batch = runtime.put_batch(mesh)({"image": np.arange(32, dtype=np.uint8).reshape(16, 2)})
    assert batch["image"].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert {s.data.shape for s in batch["image"].addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(runtime.fetch(batch, mesh)["image"], np.arange(32).reshape(16, 2))
    assert runtime.find_process_block(mesh) == (0, 1)


@pytest.mark.parametrize("batch", [0, 7, 12, -8])
def test_a_batch_the_mesh_cannot_divide(batch: int, mesh):
    with pytest.raises(UserError, match=r"train\.batch"):
        runtime.check_batch(batch, mesh, "train.batch")


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_all_devices_add_up(data: int, fsdp: int):
    runtime.check_devices(runtime.make_mesh(data, fsdp))


def test_a_wrong_sum_is_an_error(mesh, monkeypatch):
    monkeypatch.setattr(runtime.jnp, "sum", lambda numbers: numbers[1:].sum())
    with pytest.raises(PeerLost, match="add up 1 to 8 to 35"):
        runtime.check_devices(mesh)


def test_a_sum_that_does_not_come_is_not_waited_for(mesh, monkeypatch):
    def silent(call, limit):
        assert limit == 7
        raise TimeoutError

    monkeypatch.setattr(runtime.job, "in_thread", silent)
    with pytest.raises(PeerLost, match="within 7 s"):
        runtime.check_devices(mesh, 7)


def test_a_job_in_one_line():
    line = runtime.describe(runtime.make_mesh(2, 4))
    assert line.startswith("1 host(s), 1 process(es), 8 × cpu")
    assert f"mesh data=2 × fsdp=4; nml_jax {__version__}, jax {jax.__version__}, jaxlib " in line


def test_an_incomplete_job_is_a_user_error(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS"):
        peers.start()


def test_environment_names_device_and_versions():
    environment = runtime.describe_environment()
    assert environment["jax"] == jax.__version__
    assert environment["device"].startswith("8 × cpu")


def test_a_mesh_of_given_devices_orders_them_by_process_and_number():
    devices = jax.devices()
    assert list(runtime.make_mesh(4, 2, devices[::-1]).devices.flat) == devices
    for data, fsdp in ((-1, 3), (4, 4), (-1, -1), (0, 8), (-1, 0), (3, -1)):
        with pytest.raises(UserError, match=r"8 device\(s\)"):
            runtime.make_mesh(data, fsdp, devices)


def test_compiled_code_is_cached_unless_the_user_has_said_where_and_not_on_a_cpu(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    try:
        for backend, named, kept in (("cpu", None, None), ("tpu", "/own", "/own"), ("tpu", None, f"{tmp_path}/cache")):
            jax.config.update("jax_compilation_cache_dir", named)
            with monkeypatch.context() as patch:
                patch.setattr(jax, "default_backend", lambda backend=backend: backend)
                runtime.keep_compiled(tmp_path / "cache")
            assert jax.config.jax_compilation_cache_dir == kept
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_number_of_threads_is_that_of_xla(monkeypatch):
    """XLA's pool takes its size from NPROC, or from the cores that the process may use."""
    code = (
        "import os, jax, jax.numpy as jnp; from nml_jax import runtime;"
        "jax.jit(lambda x: x @ x)(jnp.ones((64, 64))).block_until_ready();"
        "tasks = [open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task')];"
        "print(sum('XLAEigen' in task for task in tasks), runtime.count_threads())"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env | {"NPROC": "3"}, capture_output=True, text=True,
                          cwd=Path(__file__).parent.parent, timeout=60)  # fmt: skip
    assert done.stdout.split() == ["3", "3"], done.stderr
    monkeypatch.delenv("NPROC", raising=False)
    assert runtime.count_threads() == max(len(os.sched_getaffinity(0)), jax.local_device_count())
    assert runtime.describe_environment()["threads"] == str(runtime.count_threads())
