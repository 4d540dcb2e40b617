"""A run that continues on another mesh sees the same batches and has the same loss."""

import json
import shutil

import pytest

from nml_jax import runtime
from nml_jax.errors import Preempted
from tests.scenes.meshes import mesh_of
from tests.training.test_loop import stop_after
from tests.training.tiny import Run, random_batches, tiny_config

SAVED = 4  # of 12 steps


def read_lines(run: Run, name: str) -> list[dict]:
    return [json.loads(line) for line in (run.folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Run:
    """Train on eight devices, in float32, with every random draw of training on."""
    config = tiny_config(**{"runtime.log_every": 1, "runtime.sample_ids": True})
    run = Run(tmp_path_factory.mktemp("unbroken") / "run", config, runtime.make_mesh())
    run.train()
    return run


@pytest.fixture(scope="module")
def broken(unbroken: Run) -> Run:
    """Train in the same way, but stop with a save at step SAVED. Copy the run before changing it."""
    run = Run(unbroken.folder.parent / "broken", unbroken.config, unbroken.mesh)
    with pytest.raises(Preempted, match=f"step {SAVED}"):
        run.train(stop_after(random_batches(16), SAVED - 3))
    return run


@pytest.mark.parametrize(("devices", "fsdp"), [(4, 1), (2, 2), (1, 1)])
def test_saved_on_eight_devices_and_continued_on_fewer(devices: int, fsdp: int, unbroken: Run, broken: Run, tmp_path):
    shutil.copytree(broken.folder, tmp_path / "run")
    run = Run(tmp_path / "run", broken.config, mesh_of(devices // fsdp, fsdp))
    assert int(run.train().step) == run.plan.steps
    assert read_lines(run, "samples.jsonl") == read_lines(unbroken, "samples.jsonl"), "the ids of all batches, in order"
    (loss,) = [x["train/loss"] for x in read_lines(run, "metrics.jsonl") if x["step"] == SAVED + 1]
    (expected,) = [x["train/loss"] for x in read_lines(unbroken, "metrics.jsonl") if x["step"] == SAVED + 1]
    assert abs(loss - expected) <= 1e-5 * abs(expected)
