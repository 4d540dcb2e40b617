"""Test launch/local.py and launch/ray_job.py: exact commands, bad input, and real processes that do not train."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.shell import LAUNCH, ROOT, clean, printed, refused, run

FLAGS = ["--config=configs/digits.py", "--workdir=/mnt/my runs"]
MAIN = [sys.executable, "-m", "nml_jax.main", *FLAGS]


def test_local_prints_the_commands():
    own = ["--dry_run", "--processes=2", "--port=5000", "--cpu_devices=4"]
    assert printed("local.py", *own, "--", *FLAGS) == [
        ["env", "JAX_COORDINATOR_ADDRESS=127.0.0.1:5000", "JAX_NUM_PROCESSES=2", f"JAX_PROCESS_ID={i}",
         "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=4", *MAIN]
        for i in range(2)
    ]  # fmt: skip
    (only,) = printed("local.py", "--dry_run", "--processes=1", "--port=5000", "--per_gpu", "--", *FLAGS)
    assert "JAX_LOCAL_DEVICE_IDS=0" in only


def test_ray_prints_the_commands():
    assert printed("ray_job.py", "--dry_run", "--processes=2", "--gpus=4", "--", *FLAGS) == [
        ["env", "JAX_COORDINATOR_ADDRESS=HOST_OF_PROCESS_0:PORT", "JAX_NUM_PROCESSES=2", f"JAX_PROCESS_ID={i}",
         "JAX_LOCAL_DEVICE_IDS=0,1,2,3", *MAIN]
        for i in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (["local.py", "--processes=0"], "--processes must be at least 1, got 0"),
        (["local.py", "--processes=two"], "'two'"),
        (["local.py", "--config=x"], "--config=x"),
        (["ray_job.py", "--processes=0"], "too small"),
        (["ray_job.py", "--gpu=1"], "--gpu=1"),
    ],
)
def test_bad_input(args: list[str], cause: str):
    assert cause in refused(args[0], "--dry_run", *args[1:])


def test_missing_ray_is_reported(tmp_path: Path):
    (tmp_path / "ray.py").write_text("raise ImportError('ray')\n")
    assert "Ray is not installed" in refused("ray_job.py", "--", *FLAGS, PYTHONPATH=str(tmp_path))


def write_program(tmp_path: Path, text: str) -> str:
    """Write a fake of nml_jax.main and return the folder to run `python -m nml_jax.main` from."""
    (tmp_path / "nml_jax").mkdir()
    for name in ("__init__", "console", "errors"):
        (tmp_path / "nml_jax" / f"{name}.py").write_text((ROOT / "nml_jax" / f"{name}.py").read_text())
    (tmp_path / "nml_jax" / "main.py").write_text(text)
    return str(tmp_path)


@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((75, 75), 75), ((76, 2), 2), ((0, -9), 76)])
def test_exit_code_of_local(tmp_path: Path, codes: tuple[int, int], code: int):
    text = f"import os, sys\ni = int(os.environ['JAX_PROCESS_ID'])\nprint('I am', i, sys.argv[1:])\ncode = {codes}[i]\n"
    text += "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)\n"
    done = run("local.py", "--", "--config=a b", cwd=Path(write_program(tmp_path, text)))
    assert done.returncode == code, done.stderr
    assert {line for line in done.stdout.splitlines() if "I am" in line} >= {"0: I am 0 ['--config=a b']"}


@pytest.mark.parametrize("stopped", [0, 1])
def test_local_kills_a_process_that_does_not_end_after_a_failure(tmp_path: Path, stopped: int):
    text = f"import os, signal, sys\nos.environ['JAX_PROCESS_ID'] == '{1 - stopped}' and sys.exit(76)\n"
    text += "os.kill(os.getpid(), signal.SIGSTOP)\n"
    done = run("local.py", "--patience=0.5", "--", "--config=x", cwd=Path(write_program(tmp_path, text)))
    assert done.returncode == 76, done.stderr
    assert f"killed 0.5 s after another process failed: [{stopped}]" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process when its parent dies")
def test_no_process_outlives_its_launcher(tmp_path: Path):
    text = "import os, time\nopen(os.environ['JAX_PROCESS_ID'], 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH / "local.py"), "--", "--config=x"], cwd=write_program(tmp_path, text), env=clean()
    )
    files = [tmp_path / "0", tmp_path / "1"]
    deadline = time.monotonic() + 30
    while not all(f.exists() and f.read_text() for f in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    children = [Path("/proc") / f.read_text() for f in files]
    while any(child.exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(child.exists() for child in children)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_forwards_signals(tmp_path: Path, number: signal.Signals):
    """Check that SIGTERM and Ctrl-C both arrive as SIGTERM, so that the processes save."""
    text = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nprint('up', flush=True)\n"
    text += "time.sleep(60)\n"
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH / "local.py"), "--", "--config=x"],
        cwd=write_program(tmp_path, text), env=clean() | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"0: up\n", "1: up\n"}
    os.killpg(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == 75
