"""SIGKILL at any moment of preparing, training and evaluating a detector, and two processes: the same bits in the end.

All of these are long (`pytest -m slow`); test_detect.py has a resumption in one process, for every run of the suite.
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
from PIL import Image

from nml_jax.data.sources import annotated
from nml_jax.data.sources.digit_scenes import DigitScenes
from nml_jax.runs.rows import read_rows
from nml_jax.tasks import detection
from nml_jax.training import checkpoint
from nml_jax.training.leaves import name_leaves
from tests.scenes import detect_experiment, process_scenes

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
RUN = "noise=0.3,seed=0"
KILLS = 20
# Both kinds of detectors, with a save and an evaluation in every epoch.
OPTIONS = {
    "detect.systems": ("retina", "mask"), "detect.rpn.strides": (4,), "runtime.eval_every": 1.0,
    "runtime.save_every": 0.5, "detect.data.scenes": 64, "detect.data.test_scenes": 12, "runtime.log_every": 1,
}  # fmt: skip
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "in a step": lambda folder: bool([*folder.glob("retina/metrics.jsonl")]),
    "in a save": lambda folder: bool([*folder.glob("retina/checkpoints/*tmp*")]),
    "in the last evaluation": lambda folder: (folder / "retina/checkpoints/24").exists(),
    "between results and rows": lambda folder: (folder / "retina/results.json").exists(),
    "in the second detector": lambda folder: bool([*folder.glob("mask/checkpoints/*")]),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Callable[[str], subprocess.Popen]:
    """start(name): start the run in the folder of that name; what one start compiles the next one reads."""
    base = tmp_path_factory.mktemp("kills")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(base / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def begin(name: str) -> subprocess.Popen:
        args = [sys.executable, "-m", "nml_jax.main", *detect_experiment.flags(base / name, **OPTIONS)]
        env = os.environ | cache | {"JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        process.folder = base / name / RUN  # type: ignore[attr-defined]
        return process

    return begin


def wait(process: subprocess.Popen) -> Path:
    """Return the run's folder of a process that ends well."""
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    return process.folder  # type: ignore[attr-defined]


def read_model(folder: Path) -> dict[str, Any]:
    """Return the arrays of a detector's last checkpoint."""
    step = folder / "checkpoints" / str(checkpoint.find_latest_step(folder / "checkpoints"))
    model = checkpoint.load(step, {"model": checkpoint.describe_model(step)})["model"]
    return {name: np.asarray(x) for name, x in name_leaves(model).items()}


def read_results(run: Path) -> dict[str, Any]:
    """Return all that must not depend on interruptions."""
    folders = {name: run / "detect" / name for name in ("retina", "mask")}
    kept = ("results.json", "pictures.jpg", "rows.jsonl", "samples.jsonl")
    return {
        **{f"{name}/{file}": (folder / file).read_bytes() for name, folder in folders.items() for file in kept},
        **{name: {k: x.tobytes() for k, x in read_model(folder).items()} for name, folder in folders.items()},
        "rows": read_rows(run),
        "output": json.loads((run / "run.json").read_text())["stages"]["detect"]["output"],
    }


@pytest.fixture(scope="module")
def unbroken(start) -> dict[str, Any]:
    return read_results(wait(start("unbroken")))


def require_same(run: Path, expected: dict[str, Any]) -> None:
    for name, value in read_results(run).items():
        assert value == expected[name], name


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_kill_in_every_phase_changes_nothing(start, unbroken):
    for moment, reached in MOMENTS.items():
        process = start("broken")
        while not reached(process.folder / "detect"):
            assert process.poll() is None, f"ended before the moment {moment!r}: {process.communicate()[0]}"
            time.sleep(0.002)
        kill(process)
    require_same(wait(start("broken")), unbroken)


def test_kills_at_random_change_nothing(start, unbroken):
    begun = time.monotonic()
    shutil.rmtree(wait(start("again")).parent)
    whole, rng, kills = time.monotonic() - begun, np.random.default_rng(0), 0
    while kills < KILLS:
        process = start("again")
        try:
            process.wait(timeout=rng.uniform(0, whole))
        except subprocess.TimeoutExpired:
            kill(process)
            kills += 1
            continue
        require_same(wait(process), unbroken)
        shutil.rmtree(process.folder)
    require_same(wait(start("again")), unbroken)


def test_two_processes_train_the_same(tmp_path):
    """The same scenes in the same order, and the losses and detections of one process but for rounding."""
    options = {**OPTIONS, "detect.systems": ("mask",), "stages": ("pretrain", "detect")}
    found = {}
    for count in (1, 2):
        workdir = tmp_path / str(count)
        program = ["-m", "nml_jax.main", *detect_experiment.flags(workdir, **options)]
        for ended in process_scenes.end(process_scenes.begin(program, count), 600):
            assert ended.code == 0, ended.out
        folder = workdir / RUN / "detect" / "mask"
        found[count] = folder, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (one, lines), (two, others) = found[1], found[2]
    assert (one / "samples.jsonl").read_bytes() == (two / "samples.jsonl").read_bytes()
    steps = [[line for line in of if "train/loss" in line] for of in (lines, others)]
    assert [line["step"] for line in steps[0]] == [line["step"] for line in steps[1]]
    for a, b in zip(steps[0][:3], steps[1][:3], strict=True):
        for name in (name for name in a if name.endswith(("loss", "positives"))):
            assert b[name] == pytest.approx(a[name], rel=1e-3), name
    names = [[(row.metric, row.split) for row in read_rows(folder.parents[1])] for folder in (one, two)]
    assert names[0] == names[1]


def test_a_killed_preparation_leaves_nothing_under_its_name(tmp_path):
    scenes = DigitScenes("train", 300, 64)
    src = tmp_path / "src"
    (src / "images").mkdir(parents=True)
    truth = detection.make_truth(scenes)
    for entry in truth["images"]:
        entry["file_name"] = f"{entry['id']}.png"
        Image.fromarray(scenes.image(entry["id"])).save(src / "images" / entry["file_name"])
    annotations = [{"id": i, **one} for i, one in enumerate(truth["annotations"], 1)]
    (src / "instances.json").write_text(json.dumps({**truth, "annotations": annotations}))
    command = [sys.executable, "-m", "nml_jax.prepare", "coco_folder", str(src)]
    begun = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    seconds, rng = time.monotonic() - begun, np.random.default_rng(0)
    for _ in range(KILLS):
        process = subprocess.Popen([*command, str(tmp_path / "out")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            process.wait(timeout=rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            kill(process)
        if (tmp_path / "out").exists():  # whole, if at all
            assert len(annotated.load(str(tmp_path / "out"), "train")) == 300
            shutil.rmtree(tmp_path / "out")
    subprocess.run([*command, str(tmp_path / "out")], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    files = [
        {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("whole", "out")
    ]
    assert files[0].keys() == files[1].keys()
    for name, content in files[0].items():  # the fields of a record are written in any order
        assert files[1][name] == content or ".array_record" in name, name
    sources = [annotated.load(str(tmp_path / name), "train") for name in ("whole", "out")]
    for i in range(300):
        assert sources[0].image(i) == sources[1].image(i)
    assert {path.name for path in tmp_path.iterdir()} == {"src", "whole", "out"}
