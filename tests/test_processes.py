"""Two processes on one machine, joined by JAX's own distributed runtime."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nml_jax import log
from tests import pairs, peers
from tests.small import PINNED, flags

ROOT = Path(__file__).parent.parent
CELL = "noise=0.3,seed=0"


def together(args: list[str], *, count: int = 2) -> list[peers.Ended]:
    """Run the program in several processes, well."""
    port = peers.free_port()
    ended = peers.end([peers.begin(["-m", "nml_jax.main", *args], i, count, port) for i in range(count)], 300)
    for e in ended:
        assert e.code == 0, e.out
    return ended


def test_two_processes_train_as_one(tmp_path: Path):
    """The same batches and first losses, one checkpoint, one set of rows."""
    options = {"stages": "('pretrain','extract')", "runtime.log_every": 1, "train.epochs": 2.0}
    one = subprocess.run(
        [sys.executable, "-m", "nml_jax.main", *flags(tmp_path / "one", **options)],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert one.returncode == 0, one.stderr
    together(flags(tmp_path / "two", **options))
    losses = [
        [
            json.loads(line).get("train/loss")
            for line in (tmp_path / n / CELL / "metrics.jsonl").read_text().splitlines()
        ]
        for n in ("one", "two")
    ]
    first = [next(x for x in these if x is not None) for these in losses]
    assert abs(first[0] - first[1]) < 1e-5 * first[0]
    assert len(losses[0]) == len(losses[1])
    rows = [
        {(r.metric, r.split, r.spectrum_mode): r for r in log.read_rows(tmp_path / n / CELL)} for n in ("one", "two")
    ]
    assert rows[0].keys() == rows[1].keys()
    banks = [
        json.loads((tmp_path / n / CELL / "banks" / "digits" / "test" / "index.json").read_text())
        for n in ("one", "two")
    ]
    assert banks[0]["n"] == banks[1]["n"]
    assert PINNED["noise"] == 0.3


@pytest.mark.slow
def test_two_processes_train_clip_as_one(tmp_path: Path):
    """The same first loss over the global batch; retrieval and zero-shot are evaluated once, over all of it."""
    data = pairs.prepare(tmp_path)
    options = {"stages": ("pretrain", "zeroshot"), "runtime.log_every": 1, "train.epochs": 1.0,
               "optimizer.warmup_epochs": 0.5, "runtime.evaluators": ()}  # fmt: skip
    cell = "noise=0.5,seed=0"
    pairs.launch(tmp_path / "one", data, **options)
    together(pairs.flags(tmp_path / "two", data, **options))
    first = [json.loads((tmp_path / n / cell / "metrics.jsonl").read_text().splitlines()[0]) for n in ("one", "two")]
    assert abs(first[0]["train/loss"] - first[1]["train/loss"]) < 1e-5 * first[0]["train/loss"]
    values = [
        {(r.stage, r.metric, r.split): r.value for r in log.read_rows(tmp_path / n / cell)} for n in ("one", "two")
    ]
    assert values[0].keys() == values[1].keys()
    assert len(values[1]) == len(log.read_rows(tmp_path / "two" / cell)), "every number once"
    recalls = [v["zeroshot", "i2t_recall@10", "shapes/val"] for v in values]
    assert abs(recalls[0] - recalls[1]) <= 2 / 24, "a step of training apart in the last digits"
