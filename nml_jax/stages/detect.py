"""Train detectors on the run's encoder and evaluate them by COCO's average precision -> rows.

Each detector has a folder. A finished one is not trained again:

    detect/<system>[,random]/
        checkpoints/<step>/   an ordinary checkpoint of {"encoder", "detector"}
        metrics.jsonl         metrics of the training
        results.json          the detections on the test split, in COCO's format
        pictures.jpg          test images with true objects and with found ones
        rows.jsonl            written last, which marks the detector done
"""

from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from nml_jax import console, errors, runtime, settings
from nml_jax.assembly import agreement, encoder
from nml_jax.data.stream import pipeline
from nml_jax.data.stream.quarantine import Quarantine
from nml_jax.data.stream.reading import SceneReading
from nml_jax.evals import EVALUATORS
from nml_jax.models import Model
from nml_jax.processes import peers
from nml_jax.runs import goodput
from nml_jax.runs.detections import FOLDER, PICTURES, RESULTS, find_folder
from nml_jax.runs.files import write_bytes, write_json
from nml_jax.runs.rows import Row, has_rows, read_rows, write_rows
from nml_jax.stages.stage import Outputs, Stage
from nml_jax.tasks import detection
from nml_jax.training import checkpoint, loop
from nml_jax.training.detection import program as detect
from nml_jax.training.journal import Journal
from nml_jax.training.window import Signals, put_signals


class Job(NamedTuple):
    """A detector to be trained.

    weights: the encoder's (params without its head, model_state) on the host; None for random ones.
    origin: fields of its rows that describe the encoder.
    """

    config: ConfigDict  # from `make_training_config`
    mesh: Mesh
    task: detection.Task
    system: str
    weights: tuple[Any, Any] | None
    origin: dict[str, Any]
    folder: Path


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Train every system from every start, and write the rows.

    Returns:
        The digest of the rows.

    Raises:
        UserError: there is no encoder, or the data are missing or do not fit.
    """
    task = detection.open_task(config)
    frozen = encoder.load(config, workdir, mesh) if "encoder" in config.detect.starts else None
    weights = None
    if frozen is not None:
        params, model_state = runtime.fetch((frozen.params, frozen.model_state), mesh)
        weights = {name: x for name, x in params.items() if name != "head"}, model_state
    rows: list[Row] = []
    for system in config.detect.systems:
        for start in config.detect.starts:
            job = Job(
                make_training_config(config), mesh, task, system, weights if start == "encoder" else None,
                describe_origin(config, frozen, workdir), find_folder(workdir, system, start),
            )  # fmt: skip
            rows += train_and_score(job, start)
    if jax.process_index() == 0:
        with errors.report_disk_errors(workdir):
            write_rows(workdir, "detect", rows)
    return settings.hash_json([[row.metric, row.method, row.preset, row.value] for row in rows])


def describe_origin(config: ConfigDict, frozen: encoder.Encoder | None, workdir: Path) -> dict[str, Any]:
    """Return the fields of a row that describe the encoder, if there is one."""
    where = {"run": workdir.name, "step": frozen.step if frozen else 0, "weights": config.extract.weights}
    return encoder.describe_origin(config, frozen.ledger if frozen else None, **where)


def make_training_config(config: ConfigDict) -> ConfigDict:
    """Return the config for the loop: `detect` takes the place of `train`, and `init_from` is empty."""
    out = config.copy_and_resolve_references()
    with out.unlocked():
        out.init_from = ""
        out.train.batch, out.train.epochs = config.detect.batch, config.detect.epochs
        out.train.ema, out.train.micro_batches = 0.0, 1
    return out


def make_reading(job: Job, model: Model) -> SceneReading:
    """Return how training and evaluation read images on this process."""
    how = {"threads": job.config.runtime.threads, "prefetch": job.config.runtime.prefetch}
    transform = detection.make_transform(job.config.detect.data, model)
    return SceneReading(transform, *runtime.find_process_block(job.mesh), **how)


def train_and_score(job: Job, start: str) -> list[Row]:
    """Train a detector, save and score it. If it was done before, read its rows."""
    if peers.agree(has_rows(job.folder)):
        if jax.process_index() == 0:
            console.notice(f"{job.folder}: is done")
        return read_rows(job.folder)
    config, mesh, task = job.config, job.mesh, job.task
    plan, program = build_program(config, mesh, job.system, len(task.train), task.train.num_classes)
    peers.require_same(partial(agreement.collect_training, plan.steps), agreement.CURE)
    evaluator = build_evaluator(job, program.model)
    state = train(job, program, plan, evaluator)
    scores = list(loop.run_all({task.test_split: evaluator}, state))
    shared = {
        **job.origin, "stage": "detect", "task": task.name, "domain": "id", "n_train": len(task.train),
        "n_test": len(task.test), "method": job.system, "preset": start, "step": int(state.step),
    }  # fmt: skip
    rows = [Row(**{**shared, "metric": s.metric, "value": s.value, "split": s.split}) for s in scores]
    if jax.process_index() == 0:
        with errors.report_disk_errors(job.folder):
            write_json(job.folder / RESULTS, detection.restore_ids(task.test, evaluator.results))
            write_bytes(job.folder / PICTURES, detection.draw_sheet(task.test, evaluator.results))
            write_rows(job.folder, "detect", rows)
    return rows


def train(job: Job, program: loop.Program, plan: loop.Plan, evaluator: loop.Evaluator) -> loop.TrainState:
    """Train a detector through the loop; continue from its checkpoints."""
    config, mesh, source = job.config, job.mesh, job.task.train
    reading = make_reading(job, program.model)

    def batches(start_step: int) -> Generator[pipeline.Portion]:
        how = {"batch": config.train.batch, "seed": config.seed, "start_step": start_step}
        return pipeline.train(source, reading, **how)

    undecodable = Quarantine(job.folder, source, config.runtime.quarantine, active=jax.process_index() == 0)
    named = {"label": f"{job.task.name} {job.folder.name}", "clock": goodput.Clock(), "quarantine": undecodable}
    classes = {"class_names": list(source.class_names), "category_ids": list(source.category_ids)}
    checkpoints = checkpoint.Checkpoints(
        job.folder / "checkpoints",
        every=plan.to_steps(config.runtime.save_every),
        keep=config.runtime.keep,
        keep_every=0,
        meta={"config": settings.to_json(config), "num_classes": source.num_classes, "system": job.system, **classes},
    )
    try:
        return loop.train(
            config,
            program._replace(init=lambda key: detect.start(program, job.weights, mesh, key)),
            plan,
            mesh,
            batches=batches,
            evaluators={"validation": evaluator} if config.runtime.eval_every else {},
            checkpoints=checkpoints,
            journal=Journal(job.folder, config, steps=plan.steps, **named),
        )
    finally:
        checkpoints.close()


def build_evaluator(job: Job, model: Model) -> Any:
    """Build the evaluator of a detector on the test split."""
    source, mesh = job.task.test, job.mesh
    how = {"put": runtime.put_batch(mesh), "fetch": partial(runtime.fetch, mesh=mesh)}
    return EVALUATORS["detection"](
        model.apply,
        partial(pipeline.evaluate, source, make_reading(job, model), batch=job.config.train.batch),
        detection.make_truth(source),
        partial(detection.describe, source),
        kinds=("box", "mask") if needs_masks(model) else ("box",),
        **how,
    )


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Check the batch, the encoder's maps, the data, and that what is not trained has an encoder to come from."""
    runtime.check_batch(config.detect.batch, mesh, "detect.batch")
    encoder.require_images(config, "detect")
    if "random" in config.detect.starts and config.detect.norm != "train":
        raise errors.UserError(
            f"detect.norm={config.detect.norm} keeps the statistics of BatchNorm, and random weights have none",
            "set detect.norm=train, or leave random out of detect.starts",
        )
    if "random" in config.detect.starts and config.detect.freeze:
        raise errors.UserError(
            f"detect.freeze={config.detect.freeze} would keep the encoder's first stages at random weights",
            "set detect.freeze=0, or leave random out of detect.starts",
        )
    own = config.detect.data
    sizes = detection.count(config) if data else (own.expected or 10_000, own.num_classes or 2)
    for system in config.detect.systems:
        _, program = build_program(config, mesh, system, *sizes)
        if data and needs_masks(program.model):
            detection.check_masks(detection.open_task(config), system)


def needs_masks(model: Model) -> bool:
    """Return whether a detector learns masks."""
    return bool({"masks", "maps"} & model.spec.keys())


def build_program(
    config: ConfigDict, mesh: Mesh, system: str, images: int, num_classes: int
) -> tuple[loop.Plan, loop.Program]:
    """Return the plan and the program of a system for so many training images and classes."""
    plan = loop.Plan.from_config(make_training_config(config), images)
    setup = detect.Setup(system, num_classes, detection.find_canvas(config.detect.data))
    sections = settings.freeze_sections(config.model, config.detect, config.optimizer)
    return plan, detect.build(*sections, setup, plan, mesh)


def estimate(config: ConfigDict, mesh: Mesh) -> dict[str, str]:
    """Trace a training step of every system on both canvases, and return their sizes in words.

    Raises:
        UserError: the data are not there and `detect.data.expected` and `num_classes` do not stand in for them.
    """
    images, num_classes = detection.find_sizes(config)
    out = {}
    for system in config.detect.systems:
        plan, program = build_program(config, mesh, system, images, num_classes)
        canvases = trace(config, mesh, program)
        parameters = sum(x.size for x in jax.tree.leaves(program.shapes.params))
        out[system] = (
            f"{parameters:,} parameters, {num_classes} classes; {plan.steps:,} steps of {config.detect.batch} images "
            f"({config.detect.epochs:g} epochs of {images:,}), from {console.list_words(config.detect.starts)}; canvas "
            f"{' or '.join(f'{height} x {width}' for height, width in canvases)}"
        )
    return out


def trace(config: ConfigDict, mesh: Mesh, program: loop.Program) -> list[tuple[int, int]]:
    """Trace the training step on every canvas, and return these. Raises what a step of these shapes would raise."""
    canvases = []
    for batch in make_batch_shapes(config, program.model):
        canvases.append(batch["image"].shape[1:3])
        jax.eval_shape(program.step, program.shapes, batch, put_signals(mesh))
    return canvases


def lower(config: ConfigDict, mesh: Mesh, images: int, num_classes: int) -> tuple[loop.Plan, loop.Program, Any]:
    """Lower the training step of the first system on the landscape canvas; return (plan, program, lowered step)."""
    runtime.check_batch(config.detect.batch, mesh, "detect.batch")
    plan, program = build_program(config, mesh, config.detect.systems[0], images, num_classes)
    placed = NamedSharding(mesh, runtime.BATCH_SPEC)
    shapes = make_batch_shapes(config, program.model)[0]
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed) for name, x in shapes.items()}
    signals = Signals(*[jax.ShapeDtypeStruct((mesh.size,), jnp.int32, sharding=placed) for _ in Signals._fields])
    return plan, program, program.step.lower(program.shapes, batch, signals)  # type: ignore[attr-defined]


def count_flop(config: ConfigDict, images: int, num_classes: int, *, recomputed: bool) -> float:
    """Return the FLOP of that step on the global batch, bodies of loops once.

    Args:
        recomputed: also count what `model.remat` computes again.
    """
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
        whole.model.remat = recomputed and config.model.remat
    one = runtime.make_mesh(devices=jax.local_devices()[:1])
    return lower(whole, one, images, num_classes)[2].cost_analysis()["flops"]


def make_batch_shapes(config: ConfigDict, model: Model) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Return the shapes of a global training batch on each canvas."""
    b, reading = config.detect.batch, SceneReading(detection.make_transform(config.detect.data, model))
    whole = []
    for group in (0,) if len(set(reading.transform.canvas)) == 1 else (0, 1):
        fields = reading.list_fields(group, test=False)
        shapes = {name: jax.ShapeDtypeStruct((b, *field.shape), field.dtype) for name, field in fields.items()}
        numbers = {"id": jnp.int32, "mask": jnp.float32}
        whole.append(shapes | {name: jax.ShapeDtypeStruct((b,), dtype) for name, dtype in numbers.items()})
    return whole


def list_needed(workdir: Path, rows: list[Row]) -> set[Path]:
    """List the folders of the detectors that the rows refer to."""
    folders = {find_folder(workdir, row.method or "", row.preset or "") for row in rows}
    return {folder / name for folder in folders for name in (RESULTS, PICTURES, "checkpoints")}


def differs(config: ConfigDict, rows: list[Row]) -> bool:
    """Return whether the rows are those of other detectors than `detect.systems` and `detect.starts` ask for."""
    asked = {(system, start) for system in config.detect.systems for start in config.detect.starts}
    return asked != {(row.method, row.preset) for row in rows}


STAGE = Stage(
    name="detect",
    version=1,
    keys=("seed", "init_from", "data", "augment", "model", "optimizer", "extract", "detect"),
    upstream=("pretrain",),
    outputs=Outputs((FOLDER,), list_needed),
    check=check,
    run=run,
    lists=("detect.systems", "detect.starts"),
    differs=differs,
    estimate=estimate,
    encoded=lambda config: "encoder" in config.detect.starts,
)
