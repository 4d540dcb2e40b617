"""Describe what a config would run and what that costs, without running it: `--dry_run`."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from nml_jax import console, inputs, objectives, runtime, settings
from nml_jax.assembly import encoder, feature_files, noisy_data
from nml_jax.assembly.embeddings import bill
from nml_jax.assembly.heads import tune_cost
from nml_jax.errors import MissingInput, UserError
from nml_jax.models import published
from nml_jax.models.overview import describe_parameters
from nml_jax.stages import experiment, report, runner
from nml_jax.tasks import glue
from nml_jax.training import loop, pretrained
from nml_jax.training.window import Signals


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config would run.

    text: for the terminal.
    missing: what was named on the command line and is not there, and what cannot run; lines of text.
    """

    text: str
    missing: tuple[str, ...]


def describe_plan(
    config: ConfigDict,
    cells: Mapping[str, ConfigDict],
    workdir: Path,
    mesh: Mesh,
    *,
    pinned: Mapping[str, Any],
    full: bool = False,
) -> Plan:
    """Describe the runs and their unfinished stages, the size and cost of one run, and what is not there.

    Args:
        pinned: the keys that the command line sets.
        full: also show the whole config.

    Raises:
        UserError: settings do not fit.
    """
    stages = [name for name in runner.STAGES if name in config.stages]
    lines = ["resolved config:", json.dumps(settings.to_json(config), indent=2), ""] if full else []
    lines += ["overridden keys:" if pinned else "overridden keys: none"]
    lines += [f"  {key}: {json.dumps(value)}" for key, value in pinned.items()]
    lines += _list_published(config)
    lines += glue.describe(config) if glue.is_asked(config) else []
    lines += ["", f"{len(cells)} run(s) in {workdir}:"]
    for name, cell in cells.items():
        folder = experiment.find_folder(workdir, name, cell)
        todo = [s for s in config.stages if s in runner.STAGES and not runner.is_done(s, cell, folder)]
        lines.append(f"  {folder.name}: {', '.join(todo) if todo else 'done'}")
    wanting = find_wanting(config, cells, workdir, mesh, pinned)
    if "pretrain" in config.stages:
        lines += ["", "pre-training, each run:"]
        try:
            lines += [f"  {name}: {value}" for name, value in estimate_cost(next(iter(cells.values())), mesh).items()]
        except UserError:
            if not wanting:
                raise
            lines.append("  its size and cost are known when what is listed below is there")
    if config.features.train and "tune" in config.stages and not wanting:
        lines += ["", "features and heads, in all runs:"]
        todo = experiment.list_undone(cells, workdir, "tune")
        lines += [f"  {line}" for line in (tune_cost.describe(config, todo) if todo else ["done"])]
    if config.study:
        lines += ["", "what the study can show:", *(f"  {line}" for line in report.list_power(config, workdir))]
    for stage in map(runner.find_stage, stages):
        if stage.estimate and not any(item.wrong for item in wanting):
            found = stage.estimate(next(iter(cells.values())), mesh)
            lines += ["", f"{stage.name}, each run:", *(f"  {name}: {value}" for name, value in found.items())]
    item = _try(experiment.check_encoders, workdir, cells, stages, pinned=pinned)  # a plan can do without
    wanting += [item] if item and item not in wanting else []
    if encoder.is_remote(config) and "extract" in config.stages and not wanting:
        for cell in _list_services(cells):
            lines += ["", f"{cell.api.model}, all splits:", *(f"  {line}" for line in bill.describe_bill(cell))]
    later = [item.text for item in wanting if not item.wrong]
    missing = tuple(item.text for item in wanting if item.wrong)
    for title, items in (("to obtain", later), ("missing or unfit", missing)):
        lines += ["", f"{title}:", *(f"  {item}" for item in items)] if items else []
    return Plan("\n".join(lines), missing)


def _list_services(cells: Mapping[str, ConfigDict]) -> list[ConfigDict]:
    """Return a run for each service and set of texts."""
    return list({json.dumps(settings.select_keys(settings.to_json(cell), ("api", "texts", "glue"))): cell
                 for cell in cells.values()}.values())  # fmt: skip


class Wanting(NamedTuple):
    """Something that a run needs and cannot have."""

    text: str
    wrong: bool  # named on the command line, or there but unfit; else it is to be obtained


def find_wanting(
    config: ConfigDict, cells: Mapping[str, ConfigDict], workdir: Path, mesh: Mesh, pinned: Mapping[str, Any]
) -> list[Wanting]:
    """Find, for all stages that are not done, the files that are not there, and then what is wrong with the others."""
    found: dict[str, Wanting] = {}
    stages, whole = [stage for stage in runner.STAGES if stage in config.stages], True
    for name, cell in cells.items():
        for stage in stages:
            if runner.is_done(stage, cell, experiment.find_folder(workdir, name, cell)):
                continue
            gone = _list_gone(cell, stage)
            whole &= not (gone and stage == "pretrain")
            for key, path in gone:
                found.setdefault(f"{key} {path}", Wanting(f"{key}: {path} does not exist", key in pinned))
            item = None if gone else _try(runner.find_stage(stage).check, cell, mesh, pinned=pinned, data=True)
            if item:
                found.setdefault(item.text, item)
            if stage == "features" and (gone or item):  # a check ends at the first file that is wrong
                for e in feature_files.find_faults(cell):
                    found.setdefault(_describe(e), Wanting(_describe(e), wrong=True))
    for item in _try_weights(cells, workdir, stages, pinned):
        found.setdefault(item.text, item)
    if whole and (item := _try(experiment.check_supervision, workdir, cells, stages, pinned=pinned)):
        found.setdefault(item.text, item)
    return list(found.values())


def _try_weights(
    cells: Mapping[str, ConfigDict], workdir: Path, stages: list[str], pinned: Mapping[str, Any]
) -> list[Wanting]:
    """Read each different weights of `init_from` that unfinished stages need, and return what is wrong with them."""
    different: dict[str, tuple[ConfigDict, Path]] = {}
    for name, cell in cells.items():
        folder = experiment.find_folder(workdir, name, cell)
        reads = any(not runner.is_done(s, cell, folder) for s in stages if _reads_weights(s, cell))
        if reads and cell.init_from and Path(cell.init_from).expanduser().exists():
            keys = settings.select_keys(settings.to_json(cell), ("init_from", "data", "model", "texts", "extract"))
            different.setdefault(json.dumps(keys), (cell, folder))
    return [item for one in different.values() if (item := _try(encoder.check_weights, *one, pinned=pinned))]


def _reads_weights(stage: str, cell: ConfigDict) -> bool:
    """Return whether a stage reads `init_from`."""
    return stage == "pretrain" or runner.find_stage(stage).encoded(cell)


def _list_gone(cell: ConfigDict, stage: str) -> list[tuple[str, str]]:
    """List the files and folders that a stage reads and that do not exist, as (key, path)."""
    part = settings.select_keys(settings.to_json(cell), runner.find_stage(stage).keys)
    named = inputs.name_paths(part)
    unused = set()
    unused |= {"downstream.path"} if cell.features.train or "directory" not in cell.downstream.tasks else set()
    unused |= {"data.path"} if cell.data.mixture or cell.data.source == "digits" else set()
    unused |= {"detect.data.path", "detect.data.test_path"} if cell.detect.data.source == "digits" else set()
    unused |= {"noise_file"} if cell.noise_kind not in settings.FIXED_RATE else set()
    unused |= {"data.tokenizer"} if not encoder.has_text(cell) else set()
    unused |= set() if _reads_weights(stage, cell) else {"init_from"}
    return [(key, path) for key, path in named if key not in unused and not Path(path).expanduser().exists()]


def _list_published(config: ConfigDict) -> list[str]:
    """List the keys that the published folder of `init_from` sets, and what the config has instead.

    Raises:
        UserError: the folder's config cannot be read, or has another activation.
    """
    path = Path(config.init_from).expanduser()
    if not config.init_from or not path.exists() or pretrained.is_run(path) or published.find_config(path) is None:
        return []
    theirs, now = published.read_keys(path), dict(settings.flatten(config.to_dict()))
    pretrained.compare_published(str(path), theirs, config)
    lines = [f"  {key}: {value}" + (f", here {now[key]}" if now[key] != value else "") for key, value in theirs.items()]
    return ["", f"read from {path}:", *lines]


def _describe(error: UserError) -> str:
    return f"{error.cause}; {error.cure}"


# The keys that name a dataset which is not a path of the config.
DATASETS = (
    *("data.source", "data.name", "data.path"),
    *("downstream.tasks", "downstream.directories", "downstream.partners", "downstream.catalogue"),
)


def _try(check: Callable[..., None], *arguments: Any, pinned: Mapping[str, Any], **options: Any) -> Wanting | None:
    """Run a check that reads data, and return what is wrong, if anything is."""
    try:
        check(*arguments, **options)
    except UserError as e:
        named = any(key in pinned for key in DATASETS)
        return Wanting(_describe(e), wrong=named or not isinstance(e, MissingInput))
    return None


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
        "parameters": "\n" + textwrap.indent(describe_parameters(program.shapes.params), "    "),
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
