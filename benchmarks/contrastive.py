"""Measure time and memory of the chunked contrastive loss against the plain one.

    python benchmarks/contrastive.py [--quick] [--form=clip|siglip] [--chunks=256,512] [--repeats=5] [--write]

It computes value and gradient (images, texts, scale) of B pairs of 512 dimensions on one device, B = 8192 and 16,384.
The forms take turns in every round, in one process, so that a busy machine slows all of them. `speed` and `share` are
relative to the plain form. `temp` is the memory that XLA allocates beside inputs and outputs. `RSS` is the rise of a
new process's peak resident memory (from Linux's /proc) during a first call, without the outputs.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from common import print_head, write_results

import nml_jax
from nml_jax.objectives.contrastive import info_nce, sigmoid_loss

RESULTS = Path(__file__).parent / "results" / "contrastive.json"
LOSSES: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {"clip": info_nce, "siglip": sigmoid_loss}
SIZES, DIM = (8192, 16_384), 512
MIB = 2**20


def draw_inputs(n: int, form: str) -> list[jax.Array]:
    rows = np.random.default_rng(0).standard_normal((2, n, DIM), np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return [jnp.asarray(x) for x in (*rows, np.float32(1 / 0.07), np.float32(-10))[: 3 + (form == "siglip")]]


def compile_gradient(form: str, chunk: int, args: list[jax.Array]) -> Any:
    def loss(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
        return LOSSES[form](*args, chunk=chunk)

    gradient = jax.value_and_grad(loss, tuple(range(len(args))), has_aux=True)
    return jax.jit(gradient).lower(*args).compile()


def read_resident(what: str) -> int:
    """Read the resident bytes of this process: "VmRSS" now, "VmHWM" at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def measure_growth(form: str, n: int, chunk: int) -> int:
    """Return the bytes by which a first call raises the peak of this process, without its outputs."""
    args = draw_inputs(n, form)
    step = compile_gradient(form, chunk, args)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the compiler
    before = read_resident("VmRSS")
    outputs = jax.block_until_ready(step(*args))
    return read_resident("VmHWM") - before - sum(x.nbytes for x in jax.tree.leaves(outputs))


def measure_growth_alone(form: str, n: int, chunk: int) -> int:
    command = [sys.executable, __file__, f"--form={form}", "--grown", str(n), str(chunk)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def check_agreement(results: dict[int, Any]) -> None:
    """Exit unless all forms give the same value and gradient."""
    (plain, _), plain_grads = results[0]
    for chunk, ((value, _), grads) in results.items():
        off = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(grads, plain_grads, strict=True))
        if not (abs(value / plain - 1) < 1e-6 and off < 1e-5):
            sys.exit(f"chunk {chunk} differs from the plain form: {value} against {plain}, gradients by {off:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 2048, two rounds, to see that it runs")
    parser.add_argument("--form", choices=LOSSES, default="clip")
    parser.add_argument("--chunks", default="256,512", help="numbers of rows at a time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(Path(__file__).parent)}")
    parser.add_argument("--grown", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.grown:
        return print(measure_growth(args.form, *args.grown))
    sizes, repeats = ((2048,), 2) if args.quick else (SIZES, args.repeats)
    chunks = [0, *map(int, args.chunks.split(","))]

    head = print_head(nml_jax, jax, jaxlib, np, form=args.form, dimensions=DIM, repeats=repeats)
    titles = ("seconds", "min", "max", "speed", "temp MiB", "share", "RSS MiB", "share")
    print(f"\n{'':<22}", *(f"{title:>8}" for title in titles))
    results = {}
    for n in sizes:
        given = draw_inputs(n, args.form)
        steps = {chunk: compile_gradient(args.form, chunk, given) for chunk in chunks}
        check_agreement({chunk: step(*given) for chunk, step in steps.items()})  # and warm up
        seconds: dict[int, list[float]] = {chunk: [] for chunk in chunks}
        for _ in range(repeats):
            for chunk, step in steps.items():
                start = time.perf_counter()
                jax.block_until_ready(step(*given))
                seconds[chunk].append(time.perf_counter() - start)
        temp = {chunk: step.memory_analysis().temp_size_in_bytes for chunk, step in steps.items()}
        peak = {chunk: measure_growth_alone(args.form, n, chunk) for chunk in chunks}
        for chunk, times in seconds.items():
            speed = statistics.median(a / b for a, b in zip(seconds[0], times, strict=True))
            row = {"seconds": times, "speed": speed, "temp_bytes": temp[chunk], "rss_bytes": peak[chunk]}
            results[f"{n}/{chunk or 'plain'}"] = row
            name = f"B={n}, " + (f"chunk {chunk}" if chunk else "plain")
            print(
                f"{name:<22}", *(f"{f(times):8.2f}" for f in (statistics.median, min, max)), f"{speed:8.2f}",
                *(f"{x:8.{d}f}" for of in (temp, peak) for x, d in ((of[chunk] / MIB, 1), (of[chunk] / of[0], 3))),
            )  # fmt: skip
    if args.write:
        write_results(RESULTS, head, results)


if __name__ == "__main__":
    main()
