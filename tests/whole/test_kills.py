"""SIGKILL at any moment, and a new start: the same bits in the end as without.

The fast test kills once in each phase; the long one (`pytest -m slow`) at fifty moments drawn at random.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nml_jax import runtime, settings
from nml_jax.runs.rows import read_rows
from nml_jax.training import checkpoint, loop
from nml_jax.training.plan import Plan
from tests.scenes import programs
from tests.scenes.digits_experiment import flags
from tests.training.tiny import host

ROOT = Path(__file__).parents[2]
CELL = "noise=0.3,seed=0"
OPTIONS = {"train.epochs": 8.0, "tune.methods": "('linear','lbfgs')", "tune.cs": "(0.1,1.0)", "runtime.log_every": 3}

Program = Callable[[str], subprocess.Popen]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    """program(name): start the run in the folder of that name; what one start compiles the next one reads."""
    base = tmp_path_factory.mktemp("kills")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(base / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(name: str) -> subprocess.Popen:
        args = [sys.executable, "-m", "nml_jax.main", *flags(base / name, **OPTIONS)]
        env = os.environ | cache | {"JAX_PLATFORMS": "cpu"}
        process = programs.Popen(args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        process.folder = base / name  # type: ignore[attr-defined]
        return process

    return start


def ended(process: subprocess.Popen) -> Path:
    """The cell's folder of a run that has ended well."""
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return process.folder / CELL  # type: ignore[attr-defined]


def left(cell: Path) -> dict[str, Any]:
    """All that must not depend on interruptions."""
    saved = cell / "checkpoints"
    meta = checkpoint.read_meta(saved / str(checkpoint.find_latest_step(saved)))
    built = settings.from_json(meta["config"]), Plan(100, 10.0), runtime.make_mesh()
    program = loop.build(*built, num_classes=meta["num_classes"])
    checkpoints = checkpoint.Checkpoints(saved, every=1, keep=2, keep_every=0, meta={})
    state = checkpoints.restore(program.shapes)
    checkpoints.close()
    assert state is not None
    stages = json.loads((cell / "run.json").read_text())["stages"]
    return {
        "state": {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in host(state).items()},
        "rows": read_rows(cell),
        "samples": (cell / "samples.jsonl").read_bytes(),
        "outputs": {name: stage["output"] for name, stage in stages.items()},
        "banks": {str(p.relative_to(cell)): p.read_bytes() for p in sorted((cell / "banks").rglob("*.safetensors"))},
    }


@pytest.fixture(scope="module")
def unbroken(program) -> dict[str, Any]:
    return left(ended(program("unbroken")))


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        assert found[name] == value, name


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "loading": lambda cell: (cell / "noise.json").exists(),
    "in a step": lambda cell: (cell / "metrics.jsonl").exists() and bool((cell / "metrics.jsonl").read_text()),
    "in a save": lambda cell: bool([*(cell / "checkpoints").glob("*tmp*")]),
    "in extraction": lambda cell: any((cell / "banks").glob("*/.*.part")),  # a bank is half-written
    "in tuning": lambda cell: any((cell / "heads").rglob("*.safetensors")),  # the first of several heads is there
    "in the report": lambda cell: (cell.parent / "summary.csv").exists(),  # the page follows
}


def test_a_kill_in_every_phase_changes_nothing(program, unbroken):
    for moment, reached in MOMENTS.items():
        process = program("broken")
        while not reached(process.folder / CELL):
            assert process.poll() is None, f"ended before the moment {moment!r}: {process.communicate()[0]}"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    same(left(ended(program("broken"))), unbroken)


@pytest.mark.slow
def test_fifty_kills_at_random_change_nothing(program, unbroken):
    begun = time.monotonic()
    shutil.rmtree(ended(program("again")).parent)
    whole = time.monotonic() - begun
    rng, kills = np.random.default_rng(0), 0
    while kills < 50:
        process = program("again")
        try:
            process.wait(timeout=rng.uniform(0.0, whole))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        same(left(ended(process)), unbroken)
        shutil.rmtree(process.folder)
    same(left(ended(program("again"))), unbroken)
