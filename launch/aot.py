"""Compile the training step of a config for a TPU slice on a CPU, to learn whether it fits and how long it would take.

    python launch/aot.py --config=configs/clip_vitb16.py --topology=v5e:8x8
    python launch/aot.py --config=configs/clip_vitb16.py --topology=v4:4x4x8 --fsdp=4 --config.model.remat=True

It needs the extra `tpu` (libtpu, the compiler for TPUs). It needs no TPU, no memory for the model, and no data if the
config gives its size. The topology is a chip (v4, v5e, v5p, v6e) and the shape of a slice of its pod. Or it is a GPU
(h100, h200), hosts and GPUs of each, as in h200:4x8; that needs jax-cuda12-plugin and jax-cuda12-pjrt of JAX's version,
and no GPU. There kernels are not tuned, and matrix products are left to cuBLAS, so figures are of a program that a real
GPU would improve. The flags of nml_jax.main that set the config work here, too. A compilation takes minutes on one
core, for large models tens of minutes. --effort=-1 takes a fifth of that for TPUs, but a real run would need less
memory and time than its program.

Memory is the compiler's figure. FLOP are counted before compilation, with recomputation; a multiplication and an
addition are two. The compiler's own count, printed beside them, counts the body of a loop only once. Collectives are
read from the compiled program. The time of a step is the longest of three: FLOP at `--mfu` of the chip's peak, the
compiler's bytes to and from HBM at the chip's bandwidth, and the bytes of the collectives at that of its links. It is a
bound, not a measurement. It assumes perfect overlap and leaves out the loader, evaluation and checkpoints.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launch import hlo  # noqa: E402
from launch.chips import Chip, Slice, make_unknown_error  # noqa: E402
from nml_jax import console  # noqa: E402
from nml_jax.errors import UserError  # noqa: E402
from nml_jax.runs.files import write_json  # noqa: E402

# JAX itself stays on the CPU. The TPU named here keeps the compiler from looking for a real one; the compiled program
# does not depend on it.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def list_devices(name: str) -> list[Any]:
    """List the devices of a slice in the order in which a pod's processes number them.

    Raises:
        UserError: an unknown topology, or the compiler is not installed.
    """
    chip, shape = Slice.parse(name)
    if chip.target:
        return _list_gpus(name, chip, shape)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the compiler for TPUs, libtpu, is not installed", "pip install -c constraints.txt -e '.[tpu]'")
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if name.startswith("v4") else {}  # both cores as one
    if 1 in shape[:2]:
        options["chips_per_host_bounds"] = tuple(min(n, 2) for n in (*shape, 1)[:3])
    try:
        found = topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices
    except RuntimeError as e:
        if "lockfile" in str(e):
            cure = "wait for it or kill it, then run the same command again"
            raise UserError("another process uses libtpu, which allows one at a time", cure) from e
        raise make_unknown_error(name) from e
    return sorted(found, key=lambda device: (device.process_index, device.id))


# Both would try kernels on a GPU that is not there.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


def _list_gpus(name: str, chip: Chip, shape: tuple[int, ...]) -> list[Any]:
    """List the GPUs of some hosts."""
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        cure = "pip install --no-deps -c constraints.txt jax-cuda12-plugin jax-cuda12-pjrt, of the version of jax"
        raise UserError("the compiler for GPUs, jax-cuda12-plugin, is not installed", cure)
    from jax.experimental import topologies

    hosts, gpus = shape
    found = topologies.get_topology_desc(
        topology_name=name, platform="cuda", target_config=chip.target, topology=f"1x{hosts}x{gpus}"
    )
    return sorted(found.devices, key=lambda device: (device.process_index, device.id))


def compile_step(config: Any, name: str, lowered: Any) -> Any:
    """Compile the step.

    Raises:
        UserError: it does not fit into the memory of a chip.
    """
    chip = Slice.parse(name).chip
    try:
        compiled = lowered.compile(GPU_OPTIONS if chip.target else None)
    except RuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        used = re.search(r"(?:Used |temporaries \()([\d.]+)([MG])", str(e))
        raise make_memory_error(config, name, f"{used[1]} {used[2]}iB" if used else "more than all", chip) from e
    if (need := read_memory(compiled)["total"]) > chip.hbm:
        raise make_memory_error(config, name, f"{need / 2**30:.2f} GiB", chip)
    return compiled


def make_memory_error(config: Any, name: str, need: str, chip: Chip) -> UserError:
    """Make the error of a step that needs too much memory. Its cure lists the remedies that the config does not use."""
    cures = [] if config.model.remat else ["--config.model.remat=True"]
    if trains_detector(config):
        cures += ["a smaller detect.batch"]
    else:
        cures += [f"--config.train.micro_batches={2 * config.train.micro_batches}", "a smaller train.batch"]
    cures += (
        ["--config.objective.chunk=128"] if not config.objective.chunk and config.objective.name != "supervised" else []
    )
    split = math.gcd(8, math.prod(Slice.parse(name).shape))
    cures += [f"--fsdp={split}"] if config.runtime.fsdp_axis == 1 < split else []
    return UserError(
        f"a step of {config.name} does not fit {name}: it needs {need} of a chip's {chip.hbm / 2**30:.0f} GiB of HBM",
        f"try {', '.join(cures)} or a larger slice",
    )


def read_memory(compiled: Any) -> dict[str, int]:
    """Read the bytes on each device. Outputs that reuse the memory of donated arguments are not counted twice."""
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values())}


def count_traffic(compiled: Any) -> dict[str, float]:
    """Count FLOP and bytes to and from memory of a compiled program, each body of a loop once."""
    if cost := compiled.cost_analysis():
        return cost
    import jax
    from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]

    (module,) = compiled.runtime_executable().hlo_modules()  # a GPU's compiler does not say
    return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)


def estimate(chip: Chip, *, flop: float, hbm_bytes: float, sent: float, mfu: float) -> dict[str, Any]:
    """Estimate the seconds of a step, and what bounds it.

    Args:
        flop, hbm_bytes, sent: operations of one device, bytes to and from its HBM, and bytes that it sends to others.
        mfu: share of the chip's peak that matrix products are assumed to reach.
    """
    seconds = {"compute": flop / (chip.peak * mfu), "memory": hbm_bytes / chip.bandwidth, "network": sent / chip.ici}
    bound = max(seconds, key=lambda name: seconds[name])
    return {**seconds, "step": seconds[bound], "bound": bound}


def analyse(config: Any, name: str, mfu: float, effort: float = 0.0) -> dict[str, Any]:
    """Compile the step of a config for a slice and return all figures as JSON values.

    Memory in bytes and FLOP are those of one device.

    Args:
        mfu: see `estimate`.
        effort: effort of the compiler, from -1 to 1; 0 is its default.

    Raises:
        UserError: the step does not fit, or the input is bad.
    """
    import jax

    from nml_jax import runtime

    config, find_sizes, lower, count_flop = choose_step(config)
    jax.config.update("jax_exec_time_optimization_effort", effort)
    chip = Slice.parse(name).chip
    mesh = runtime.make_mesh(config.runtime.data_axis, config.runtime.fsdp_axis, list_devices(name))
    counts = find_sizes(config)
    run, program, lowered = lower(config, mesh, *counts)
    flop = count_flop(config, *counts, recomputed=False) / mesh.size
    flops = {"model": flop, "executed": flop}
    if config.model.remat or config.train.micro_batches > 1:
        flops["executed"] = count_flop(config, *counts, recomputed=True) / mesh.size
    begun = time.perf_counter()
    compiled = compile_step(config, name, lowered)
    seconds = time.perf_counter() - begun
    found = hlo.find_collectives(compiled.as_text(), mesh.size)
    sums = [{"kind": k, "group": g, **row} for (k, g), row in sorted(hlo.sum_collectives(found).items())]
    cost = count_traffic(compiled)
    chip = chip._replace(ici=Slice.parse(name).link)
    times = estimate(
        chip, flop=flops["executed"], hbm_bytes=cost["bytes accessed"], sent=sum(row["sent"] for row in sums), mfu=mfu
    )
    hours = run.steps * times["step"] / 3600
    return {
        "config": config.name,
        "topology": name,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "model": config.model.name,
        "parameters": sum(x.size for x in jax.tree.leaves(program.shapes.params)),
        "batch": config.train.batch,
        "steps": run.steps,
        "epochs": config.train.epochs,
        "memory": read_memory(compiled),
        "flop": {**flops, "compiler": cost["flops"]},
        "hbm_bytes": cost["bytes accessed"],
        "collectives": sums,
        "unbounded": sum(c.times is None for c in found),
        "mfu": mfu,
        "seconds": times,
        "model_flop_share": flops["model"] / (chip.peak * times["step"]),
        "examples_per_s": config.train.batch / times["step"],
        "hours": hours,
        "chip_hours": hours * mesh.size,
        "effort": effort,
        "compile_seconds": round(seconds, 1),
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("nml_jax", "jax", "jax-cuda12-plugin" if chip.target else "libtpu")
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def choose_step(config: Any) -> tuple[Any, Any, Any, Any]:
    """Return the config of the loop, and the functions that find the sizes of its run, lower a step and count its FLOP.

    The step is that of pre-training, or, where the config does not pre-train, of its first detector on the landscape
    canvas.
    """
    from nml_jax.stages import detect, dry_run
    from nml_jax.tasks import detection

    if not trains_detector(config):
        return config, dry_run.find_sizes, dry_run.lower, dry_run.count_flop
    return detect.make_training_config(config), detection.find_sizes, detect.lower, detect.count_flop


def trains_detector(config: Any) -> bool:
    """Return whether the step of a config is that of a detector."""
    return "detect" in config.stages and "pretrain" not in config.stages


def describe(result: dict[str, Any]) -> str:
    """Format the result of `analyse` as lines of text."""
    chip = Slice.parse(result["topology"]).chip
    used, flop, seconds = result["memory"], result["flop"], result["seconds"]
    mesh = ", ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    parts = ", ".join(f"{k} {v / 2**30:.2f}" for k, v in used.items() if k != "total")
    hasty = f", compiled with effort {result['effort']:g}" if result["effort"] else ""
    lines = [
        f"{result['config']} on {result['topology']}: {result['chips']} chips, mesh {mesh}{hasty}",
        f"  model: {result['model']}, {result['parameters']:,} parameters",
        f"  run: {result['steps']:,} steps of {result['batch']} examples ({result['epochs']:g} epochs)",
        f"  memory per device: {used['total'] / 2**30:.2f} of {chip.hbm / 2**30:.0f} GiB ({parts})",
        f"  FLOP per device and step: {flop['executed']:.3g} (without recomputation {flop['model']:.3g}, "
        f"the compiler counts {flop['compiler']:.3g})",
        "  collectives per step:" + ("" if result["collectives"] else " none"),
    ]
    for row in result["collectives"]:
        lines.append(
            f"    {row['count']:>5} {row['kind']} among {row['group']}: {row['bytes'] / 1e6:,.2f} MB, "
            f"each device sends {row['sent'] / 1e6:,.2f} MB"
        )
    if result["unbounded"]:
        lines.append(f"    {result['unbounded']} of them are in loops of unknown length and counted once")
    shown = ", ".join(f"{name} {1e3 * seconds[name]:.1f} ms" for name in ("compute", "memory", "network"))
    lines += [
        f"  step: {1e3 * seconds['step']:.1f} ms, bound by {seconds['bound']} "
        f"({shown}; FLOP at {result['mfu']:.0%} of the peak)",
        f"  speed: {result['examples_per_s']:,.0f} examples/s, "
        f"model FLOP at {result['model_flop_share']:.0%} of the peak",
        f"  whole run: {result['hours']:,.1f} hours, {result['chip_hours']:,.0f} chip-hours",
    ]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"aot.py: {message}", "see python launch/aot.py --help")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Any]:
    """Parse the command line to (options, the config of the first run of its sweep).

    Raises:
        UserError: a flag is unknown or has a bad value.
    """
    parser = _Parser(prog="aot.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.allow_abbrev = False
    parser.add_argument("--topology", required=True, help="such as v5e:8x8, v6e:16x16, v4:4x4x4, v5p:2x2x2, h200:4x8")
    parser.add_argument("--fsdp", type=int, help="devices along the mesh axis fsdp; default: runtime.fsdp_axis")
    parser.add_argument("--mfu", type=float, default=0.5, help="assumed share of the chip's peak; default: 0.5")
    parser.add_argument(
        "--effort",
        type=float,
        default=0.0,
        help="effort of the compiler, from -1 (five times as quick) to 1; default: 0",
    )
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    options, rest = parser.parse_known_args(argv)
    if not 0 < options.mfu <= 1:
        raise UserError(f"--mfu must be above 0 and at most 1, got {options.mfu}", "as in --mfu=0.5")
    if not -1 <= options.effort <= 1:
        raise UserError(f"--effort must be from -1 to 1, got {options.effort}", "as in --effort=-1")
    if options.json and not options.json.parent.is_dir():
        raise UserError(f"--json={options.json}: there is no folder {options.json.parent}", "make the folder first")
    Slice.parse(options.topology)

    from absl import flags
    from ml_collections import config_flags

    from nml_jax import main, settings
    from nml_jax.assembly import sections

    extra = main.parse(["aot.py", *rest])[1:]
    extra += [f"--{name}" for name in ("workdir", "dry_run", "force") if flags.FLAGS[name].present]
    if extra:
        raise UserError(f"{extra[0]!r} is not a flag of aot.py", "see python launch/aot.py --help")
    config = main.CONFIG.value
    if options.fsdp is not None:
        with config.unlocked():
            config.runtime.update({"fsdp_axis": options.fsdp, "data_axis": -1})
    cells = settings.expand_sweep(config, config_flags.get_override_values(flags.FLAGS["config"]))
    cell = next(iter(cells.values()))
    sections.check(cell)
    return options, cell


def main(argv: Sequence[str]) -> int:
    """Run the command line. Return the exit code."""
    console.allow_any_terminal()
    try:
        options, config = parse(argv)
        result = analyse(config, options.topology, options.mfu, options.effort)
    except UserError as e:
        console.notice(f"error: {e}")
        return e.exit_code
    console.show(describe(result))
    if options.json:
        write_json(options.json.resolve(), result)
    return 0


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    sys.exit(main(sys.argv[1:]))
