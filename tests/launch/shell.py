"""What the tests of the launchers share: running them, and reading the commands that they print."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
SHELL = ("lib.sh", "mpi.sh", "on_worker.sh", "slurm.sbatch", "tpu_pod.sh", "xpk.sh")


def run(script: str, *args: str, cwd: str | Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher from `cwd`, with these variables besides those of this process."""
    program = [sys.executable] if script.endswith(".py") else ["bash"]
    command = [*program, str(LAUNCH / script), *args]
    return subprocess.run(command, cwd=cwd, env=clean() | env, capture_output=True, text=True, timeout=60)


def clean() -> dict[str, str]:
    """This process's variables without those by which a job is recognised."""
    foreign = ("SLURM_", "OMPI_", "JAX_", "NML_")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)}


def printed(script: str, *args: str, cwd: str | Path = ROOT, **env: str) -> list[list[str]]:
    """The commands that a launcher prints, as words."""
    done = run(script, *args, cwd=cwd, **env)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line, comments=True) for line in done.stdout.splitlines() if not line.startswith("#")]


def refused(script: str, *args: str, cwd: str | Path = ROOT, **env: str) -> str:
    """What a launcher says to bad input: one line of cause, one of cure, exit code 2, and nothing else."""
    done = run(script, *args, cwd=cwd, **env)
    assert (done.returncode, done.stdout) == (2, ""), (done.stdout, done.stderr)
    cause, cure = done.stderr.splitlines()
    assert cause.startswith("error: ")
    assert cure.startswith("  cure: ")
    assert len(cure) > len("  cure: ")
    return done.stderr


def load(name: str) -> ModuleType:
    """A module of launch/, which is a folder of scripts and no package."""
    if str(LAUNCH) not in sys.path:
        sys.path.append(str(LAUNCH))
    return importlib.import_module(name)
