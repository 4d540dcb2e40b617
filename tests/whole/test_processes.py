"""Two processes on one machine, and eight devices in one process: what the stages write is what one device writes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs import common
from nml_jax import settings
from nml_jax.data.features import banks
from nml_jax.errors import PeerLost
from nml_jax.runs.rows import read_rows
from nml_jax.training import checksums
from tests.assembly import test_text_training
from tests.scenes import clip_experiment, digits_experiment, process_scenes, programs
from tests.scenes.digits_experiment import flags
from tests.stages import test_texts

ROOT = Path(__file__).parents[2]
CELL = "noise=0.3,seed=0"

# Every stage after pre-training; their kind of row, and who works in them: all processes, or the first.
LATER = ("extract", "tune", "finetune", "diagnose")
FINETUNE = {"finetune.epochs": 1.0, "finetune.lrs": (1e-2,), "finetune.rank": 2, "finetune.targets": ("resnet_conv",),
            "finetune.wise": (0.0, 1.0), "finetune.terms": ("none",), "finetune.head_init": "fresh",
            "model.blocks": (1,)}  # fmt: skip


def together(args: list[str], *, count: int = 2) -> list[process_scenes.Ended]:
    """Run the program in several processes, well."""
    ended = process_scenes.end(process_scenes.begin(["-m", "nml_jax.main", *args], count), 300)
    for e in ended:
        assert e.code == 0, e.out
    return ended


def test_two_processes_train_as_one(tmp_path: Path):
    """The same batches and first losses, one checkpoint, one set of rows."""
    options = {"stages": "('pretrain','extract')", "runtime.log_every": 1, "train.epochs": 2.0}
    alone(flags(tmp_path / "one", **options))
    together(flags(tmp_path / "two", **options))
    losses = [
        [
            json.loads(line).get("train/loss")
            for line in (tmp_path / n / CELL / "metrics.jsonl").read_text().splitlines()
        ]
        for n in ("one", "two")
    ]
    shown = [(tmp_path / n / CELL / "samples.jsonl").read_text() for n in ("one", "two")]
    assert shown[0] == shown[1], "the same ids in the same order, step by step"
    first = [next(x for x in these if x is not None) for these in losses]
    assert abs(first[0] - first[1]) < 1e-5 * first[0]
    assert len(losses[0]) == len(losses[1])
    rows = [{(r.metric, r.split, r.spectrum_mode): r for r in read_rows(tmp_path / n / CELL)} for n in ("one", "two")]
    assert rows[0].keys() == rows[1].keys()
    banks = [
        json.loads((tmp_path / n / CELL / "banks" / "digits" / "test" / "index.json").read_text())
        for n in ("one", "two")
    ]
    assert banks[0]["n"] == banks[1]["n"]


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path: Path):
    """The last checkpoint is taken away: from the one before, two go on for one and one for two, with the same batches
    and the loss that the run had there."""
    options = {"stages": "('pretrain',)", "runtime.log_every": 1, "runtime.sample_ids": True}
    start = {"one": alone, "two": together}
    for name, command in start.items():
        command(flags(tmp_path / name, **options))
    for name, other in (("one", "two"), ("two", "one")):
        again = Path(shutil.copytree(tmp_path / name, tmp_path / f"{name}_then_{other}"))
        saved = again / CELL / "checkpoints"
        *_, before, last = checksums.list_steps(saved)
        shutil.rmtree(saved / str(last))
        start[other](flags(again, **options))
        assert checksums.list_steps(saved)[-1] == last
        shown, losses = [
            [(run / CELL / file).read_text().splitlines() for run in (tmp_path / name, again)]
            for file in ("samples.jsonl", "metrics.jsonl")
        ]
        assert shown[0] == shown[1], "the same ids in the same order, step by step"
        first = [next(json.loads(x) for x in of if json.loads(x)["step"] == before + 1)["train/loss"] for of in losses]
        assert abs(first[0] - first[1]) < 1e-5 * first[0]


@pytest.mark.slow
def test_two_processes_train_clip_as_one(tmp_path: Path):
    """The same first loss over the global batch; retrieval and zero-shot are evaluated once, over all of it."""
    data = clip_experiment.prepare(tmp_path)
    options = {"stages": ("pretrain", "zeroshot"), "runtime.log_every": 1, "train.epochs": 1.0,
               "optimizer.warmup_epochs": 0.5, "runtime.evaluators": ()}  # fmt: skip
    cell = "noise=0.5,seed=0"
    clip_experiment.launch(tmp_path / "one", data, **options)
    together(clip_experiment.flags(tmp_path / "two", data, **options))
    shown = [(tmp_path / n / cell / "samples.jsonl").read_text() for n in ("one", "two")]
    assert shown[0] == shown[1], "the same ids in the same order, step by step"
    first = [json.loads((tmp_path / n / cell / "metrics.jsonl").read_text().splitlines()[0]) for n in ("one", "two")]
    assert abs(first[0]["train/loss"] - first[1]["train/loss"]) < 1e-5 * first[0]["train/loss"]
    values = [{(r.stage, r.metric, r.split): r.value for r in read_rows(tmp_path / n / cell)} for n in ("one", "two")]
    assert values[0].keys() == values[1].keys()
    assert len(values[1]) == len(read_rows(tmp_path / "two" / cell)), "every number once"
    recalls = [v["zeroshot", "i2t_recall@10", "shapes/val"] for v in values]
    assert abs(recalls[0] - recalls[1]) <= 2 / 24, "a step of training apart in the last digits"


def alone(args: list[str]) -> None:
    """Run the program in one process on one device."""
    program = [sys.executable, "-m", "nml_jax.main", *args]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = programs.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def require_one_result(one: Path, other: Path) -> None:
    """Compare two runs that go on from the same checkpoint: the same rows once each, the same banks.

    Features differ by the order in which float32 is added up, scores by what is on the edge between two classes.
    """
    rows = [
        {(r.stage, r.task, r.split, r.layer, r.output, r.method, r.preset, r.wise_alpha, r.metric,
          r.spectrum_mode): r.value
         for r in read_rows(run)} for run in (one, other)
    ]  # fmt: skip
    assert rows[0].keys() == rows[1].keys()
    assert len(rows[1]) == len(read_rows(other)), "every number once"
    for key, value in rows[0].items():
        exact = key[0] in ("pretrain", "extract", "zeroshot")
        assert rows[1][key] == pytest.approx(value, rel=1e-4 if exact else 0.0, abs=1e-4 if exact else 0.1), key
    for index in one.glob("banks/*/*/index.json"):
        ours, theirs = (banks.Bank(run / index.parent.relative_to(one)) for run in (one, other))
        for name in ("label", "id"):
            np.testing.assert_array_equal(ours.read(name), theirs.read(name))
        for name in ours.index["layers"]:
            np.testing.assert_allclose(theirs.read(name), ours.read(name), rtol=1e-4, atol=1e-5)
    spectra = [json.loads((run / "spectra.json").read_text()) for run in (one, other)]
    assert len(spectra[0]) == len(spectra[1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_processes_train_a_text_encoder_as_one(tmp_path: Path, dtype: str):
    """Pre-training on wrong labels, LoRA and full fine-tuning: the same texts in the same order, one set of rows."""
    data = tmp_path / "data"
    data.mkdir()
    test_texts.write_folder(data / "bert")
    test_texts.write_tables(data)
    own = {"runtime.log_every": 1, "runtime.sample_ids": True, "model.dtype": dtype, "sweep.seed": (0,)}
    keys = dict(settings.flatten(test_text_training.make_config(data, **own).to_dict()))
    defaults = dict(settings.flatten(common.get_config().to_dict()))
    given = ["--config=configs/common.py", "--config.noise=0.3", "--config.seed=0",
             *(f"--config.{k}={v}" for k, v in keys.items() if v != defaults[k] and k != "noise")]  # fmt: skip
    for name, command in (("one", alone), ("two", together)):
        command([*given, f"--workdir={tmp_path / name}"])
    shown = [(tmp_path / n / CELL / "samples.jsonl").read_text() for n in ("one", "two")]
    assert shown[0] == shown[1], "the same ids in the same order, step by step"
    first = [json.loads((tmp_path / n / CELL / "metrics.jsonl").read_text().splitlines()[0]) for n in ("one", "two")]
    assert abs(first[0]["train/loss"] - first[1]["train/loss"]) < 1e-5 * first[0]["train/loss"]
    rows = [[(r.stage, r.method, r.split, r.metric, r.wise_alpha) for r in read_rows(tmp_path / n / CELL)]
            for n in ("one", "two")]  # fmt: skip
    assert sorted(rows[0], key=str) == sorted(rows[1], key=str)
    assert {row[1] for row in rows[1] if row[0] == "finetune"} >= {"lora", "full"}


@pytest.mark.slow
def test_every_later_stage_writes_one_result(tmp_path: Path):
    """From one checkpoint: one device, two processes, and eight devices as data × fsdp."""
    options = {
        "stages": ("pretrain", *LATER, "report"),
        "train.epochs": 1.0,
        "optimizer.warmup_epochs": 0.0,
        **FINETUNE,
    }
    alone(flags(tmp_path / "one", **options))
    again = [f"--force={stage}" for stage in LATER]
    for name in ("two", "eight"):
        shutil.copytree(tmp_path / "one", tmp_path / name)
        shutil.rmtree(tmp_path / name / CELL / "banks")
        (tmp_path / name / "report.html").unlink()
    ended = together([*flags(tmp_path / "two", **options), *again])
    assert "mesh data=2 × fsdp=1" in ended[0].out
    assert "host(s)" not in ended[1].out, "the first speaks for all"
    mesh = {"runtime.data_axis": 2, "runtime.fsdp_axis": 4}
    digits_experiment.launch(tmp_path / "eight", force=LATER, **options, **mesh)
    for name in ("two", "eight"):
        assert (tmp_path / name / "report.html").exists()
        require_one_result(tmp_path / "one" / CELL, tmp_path / name / CELL)


@pytest.mark.slow
def test_zero_shot_and_retrieval_write_one_result(tmp_path: Path):
    data, later = clip_experiment.prepare(tmp_path), ("extract", "zeroshot", "tune")
    options = {"stages": ("pretrain", *later, "report"), "train.epochs": 1.0, "optimizer.warmup_epochs": 0.5,
               "runtime.evaluators": (), "model.width": 4, "model.blocks": (1,)}  # fmt: skip
    cell = "noise=0.5,seed=0"
    alone(clip_experiment.flags(tmp_path / "one", data, **options))
    for name in ("two", "eight"):
        shutil.copytree(tmp_path / "one", tmp_path / name)
        shutil.rmtree(tmp_path / name / cell / "banks")
    together([*clip_experiment.flags(tmp_path / "two", data, **options), *(f"--force={stage}" for stage in later)])
    clip_experiment.launch(tmp_path / "eight", data, force=later, **options, **{"runtime.fsdp_axis": 4})
    for name in ("two", "eight"):
        require_one_result(tmp_path / "one" / cell, tmp_path / name / cell)


GRID = {
    "stages": ("features", "tune"), "seed": 0, "sweep.seed": (), "tune.methods": ("mlp", "nmtune"),
    "tune.presets": ("paper",), "tune.width": 2, "tune.batch": 16, "tune.epochs": 6, "tune.seeds": 2,
    "tune.lrs": (0.05, 0.01, 0.001), "tune.shared": False,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("start", ["probe", "fresh"])
def test_two_processes_of_two_devices_tune_a_grid_as_one(tmp_path: Path, monkeypatch, start: str):
    """The same heads and rows bit by bit, with early stopping and without, each written once."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 90), ("test", 60)):
        labels = np.arange(count) % 3
        features = rng.normal(size=(count, 12)) + 3 * np.eye(3, 12)[labels]
        np.savez(tmp_path / f"{name}.npz", features=features.astype(np.float32), labels=labels)
    patient = start == "probe"
    options = {**GRID, "tune.start": start, "tune.patience": 2 * patient, "tune.halving": patient}
    options |= {f"features.{name}": str(tmp_path / f"{name}.npz") for name in ("train", "test")}

    def make(folder: str) -> list[str]:
        given = [f"--config.{key}={value if isinstance(value, str) else repr(value)}" for key, value in options.items()]
        return ["--config=configs/features.py", f"--workdir={tmp_path / folder}", *given]

    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    together(make("four"))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    alone(make("one"))
    one, four = (tmp_path / name / "seed=0" for name in ("one", "four"))
    rows = [sorted(map(str, read_rows(run))) for run in (one, four)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == len(set(rows[0]))
    heads = [{file.relative_to(run): file.read_bytes() for file in run.glob("heads/**/*.*")} for run in (one, four)]
    assert len(heads[0]) == 4
    assert heads[0] == heads[1]


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "at the start": lambda run: run.exists(),
    "in a step": lambda run: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0,
    "in a save": lambda run: any(run.glob("checkpoints/*tmp*")),
    "in extraction": lambda run: any((run / "banks").glob("*/.*.part")),
    "in tuning": lambda run: any((run / "heads").rglob("*.safetensors")),
}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_ends_the_other_with_a_line(tmp_path: Path, moment: str, victim: int):
    limit = 20  # seconds
    options = {"stages": ("pretrain", "extract", "tune"), "runtime.timeout": limit, "runtime.log_every": 1}
    # A second run is to follow: who has nothing left to do is not missed.
    one = [flag for flag in flags(tmp_path / "run", **options) if not flag.startswith("--config.noise=")]
    pair = process_scenes.begin(["-m", "nml_jax.main", *one, "--config.sweep.noise=(0.3, 0.0)"])
    there = MOMENTS[moment]
    while not there(tmp_path / "run" / CELL) and pair[victim].poll() is None:
        time.sleep(0.002)
    pair[victim].kill()
    killed = time.monotonic()
    ended = process_scenes.end(pair, 100)
    other = ended[1 - victim]
    assert ended[victim].code == -9, ended
    assert other.code == PeerLost.exit_code, other.out
    assert other.line.startswith(f"stopped: process {victim} ("), other.out
    assert "Traceback" not in other.out
    assert time.monotonic() - killed < limit + 10, "the limit, and what a busy machine takes to end"


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_to_one_saves_the_same_step_of_all(tmp_path: Path, asked: int):
    """No step is lost: what was done is saved, and the run ends as one that nobody has stopped."""
    options = {"stages": ("pretrain",), "runtime.log_every": 1, "runtime.sample_ids": True, "train.epochs": 20.0,
               "runtime.save_every": 100.0}  # fmt: skip
    pair = process_scenes.begin(["-m", "nml_jax.main", *flags(tmp_path / "run", **options)])
    while not MOMENTS["in a step"](tmp_path / "run" / CELL) and pair[asked].poll() is None:
        time.sleep(0.01)
    assert pair[asked].poll() is None, process_scenes.end(pair, 100)
    pair[asked].send_signal(signal.SIGTERM)
    ended = process_scenes.end(pair, 200)
    assert [e.code for e in ended] == [75, 75], ended
    (saved,) = checksums.list_steps(tmp_path / "run" / CELL / "checkpoints")
    done = (tmp_path / "run" / CELL / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in done) == saved
    together(flags(tmp_path / "run", **options))
    together(flags(tmp_path / "whole", **options))
    for name in ("samples.jsonl", "rows.jsonl"):
        one, other = ((tmp_path / run / CELL / name).read_text() for run in ("run", "whole"))
        assert one == other, name
    states = [(tmp_path / run / CELL / "run.json").read_text() for run in ("run", "whole")]
    digests = [json.loads(text)["stages"]["pretrain"]["output"] for text in states]
    assert digests[0] == digests[1], "the same bits"


@pytest.mark.slow
def test_processes_that_read_different_things_end_before_the_first_step(tmp_path: Path):
    """The noise file of one host is another; and one process was given another config."""
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        np.save(tmp_path / str(i) / "noise.npy", np.full(1, i))
    options = {"stages": "('pretrain',)", "noise_kind": "labels", "noise": 0.0, "noise_file": "noise.npy"}
    for given, told in (
        ({}, r"another noise\.npy than"),
        ({"data.validation": 0.3}, r"another config\.data\.validation"),
    ):
        port, started = process_scenes.free_port(), []
        for i in range(2):
            args = flags(tmp_path / "w", **options, **(given if i else {}))
            env = process_scenes.environment(i, 2, port) | {"PYTHONPATH": str(ROOT)}
            started.append(
                programs.Popen(
                    [sys.executable, "-m", "nml_jax.main", *args], cwd=tmp_path / str(i), env=env, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        for e in process_scenes.end(started, 120):
            assert e.code == 2, e.out
            assert re.search(rf"error: process 1 \(.+\) of 2 has {told}", e.out), e.out
    assert not list(tmp_path.glob("w/*/checkpoints"))


@pytest.mark.slow
def test_two_jobs_in_one_folder(tmp_path: Path):
    """The second is refused and the first goes on; once that is killed, the same command takes over at once."""
    args = [sys.executable, "-m", "nml_jax.main", *flags(tmp_path, stages="('pretrain',)", **{"train.epochs": 500.0})]
    how = {"cwd": ROOT, "env": os.environ | {"JAX_PLATFORMS": "cpu"}, "text": True}
    first = programs.Popen(args, **how, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / CELL / "run.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        second = programs.run(args, **how, capture_output=True, timeout=120)
        assert second.returncode == 2, second.stderr
        assert f"{CELL} belongs to another job (process {first.pid} on " in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    third = programs.Popen(args, **how, stderr=subprocess.PIPE)
    assert third.stderr is not None
    assert any("taking over" in line for line in iter(third.stderr.readline, ""))
    third.terminate()
    _, told = third.communicate(timeout=120)
    assert third.returncode == 75, told
