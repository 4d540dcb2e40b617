"""Compile heads, spectra and a fine-tuning step for eight chips of a TPU v5e, and bound spectra of full size.

    python benchmarks/compile_times.py            print the tables of benchmarks/results/compile_times.json
    python benchmarks/compile_times.py --write    compile all of it; with --tiny, small programs, to see that it runs;
                                                  with --only=NAME, programs whose names begin so

It needs the extra `tpu`, but no TPU. Programs are compiled from shapes, with the compiler's default effort. Heads are 8
settings on 20,000 x 768 features, one a chip; the fine-tuning step is LoRA of ViT-B/16 with NMTune's terms (`paper`) on
256 images. FLOP and bytes of spectra are the compiler's, of one block of rows on each device, times the number of
blocks. A bound is the longer of FLOP at the peak of the unit that they use, and bytes at the bandwidth of the memory.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from launch import aot

os.environ.update(aot.ENVIRONMENT)

import jax
import jax.numpy as jnp
import numpy as np
from common import print_head, write_results
from jax.sharding import NamedSharding

import nml_jax
from configs import common
from launch.chips import CHIPS
from nml_jax import runtime, settings
from nml_jax.models.heads.mlp import Form
from nml_jax.objectives import nmtune, terms
from nml_jax.spectrum import device
from nml_jax.spectrum.rows import Kind
from nml_jax.training import finetune, loop
from nml_jax.training.window import Signals
from nml_jax.tuning import descent, spread

RESULTS = Path(__file__).parent / "results" / "compile_times.json"
TOPOLOGY = "v5e:2x4"
METHODS = ("linear", "mlp", "nmtune/paper", "nmtune/code", "skd", "fgs", "lgm")
N, D = 1_281_167, 2048  # features of ImageNet-1K by a ResNet-50
FLOAT64 = 67e12  # FLOP/s of an H100's or H200's matrix unit
INT8 = 393e12  # operations/s of a v5e's


def shape(*sizes: int, dtype: Any = jnp.float32, **how: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype, **how)


def lower_head(method: str, devices: tuple[Any, ...], tiny: bool) -> Any:
    """Lower one head for each device, trained in one program."""
    n, dim, classes, batch = (64, 16, 3, 16) if tiny else (20_000, 768, 100, 64)
    name, _, preset = method.partition("/")
    active, numbers = None, {}
    if name not in ("linear", "mlp"):
        active, numbers = terms.split(name, nmtune.PRESETS[preset] if preset else terms.make_weights(name))
    spec = descent.Spec(Form(name != "linear"), active, classes, batch, standardize=True)
    h = len(devices)
    whole = lambda *sizes: shape(*sizes, dtype=jnp.int32)  # noqa: E731
    setting = descent.Setting(
        whole(h, n), shape(h), shape(h), shape(h, dtype=jnp.uint32), dict.fromkeys(numbers, shape(h)), shape(h),
        shape(h), shape(h), shape(h),
    )  # fmt: skip
    bank = descent.TrainingSet(shape(n, 2, dim), whole(n), shape(n))
    return spread.compile_mapped(spec, devices).lower(bank, setting, whole(), whole(), None)


def lower_finetuning(devices: tuple[Any, ...], tiny: bool) -> Any:
    """Lower a step of LoRA with NMTune's terms."""
    config = common.get_config()
    with config.unlocked():
        small = {"dim": 16, "depth": 1, "heads": 2} if tiny else {}
        config.model.update({"name": "vit_b", "patch": 16, "dtype": "bfloat16", **small})
        config.finetune.update({"rank": 8, "targets": ("vit_mlp",), "consistency": True})
    size, batch = (32, 16) if tiny else (224, 256)
    made = finetune.Setup("lora", "paper", Form(True), "features", 10 if tiny else 100, size)
    mesh = runtime.make_mesh(devices=devices)
    program = finetune.build(*settings.freeze_sections(config.model, config.finetune), made, 0.01,
                             loop.Plan(1000, 100.0), mesh)  # fmt: skip
    placed = NamedSharding(mesh, runtime.BATCH_SPEC)
    whole = shape(batch, dtype=jnp.int32, sharding=placed)
    rows = {"image": shape(batch, size, size, 3, dtype=jnp.uint8, sharding=placed), "label": whole, "id": whole,
            "mask": shape(batch, sharding=placed)}  # fmt: skip
    signals = Signals(*[shape(mesh.size, dtype=jnp.int32, sharding=placed) for _ in Signals._fields])
    return program.step.lower(program.shapes, rows, signals)  # type: ignore[attr-defined]


def lower_spectrum(mode: Kind, devices: tuple[Any, ...], rows: int, dim: int, double: bool) -> Any:
    mesh = jax.sharding.Mesh(np.array(devices), ("rows",))
    F = shape(1, rows, dim, sharding=NamedSharding(mesh, jax.P(None, "rows")))
    with jax.enable_x64(double):
        program = device._compile_reduction(device._make_mesh(F), mode, double)  # type: ignore[arg-type]
        return program.lower(F, shape(rows, dtype=jnp.bool))


MODES = {"paper": Kind(None, None, exact=False), "code": Kind("rows", "samples", exact=False)}


def compile_all(tiny: bool, only: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, seconds, CPU seconds, and bytes of a device) of every program whose name begins so."""
    devices = tuple(aot.list_devices(TOPOLOGY))
    rows, dim = (4096, 16) if tiny else (N - N % len(devices), D)
    lowered: dict[str, Any] = {f"head: {m}": functools.partial(lower_head, m, devices, tiny) for m in METHODS}
    for name, mode in MODES.items():
        lowered[f"spectrum: {name}"] = functools.partial(lower_spectrum, mode, devices, rows, dim, double=False)
    lowered["fine-tuning step: LoRA, NMTune"] = functools.partial(lower_finetuning, devices, tiny)
    for name, lower in lowered.items():
        if not name.startswith(only):
            continue
        program = lower()
        begun, spent = time.perf_counter(), time.process_time()
        compiled = program.compile()
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - spent
        yield name, {"seconds": seconds, "cpu_seconds": cpu_seconds, "bytes": aot.read_memory(compiled)["total"]}


def bound_spectra(tiny: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, FLOP, bytes and the bound of the seconds) of full spectra."""
    dim = 16 if tiny else D
    for topology, double in ((TOPOLOGY, False), ("h200", True)):
        chip, devices = (
            CHIPS[topology.split(":")[0]],
            tuple(aot.list_devices(topology) if not double else jax.devices()),
        )
        rows = (device.BLOCK if double else device.WHOLE_BLOCK) * len(devices)
        for name, mode in MODES.items():
            lowered = lower_spectrum(mode, devices, rows, dim, double)
            cost = lowered.cost_analysis() if double else lowered.compile().cost_analysis()
            blocks = -(-N // rows)
            flop, traffic = cost["flops"] * blocks, cost["bytes accessed"] * blocks
            peak = FLOAT64 if double else INT8
            seconds = {"compute": flop / peak, "memory": traffic / chip.bandwidth}
            worst = max(seconds, key=lambda k: seconds[k])
            yield f"{topology}, {name}", {"flop": flop, "bytes": traffic, "seconds": seconds[worst], "bound": worst}


def format_tables(found: dict[str, Any]) -> str:
    lines = ["| program | compiled in, s | CPU s | GiB per chip |", "|---|---:|---:|---:|"]
    for name, row in found["compiled"].items():
        lines.append(f"| {name} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['bytes'] / 2**30:.2f} |")
    lines += ["", "| spectrum on | TFLOP per device | GB per device | bound, s |", "|---|---:|---:|---:|"]
    for name, row in found["bounds"].items():
        figures = f"{row['flop'] / 1e12:.1f} | {row['bytes'] / 1e9:,.0f} | {row['seconds']:.3f} ({row['bound']})"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="compile all of it")
    parser.add_argument("--only", default="", help="compile programs whose names begin so; others keep their results")
    parser.add_argument("--tiny", action="store_true", help="compile small programs, and write nothing")
    args = parser.parse_args()
    if not (args.write or args.tiny):
        print(format_tables(json.loads(RESULTS.read_text("utf-8"))["results"]))
        return
    head = print_head(nml_jax, jax, np, topology=TOPOLOGY)
    found: dict[str, Any] = {"compiled": {}, "bounds": {}}
    if args.only:
        found = json.loads(RESULTS.read_text("utf-8"))["results"]
    bounds = () if args.only else bound_spectra(args.tiny)
    for part, rows in (("bounds", bounds), ("compiled", compile_all(args.tiny, args.only))):
        for name, row in rows:
            print(f"{name}: {row}", flush=True)
            found[part][name] = row
            if args.write and not args.tiny:
                write_results(RESULTS, head, found)
    print(format_tables(found))


if __name__ == "__main__":
    main()
