"""Test launch/ray_job.py with a fake of Ray whose hosts are threads."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.shell import LAUNCH, ROOT, clean

RAY = '''
import os, threading, time
from types import SimpleNamespace as Names

class RayActorError(Exception): ...
class RayTaskError(Exception):
    def __init__(self, cause):
        self.cause = cause

class Future(threading.Thread):
    """A running call on a host."""
    def __init__(self, call, args):
        super().__init__(daemon=True)
        self.call, self.args, self.value, self.error = call, args, None, None
        self.start()

    def run(self):
        try:
            if self.call.__name__ == "run" and self.args[2]["JAX_PROCESS_ID"] == os.environ.get("LACKS"):
                raise FileNotFoundError(2, "No such file or directory", self.args[1])
            self.value = self.call(*self.args)
        except Exception as e:
            self.error = e

class Actor:
    def __init__(self, of):
        self.of = of

    def __getattr__(self, name):
        return Names(remote=lambda *args: Future(getattr(self.of, name), args))

class Group:
    def wait(self, seconds):
        time.sleep(0 if "ROOM" in os.environ else seconds)
        return "ROOM" in os.environ

def init(**_): ...

def placement_group(bundles, strategy):
    print("asked for room", flush=True)
    return Group()

def remote(kind):
    return Names(options=lambda **_: Names(remote=lambda: Actor(kind())))

def get(future):
    future.join()
    if future.error:
        raise RayTaskError(future.error)
    return future.value

def wait(futures, timeout):
    end = time.monotonic() + timeout
    while not (done := [f for f in futures if not f.is_alive()][:1]) and time.monotonic() < end:
        time.sleep(0.01)
    return done, [f for f in futures if f not in done]

exceptions = Names(RayActorError=RayActorError, RayTaskError=RayTaskError)
util = Names(
    placement_group=placement_group, remove_placement_group=lambda group: None,
    scheduling_strategies=Names(PlacementGroupSchedulingStrategy=lambda **_: None),
    get_node_ip_address=lambda: "127.0.0.1",
)
'''
# A fake of nml_jax.main. It exits with CODE, or sleeps until SIGTERM.
MAIN = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
with (Path(__file__).parent / "started").open("a") as out:
    out.write(os.environ["JAX_PROCESS_ID"])
if "CODE" in os.environ:
    sys.exit(int(os.environ["CODE"]))
time.sleep(60)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(LAUNCH, tmp_path / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "nml_jax").mkdir()
    for name in ("__init__", "console", "errors"):
        shutil.copy(ROOT / "nml_jax" / f"{name}.py", tmp_path / "nml_jax")
    (tmp_path / "nml_jax" / "main.py").write_text(MAIN)
    (tmp_path / "ray.py").write_text(RAY)
    return tmp_path


def start(checkout: Path, *own: str, **env: str) -> subprocess.Popen[str]:
    """Start a job of two processes."""
    command = [sys.executable, str(checkout / "launch" / "ray_job.py"), "--processes=2", *own, "--", "--config=x"]
    return subprocess.Popen(
        command, cwd=checkout, env=clean() | {"PYTHONPATH": str(checkout)} | env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("code", ["75", "76"])
def test_restarts_are_bounded(checkout: Path, code: str):
    process = start(checkout, "--max_restarts=2", ROOM="", CODE=code)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == int(code), stderr
    assert sorted((checkout / "nml_jax" / "started").read_text()) == sorted("01" * 3)
    assert "not started again after 2 restarts" in stderr.splitlines()[-1]


def test_sigterm_stops_the_wait_for_room(checkout: Path):
    process = start(checkout, "--timeout=600")
    assert process.stdout is not None
    assert process.stdout.readline() == "asked for room\n"
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75, stderr
    assert stderr == "stopped before Ray had room for it; the same command tries again\n"


def test_no_room(checkout: Path):
    process = start(checkout, "--timeout=1")
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 2
    assert stderr.startswith(
        "error: Ray had no room for 2 × {'CPU': 1}, each on a host of its own, within 1 s\n  cure: "
    )


def test_a_host_without_the_checkout_is_reported_and_the_others_stop(checkout: Path):
    process = start(checkout, ROOM="", LACKS="1")
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 2, stderr
    cause, cure = stderr.splitlines()
    assert cause.startswith("error: process 1 did not start on its host: ")
    assert f"No such file or directory: '{checkout}'" in cause
    assert str(checkout) in cure
