"""Run the launchers in tests and read the commands that they print."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tests.scenes import programs

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
SHELL = ("lib.sh", "mpi.sh", "on_worker.sh", "slurm.sbatch", "tpu_pod.sh", "xpk.sh")


def run(script: str, *args: str, cwd: str | Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher from `cwd` with this process's environment variables and these."""
    program, call = (sys.executable, programs.run) if script.endswith(".py") else ("bash", subprocess.run)
    command = [program, str(LAUNCH / script), *args]
    return call(command, cwd=cwd, env=clean() | env, capture_output=True, text=True, timeout=60)


def clean() -> dict[str, str]:
    """Return this process's environment variables without those of any job."""
    foreign = ("SLURM_", "OMPI_", "JAX_", "NML_")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)}


def printed(script: str, *args: str, cwd: str | Path = ROOT, **env: str) -> list[list[str]]:
    """Run a launcher and return the commands that it prints, as words."""
    done = run(script, *args, cwd=cwd, **env)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line, comments=True) for line in done.stdout.splitlines() if not line.startswith("#")]


def refused(script: str, *args: str, cwd: str | Path = ROOT, **env: str) -> str:
    """Run a launcher with bad input and return its stderr. Check exit code 2 and one line each of cause and cure."""
    done = run(script, *args, cwd=cwd, **env)
    assert (done.returncode, done.stdout) == (2, ""), (done.stdout, done.stderr)
    cause, cure = done.stderr.splitlines()
    assert cause.startswith("error: ")
    assert cure.startswith("  cure: ")
    assert len(cure) > len("  cure: ")
    return done.stderr


def load(name: str) -> ModuleType:
    """Import a module of launch/, which is a folder of scripts, not a package."""
    if str(LAUNCH) not in sys.path:
        sys.path.append(str(LAUNCH))
    return importlib.import_module(name)
