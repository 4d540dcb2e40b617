"""Describe what a config would run and what that costs, without running it: `--dry_run`."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from nml_jax import console, objectives, runtime, settings
from nml_jax.assembly import encoder, noisy_data
from nml_jax.errors import UserError
from nml_jax.stages import runner
from nml_jax.training import loop
from nml_jax.training.window import Signals


def describe_plan(config: ConfigDict, cells: dict[str, ConfigDict], workdir: Path, mesh: Mesh) -> str:
    """Return as text the resolved config, the runs and their unfinished stages, and the size and cost of one run.

    Raises:
        UserError: the dataset is missing and the config does not state its size, or settings do not fit.
    """
    lines = ["resolved config:", json.dumps(settings.to_json(config), indent=2), "", f"runs in {workdir}:"]
    for name, cell in cells.items():
        todo = [s for s in config.stages if s in runner.STAGES and not runner.is_done(s, cell, workdir / name)]
        lines.append(f"  {name}: {', '.join(todo) if todo else 'done'}")
    if "pretrain" in config.stages:
        lines += ["", "pre-training, each run:"]
        lines += [f"  {name}: {value}" for name, value in estimate_cost(next(iter(cells.values())), mesh).items()]
    return "\n".join(lines)


def estimate_cost(config: ConfigDict, mesh: Mesh) -> dict[str, str]:
    """Estimate the size and cost of pre-training one run from shapes alone, without compiling or training."""
    runtime.check_batch(config.train.batch, mesh, "train.batch")
    n, num_classes = find_sizes(config)
    plan = loop.Plan.from_config(config, n)
    program = loop.build(config, plan, mesh, num_classes=num_classes)
    batch = make_batch_shapes(config)
    flops = count_flop(config, n, num_classes, recomputed=True)
    parameters = sum(x.size for x in jax.tree.leaves(program.shapes.params))
    needed = estimate_memory(config, program, batch, mesh, num_classes)
    return {
        "model": f"{config.model.name}, {parameters:,} parameters"
        + (f", {num_classes} classes" if num_classes else ""),
        "steps": f"{plan.steps:,} of {config.train.batch} examples ({config.train.epochs:g} epochs of {n:,})",
        "FLOP per step": f"{flops:.3g} ({flops * plan.steps:.3g} in all)",
        "devices": f"{mesh.size} × {mesh.devices.flat[0].device_kind}, mesh {dict(mesh.shape)}",
        **{f"memory per device, {k}": format_bytes(v) for k, v in needed.items()},
    }


def find_sizes(config: ConfigDict) -> tuple[int, int]:
    """Return the number of training records and of classes (0 with captions).

    Take them from `data.size` and `data.num_classes`, else from the dataset, else from `data.expected`.

    Raises:
        UserError: none of these gives them.
    """
    num_classes = 0 if objectives.uses_captions(config.objective) else config.data.num_classes
    if config.data.size is not None and num_classes is not None:
        return config.data.size, num_classes
    try:
        return noisy_data.count_records(config)
    except UserError as e:
        if config.data.expected is None or num_classes is None:
            raise
        console.notice(f"{e.cause}; planning with data.expected={config.data.expected}")
        return config.data.expected, num_classes


def lower(config: ConfigDict, mesh: Mesh, n: int, num_classes: int) -> tuple[loop.Plan, loop.Program, Any]:
    """Lower the training step for `n` records, from shapes alone; return (plan, program, lowered step).

    Raises:
        UserError: the batch cannot be split evenly over the mesh, or settings do not fit each other.
    """
    runtime.check_batch(config.train.batch, mesh, "train.batch")
    plan = loop.Plan.from_config(config, n)
    program = loop.build(config, plan, mesh, num_classes=num_classes)
    placed = NamedSharding(mesh, runtime.BATCH_SPEC)
    shapes = make_batch_shapes(config)
    batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed) for k, x in shapes.items()}
    signals = Signals(*[jax.ShapeDtypeStruct((mesh.size,), jnp.int32, sharding=placed) for _ in Signals._fields])
    return plan, program, program.step.lower(program.shapes, batch, signals)  # type: ignore[attr-defined]


def count_flop(config: ConfigDict, n: int, num_classes: int, *, recomputed: bool) -> float:
    """Return the FLOP of one step on the global batch.

    Args:
        recomputed: also count what the backward pass computes again.
    """
    one = runtime.make_mesh(devices=jax.local_devices()[:1])
    whole, remat = config.copy_and_resolve_references(), recomputed and config.model.remat
    with whole.unlocked():  # without loops, because XLA counts the body of a loop only once
        whole.update_from_flattened_dict({"model.remat": remat, "train.micro_batches": 1, "objective.chunk": 0})
    counted = lower(whole, one, n, num_classes)[2].cost_analysis()["flops"]
    # Micro-batches compute the forward pass, a third of the step, twice.
    return counted * (4 / 3 if recomputed and config.train.micro_batches > 1 else 1)


def make_batch_shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the global training batch.

    It has the inputs of the model, id int32 [B], mask float32 [B], and without text label int32 [B].
    """
    b = config.train.batch
    spec = encoder.build(config, num_classes=config.data.num_classes or 1).spec
    numbers = ("id",) if "text" in spec else ("label", "id")
    return {
        **{name: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for name, x in spec.items()},
        **{name: jax.ShapeDtypeStruct((b,), jnp.int32) for name in numbers},
        "mask": jax.ShapeDtypeStruct((b,), jnp.float32),
    }


def estimate_memory(
    config: ConfigDict, program: loop.Program, batch: Any, mesh: Mesh, num_classes: int
) -> dict[str, float]:
    """Estimate the bytes per device of the state, the gradients, the batch and the activations.

    The activations kept for the backward pass are an upper bound, because XLA fuses some of them away.
    """

    def per_device(x: Any) -> float:
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize if not _is_key(x) else 8

    objective = objectives.make(config.objective, num_classes=num_classes, blocks=mesh.size)

    def compute_residuals(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        return jax.vjp(lambda p: objective.loss(program.model, p, model_state, batch, key)[0], params)[1]

    kept = jax.eval_shape(
        compute_residuals, program.shapes.params, program.shapes.model_state, batch, jax.random.key(0)
    )
    params = {id(x): x for x in jax.tree.leaves(program.shapes.params)}
    parameters = sum(x.size * x.dtype.itemsize for x in params.values())
    activations = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept)) - parameters
    return {
        "state": sum(map(per_device, jax.tree.leaves(program.shapes))),
        "gradients": sum(map(per_device, params.values())),
        "batch": sum(x.size * x.dtype.itemsize for x in batch.values()) / mesh.size,
        "activations (at most)": max(activations, 0) / mesh.size / config.train.micro_batches,
    }


def format_bytes(n: float) -> str:
    """Format a number of bytes with a binary unit."""
    unit = min(int(math.log2(max(n, 1)) // 10), 4)
    return f"{n / 2 ** (10 * unit):.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
