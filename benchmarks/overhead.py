"""Measure the cost of the training loop beside the compiled step, and where the time of a real run goes.

    python benchmarks/overhead.py [--quick] [--steps=400] [--small_steps=100] [--pairs=11] [--write]

1. Loop: training/loop.py with all parts of a run (signals, ids, metrics, journal), on the state of a ResNet-50 with
   AdamW, but with a compiled step that only counts. Its tree has all 594 arrays of a ResNet-50, but small ones (width 8
   instead of 64), so that copying arrays takes no time. Then the same step in a bare loop, which is the time JAX needs
   to pass the arrays to a device and back. The difference is our cost.
2. A run of a small ResNet on images in memory, with the stage's own parts, saved every 50 steps: the shares of its wall
   time that goodput counts as data, save and evaluate, and the time in the journal, without start and compilation.
3. Start: seconds of `python -m nml_jax.main --help`, and of a whole run of one step with a warm compilation cache.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from common import print_head, write_results

sys.path.insert(0, str(Path(__file__).parent.parent))
import nml_jax
from configs import common
from nml_jax import runtime, settings
from nml_jax.data.sources.source import Arrays
from nml_jax.data.stream import pipeline
from nml_jax.runs import goodput
from nml_jax.training import checkpoint, loop
from nml_jax.training.journal import Journal

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "overhead.json"


def make_config(**values: Any) -> Any:
    config = common.get_config()
    config.update_from_flattened_dict(values)
    return next(iter(settings.expand_sweep(config).values()))


class TimedJournal(Journal):
    """A journal that adds up the seconds spent in it."""

    seconds = 0.0

    def write_results(self, *args: Any) -> None:
        begun = time.perf_counter()
        super().write(*args)
        self.seconds += time.perf_counter() - begun


def train(
    config: Any, folder: Path, steps: int, batches: Any, replace: Any = None, classes: int = 10
) -> dict[str, Any]:
    """Run the loop. Return its seconds by part, and those in the journal."""
    mesh, plan = runtime.make_mesh(), loop.Plan(steps, steps / 4)
    program = loop.build(config, plan, mesh, num_classes=classes)
    if replace:
        program = program._replace(**replace(program))
    clock = goodput.Clock()
    journal = TimedJournal(folder, config, steps=steps, label="", clock=clock, quarantine=lambda ids: None)
    checkpoints = checkpoint.Checkpoints(
        folder / "checkpoints", every=plan.to_steps(config.runtime.save_every), keep=2, keep_every=0, meta={}
    )
    with contextlib.redirect_stderr(io.StringIO()):
        loop.train(
            config, program, plan, mesh, batches=batches, evaluators={}, checkpoints=checkpoints, journal=journal
        )
        checkpoints.close()
    return {**clock.seconds, "journal": journal.seconds}


def draw_rows(batch: int, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, batch).astype(np.int32),
        "label_clean": np.zeros(batch, np.int32),
        "id": np.arange(batch, dtype=np.int32),
        "quarantined": np.full(batch, -1, np.int32),
        "mask": np.ones(batch, np.float32),
    }


def count_step(state: Any, batch: Any) -> Any:
    """Stand in for a training step: return what the loop needs and do no work."""
    one = jnp.float32(1)
    metrics = dict.fromkeys(("loss", "accuracy", "grad_norm"), (one, one))
    signals = {"asked": (batch["asked"].sum(), 1), "streak": (state.skipped[1], 1), "skipped": (one * 0, 1)}
    return dataclasses.replace(state, step=state.step + 1), metrics | signals


TREE = {"model.name": "resnet50", "model.width": 8, "optimizer.name": "adamw", "train.ema": 0.0,
        "data.image_size": 32, "train.batch": 8, "optimizer.warmup_epochs": 0.0, "runtime.save_every": 1e6,
        "runtime.eval_every": 0.0}  # fmt: skip


def time_loop(steps: int) -> float:
    """Return the milliseconds per step of the loop around a step that only counts."""
    local = draw_rows(8, 32)

    def batches(start: int) -> Iterator[Any]:
        while True:
            yield local

    with tempfile.TemporaryDirectory() as folder:
        step = {"step": jax.jit(count_step, donate_argnums=0)}
        seconds = train(make_config(**TREE), Path(folder), steps, batches, lambda program: step)
    return 1000 * (seconds["step"] + seconds["data"]) / (steps - 1)


def time_bare_calls(steps: int) -> float:
    """Return the milliseconds per call of the same compiled step on the same tree, with nothing around it."""
    mesh = runtime.make_mesh()
    program = loop.build(make_config(**TREE), loop.Plan(steps, steps / 4), mesh, num_classes=10)
    state, step = program.init(jax.random.key(0)), jax.jit(count_step, donate_argnums=0)
    batch = runtime.put_batch(mesh)(draw_rows(8, 32) | {"asked": np.zeros(jax.local_device_count(), np.int32)})
    state, _ = step(state, batch)
    begun = time.perf_counter()
    for _ in range(steps):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return 1000 * (time.perf_counter() - begun) / steps


def measure_shares(steps: int) -> dict[str, float]:
    """Return shares of the wall time between the first step and the end. It logs as often as a run on digits."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2048)]
    source = Arrays(images, rng.integers(0, 10, 2048), num_classes=10, fingerprint="benchmark")
    values = {"model.name": "resnet18", "model.stem": "small", "model.width": 32, "model.blocks": (1, 1, 1, 1),
              "optimizer.name": "adamw", "optimizer.warmup_epochs": 0.0, "train.ema": 0.0,
              "data.image_size": 32, "train.batch": 128,
              "augment.crop": "pad", "runtime.save_every": 50 / (steps / 4), "runtime.eval_every": 0.0}  # fmt: skip
    config = make_config(**values)

    def batches(start: int) -> Iterator[Any]:
        how = {"augment": config.augment, "image_size": 32, "mean": config.model.mean, "std": config.model.std}
        return pipeline.train(source, batch=128, seed=0, start_step=start, threads=2, **how)

    with tempfile.TemporaryDirectory() as folder:
        seconds = train(config, Path(folder), steps, batches)
    whole = sum(seconds[part] for part in ("step", "data", "save", "evaluate"))
    return {part: seconds[part] / whole for part in ("data", "save", "journal")}


def time_starts() -> dict[str, float]:
    """Return the seconds of both starts. A first start of the config only fills the compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

        def seconds(*args: str) -> float:
            begun = time.perf_counter()
            command = [sys.executable, "-m", "nml_jax.main", *args]
            subprocess.run(command, cwd=ROOT, env=os.environ | cache, check=True, capture_output=True)
            return time.perf_counter() - begun

        def first_step(name: str) -> float:
            short = ("--config.train.epochs=0.01", "--config.optimizer.warmup_epochs=0.0")
            one = ("--config.noise=0.0", "--config.seed=0", "--config.stages=('pretrain',)")
            return seconds("--config=configs/digits.py", f"--workdir={folder}/{name}", *short, *one)

        help_times = [seconds("--help") for _ in range(5)]
        first_step("cold")
        return {"help": statistics.median(help_times), "one_step": first_step("warm")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one round, to see that it runs")
    parser.add_argument("--steps", type=int, default=400, help="steps of the loop and of the bare calls")
    parser.add_argument("--small_steps", type=int, default=100, help="steps of the small run")
    parser.add_argument("--pairs", type=int, default=11, help="rounds of the loop and the bare calls")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the small run")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.small_steps, args.pairs, args.repeats = 50, 10, 1, 1
    sizes: dict[str, Any] = {name: getattr(args, name) for name in ("steps", "small_steps", "pairs", "repeats")}
    head = print_head(nml_jax, jax, jaxlib, np, **sizes)
    pairs = [(time_loop(args.steps), time_bare_calls(args.steps)) for _ in range(args.pairs)]
    shares = [measure_shares(args.small_steps) for _ in range(args.repeats)]
    results = {
        "loop_ms": [whole for whole, _ in pairs],
        "bare_ms": [bare for _, bare in pairs],
        "shares": {part: [s[part] for s in shares] for part in shares[0]},
        "start_seconds": time_starts(),
    }
    for name, of in (("loop, dispatch included", 0), ("dispatch alone", 1)):
        print(f"{name}: {statistics.median(pair[of] for pair in pairs):.2f} ms a step")
    print(f"loop outside the step: {statistics.median(whole - bare for whole, bare in pairs):.2f} ms a step")
    for part, values in results["shares"].items():
        print(f"share of {part} in a small run: {statistics.median(values):.2%}")
    print(*(f"{name}: {seconds:.2f} s" for name, seconds in results["start_seconds"].items()), sep="\n")
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
