"""A process that has only loaded a classifier may fork workers; where JAX has started, a forked worker says so."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from nml_jax import NMTuneClassifier, UserError, diagnose, load_model, runtime
from nml_jax.models.heads.mlp import Form
from nml_jax.processes import forks
from nml_jax.tuning.head_file import TunedHead
from tests.launch.shell import ROOT, clean
from tests.scenes import programs

FORK = """
import os, sys, warnings
import numpy as np
from nml_jax import NMTuneClassifier

warnings.simplefilter("ignore")  # JAX warns of every fork
head, started = NMTuneClassifier.load(sys.argv[1]), sys.argv[2] == "started"
rows = np.eye(2, dtype=np.float32)
if started:
    head.predict(rows)
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
code = 3
try:
    code = 0 if head.predict(rows).tolist() == [0, 1] else 4
except ValueError as e:
    print(e, flush=True)
    code = 5
finally:
    os._exit(code)
"""


def fork(tmp_path: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Load a head in a process, and predict in a fork of it."""
    weights = {"classifier": {"kernel": np.eye(2, dtype=np.float32), "bias": np.zeros(2, np.float32)}}
    TunedHead(Form(mlp=False), weights, {}, (0, 1), {"method": "linear"}).save(tmp_path / "head.safetensors")
    command = [sys.executable, "-c", FORK, str(tmp_path / "head.safetensors"), how]
    return programs.run(command, cwd=ROOT, env=clean(), capture_output=True, text=True, timeout=60)


def test_a_fork_after_load_predicts(tmp_path: Path):
    done = fork(tmp_path, "loaded")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_forked_copy_of_a_started_jax_is_refused_where_devices_are_used(monkeypatch):
    assert jax.devices()  # JAX has started
    monkeypatch.setattr(forks, "_broken", False)
    forks.refuse_fork()
    forks._look()  # as a forked child does
    rows = np.eye(2, dtype=np.float32)
    for use in (lambda: NMTuneClassifier().fit(rows, [0, 1]), lambda: diagnose(rows, [0, 1])):
        with pytest.raises(ValueError, match="forked from one in which JAX had started"):
            use()
    for use in (runtime.make_mesh, lambda: load_model("nowhere")):
        with pytest.raises(UserError, match="forked from one in which JAX had started"):
            use()


@pytest.mark.slow
def test_a_fork_of_a_started_jax_raises_at_once(tmp_path: Path):
    done = fork(tmp_path, "started")
    assert done.returncode == 5, done.stderr
    assert "forked from one in which JAX had started" in done.stdout
    assert 'get_context("spawn")' in done.stdout
