"""JAX's flag for 64-bit types, which a user may have set for programs of their own, changes no dtype and no number."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from nml_jax import NMTuneClassifier, diagnose
from nml_jax.tuning import neighbours, probes

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
FEATURES = (RNG.normal(size=(60, 8)) + 2 * np.eye(3, 8)[LABELS]).astype(np.float32)


def both(compute):
    """Return what `compute` returns without the flag and with it."""
    without = compute()
    with jax.enable_x64(True):
        return without, compute()


@pytest.mark.parametrize("method", ["linear", "nmtune", "skd", "fgs", "lgm"])
def test_heads(method):
    def fit():
        head = NMTuneClassifier(method=method, width=2, epochs=2, random_state=0).fit(FEATURES, LABELS)
        return head.transform(FEATURES), head.decision_function(FEATURES)

    for plain, flagged in zip(*both(fit), strict=True):
        assert plain.dtype == flagged.dtype == np.float32
        np.testing.assert_array_equal(plain, flagged)


def test_probes():
    for fit, grid in ((probes.fit_lbfgs, [1.0]), (probes.fit_ridge, [1.0]), (neighbours.fit_knn, [3])):
        plain, flagged = both(lambda fit=fit, grid=grid: fit(FEATURES, LABELS, grid, num_classes=3)[0](FEATURES))
        assert plain.dtype == flagged.dtype
        np.testing.assert_array_equal(plain, flagged)


def test_diagnose():
    plain, flagged = both(lambda: diagnose(FEATURES, LABELS))
    assert repr(plain) == repr(flagged)


def test_the_program_leaves_the_flag_aside(tmp_path):
    own = ["--config=configs/digits.py", f"--workdir={tmp_path}", "--config.stages=('tune',)", "--dry_run"]
    command = [sys.executable, "-m", "nml_jax.main", *own]
    ended = subprocess.run(command, env={**os.environ, "JAX_ENABLE_X64": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "JAX_ENABLE_X64 is left aside" in ended.stderr + ended.stdout
