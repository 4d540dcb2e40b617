"""One command measures every part on whatever JAX finds, and no part that hangs, crashes or fails takes the others."""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def accelerator(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("accelerator")


def test_all_of_it_runs_when_it_is_tiny(tmp_path: Path, accelerator: ModuleType):
    file = tmp_path / "found.json"
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "accelerator.py"), "--tiny", f"--json={file}"],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text("utf-8"))
    assert found["workers"]["accelerator_parts.py"]["device"].startswith("2 × cpu")
    assert list(found["parts"]) == list(accelerator.LIMITS)
    for name, part in found["parts"].items():
        assert not {"failed", "stopped"} & set(part), (name, part)
        if name.startswith("torch_"):
            assert part["rows"] or "no PyTorch" in part["skipped"] or "finds no CUDA" in part["skipped"]
            continue
        assert part["rows"], name
        for row in part["rows"]:
            figures = [row[key] for key in ("examples_per_s", "ms", "seconds") if key in row]
            assert figures, (name, row)
            assert all(math.isfinite(x) for x in figures), (name, row)
            assert row["case"] in done.stdout
    for name in ("resnet50", "vit_b16", "clip_vitb16"):
        (row,) = found["parts"][name]["rows"]
        assert row["parameters"] > 0 < row["memory"]
        assert row["flop"] > 2 * row["parameters"]
    assert all(0 < row["sve"] < math.log(16) for row in found["parts"]["spectra"]["rows"])


WORKER = """
import json, os, sys, time
def say(**what): print(json.dumps(what), flush=True)
names = sys.argv[-1].removeprefix("--parts=").split(",")
say(part="start", row={"device": "none"})
for name in names:
    say(part=name)
    say(part=name, row={"case": "first", "ms": 1.0})
    if name == "vit_b16": time.sleep(600)
    if name == "loop": os._exit(3)
    end = {"failed": "ValueError: no"} if name == "heads" else {}
    say(part=name, end=end)
"""


def test_a_part_that_hangs_or_crashes_keeps_its_figures_and_the_next_is_measured(
    tmp_path: Path, accelerator: ModuleType, monkeypatch
):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setitem(accelerator.LIMITS, "vit_b16", 0.5)
    record = accelerator.Record(tmp_path / "found.json", tiny=True)
    names = ["resnet50", "vit_b16", "loop", "heads", "spectra"]
    accelerator.run_parts(record, names, str(script), sys.executable, [], time.monotonic() + 60)
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))["parts"]
    assert [name for name in found if [row["ms"] for row in found[name]["rows"]] == [1.0]] == names
    ends = {name: {k: v for k, v in part.items() if k in ("failed", "stopped")} for name, part in found.items()}
    assert ends == {
        "resnet50": {}, "vit_b16": {"stopped": "its limit of 0 s is over"},
        "loop": {"failed": "the worker ended with code 3"}, "heads": {"failed": "ValueError: no"}, "spectra": {},
    }  # fmt: skip
    table = accelerator.format_table({"parts": found})
    assert "the worker ended with code 3" in table
    assert table.count("1.00 ms") == 5


def test_when_all_time_is_over_the_rest_is_named(tmp_path: Path, accelerator: ModuleType):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    record = accelerator.Record(tmp_path / "found.json", tiny=True)
    names = ["vit_b16", "spectra"]
    accelerator.run_parts(record, names, str(script), sys.executable, [], time.monotonic() + 1)
    assert record.content["parts"]["vit_b16"]["stopped"].endswith("of all parts are over")
    assert record.content["parts"]["spectra"]["stopped"].startswith("not run")
    assert record.content["parts"]["spectra"]["rows"] == []


def test_steps_are_compared_with_those_of_the_same_network_only(accelerator: ModuleType):
    def part(rate: float, parameters: int) -> dict:
        return {"rows": [{"case": "batch 8", "examples_per_s": rate, "parameters": parameters}]}

    parts = {"vit_b16": part(30, 5), "torch_vit_b16": part(20, 5), "resnet50": part(9, 5), "torch_resnet50": part(9, 4)}
    accelerator.compare(parts)
    assert parts["vit_b16"]["rows"][0]["times_torch"] == 1.5
    assert "times_torch" not in parts["resnet50"]["rows"][0]
    assert "4 parameters" in parts["resnet50"]["rows"][0]["note"]
