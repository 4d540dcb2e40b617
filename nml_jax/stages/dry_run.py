"""What a config would do, and what that costs, without doing it: `--dry_run`."""

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


def describe_plan(config: ConfigDict, cells: dict[str, ConfigDict], workdir: Path, mesh: Mesh) -> str:
    """The resolved config, the runs and which of their stages are done, and one run's size and cost, as text.

    Raises:
        UserError: a dataset is missing whose size the config does not state, or settings that do not fit.
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
    """Size and cost of pre-training one run, from shapes alone: nothing is compiled or trained."""
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
    """Records to train on, and classes (0 of captions): as the config states them, or as the data say, or, while the
    data are not there, as many as the config expects.

    Raises:
        UserError: neither says it.
    """
    num_classes = 0 if objectives.uses_captions(config.objective) else config.data.num_classes
    if config.data.size is not None and num_classes is not None:
        return config.data.size, num_classes
    try:
        return noisy_data.count_records(config)
    except UserError as e:
        if config.data.expected is None or num_classes is None:
            raise
        console.notice(f"{e.cause}; planned with data.expected={config.data.expected}")
        return config.data.expected, num_classes


def lower(config: ConfigDict, mesh: Mesh, n: int, num_classes: int) -> tuple[loop.Plan, loop.Program, Any]:
    """(plan, program, lowered step) of training on `n` records, from shapes alone.

    Raises:
        UserError: the batch cannot be divided over the mesh, or settings do not fit each other.
    """
    runtime.check_batch(config.train.batch, mesh, "train.batch")
    plan = loop.Plan.from_config(config, n)
    program = loop.build(config, plan, mesh, num_classes=num_classes)
    flags = {"asked": mesh.size, "quarantined": config.train.batch}
    shapes = make_batch_shapes(config) | {k: jax.ShapeDtypeStruct((n,), jnp.int32) for k, n in flags.items()}
    placed = NamedSharding(mesh, runtime.BATCH_SPEC)
    batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed) for k, x in shapes.items()}
    return plan, program, program.step.lower(program.shapes, batch)  # type: ignore[attr-defined]


def count_flop(config: ConfigDict, n: int, num_classes: int, *, recomputed: bool) -> float:
    """FLOP of one step of the global batch, with those that are done again in the backward pass, or without."""
    one = runtime.make_mesh(devices=jax.local_devices()[:1])
    whole, remat = config.copy_and_resolve_references(), recomputed and config.model.remat
    with whole.unlocked():  # of a loop, the operations of one round are counted: so, no loops
        whole.update_from_flattened_dict({"model.remat": remat, "train.micro_batches": 1, "objective.chunk": 0})
    counted = lower(whole, one, n, num_classes)[2].cost_analysis()["flops"]
    # Of micro-batches the forward pass, a third, is computed twice.
    return counted * (4 / 3 if recomputed and config.train.micro_batches > 1 else 1)


def make_batch_shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """The global training batch: what the model takes; label, where it has no text; id int32 [B]; mask float32 [B]."""
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
    """Bytes per device: the state, the gradients, the batch, and what the forward pass keeps for the backward pass.

    The last is an upper estimate: XLA fuses some of it away.
    """

    def per_device(x: Any) -> float:
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize if not _is_key(x) else 8

    objective = objectives.make(config.objective, num_classes=num_classes, blocks=mesh.size)

    def residuals(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        return jax.vjp(lambda p: objective.loss(program.model, p, model_state, batch, key)[0], params)[1]

    kept = jax.eval_shape(residuals, program.shapes.params, program.shapes.model_state, batch, jax.random.key(0))
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
    """Bytes as a person reads them."""
    unit = min(int(math.log2(max(n, 1)) // 10), 4)
    return f"{n / 2 ** (10 * unit):.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
