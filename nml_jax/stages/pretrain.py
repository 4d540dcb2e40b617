"""Pre-train a model with an objective on noisy data -> checkpoint."""

from collections.abc import Generator, Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, errors, models, noise, objectives, runtime, settings
from nml_jax.assembly import agreement, encoder, noisy_data, streams
from nml_jax.assembly import evaluators as evaluation
from nml_jax.assembly.encoder import describe_origin
from nml_jax.data.class_names import count_labels, describe_split
from nml_jax.data.sources.source import Source, Subset
from nml_jax.data.stream import pipeline
from nml_jax.data.stream.quarantine import Quarantine
from nml_jax.models.overview import describe_parameters
from nml_jax.processes import peers
from nml_jax.runs import goodput
from nml_jax.runs.classes import PRETRAINING, write_counts
from nml_jax.runs.record import GROWN, name_run
from nml_jax.runs.rows import Row, write_rows
from nml_jax.stages.stage import Outputs, Stage
from nml_jax.training import checkpoint, loop
from nml_jax.training.journal import Journal
from nml_jax.training.state import TrainState

# Corrupted records on which memorised noise is measured, at most.
FIT_RECORDS = 10_000


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Pre-train one run and write its checkpoints, ledger, metrics and rows.

    Returns:
        The digest of the final model. Two digests are equal only if weights and statistics are bit-equal.

    Raises:
        UserError: data or settings are bad, or the folder has another ledger.
    """
    clock = goodput.Clock()
    data = noisy_data.load_data(config)
    noisy_data.keep_ledger(workdir, data.ledger)
    if len(data.train.labels) and jax.process_index() == 0:
        _report_classes(workdir, {"train": data.train, "validation": data.validation})
    if data.ledger.asked is None and jax.process_index() == 0:
        wrong = f"{data.ledger.count:,} of {data.ledger.n:,}"
        console.notice(f"{workdir.name}: {config.noise_file} gives {wrong} records another label")
    plan = loop.Plan.from_config(config, len(data.train))
    peers.require_same(partial(agreement.collect_training, plan.steps), agreement.CURE)
    num_classes = data.train.num_classes
    program = loop.build(config, plan, mesh, num_classes=num_classes)
    if jax.process_index() == 0:
        console.notice_once(describe_parameters(program.shapes.params))
    seen = config, program.model, mesh, data.validation, data.tokenizer
    evaluators = {"validation": evaluation.build_validation(*seen)}
    meta = {"config": settings.to_json(config), "ledger": data.ledger.to_dict(), "num_classes": num_classes}
    checkpoints = checkpoint.Checkpoints(
        workdir / "checkpoints",
        every=plan.to_steps(config.runtime.save_every),
        keep=config.runtime.keep,
        keep_every=plan.to_steps(config.runtime.keep_every) if config.runtime.keep_every else 0,
        meta=meta | {"environment": runtime.describe_environment()},
    )
    undecodable = Quarantine(workdir, data.train, config.runtime.quarantine, active=jax.process_index() == 0)
    named = {"label": name_run(workdir), "clock": clock, "quarantine": undecodable}
    journal = Journal(workdir, config, steps=plan.steps, **named)
    during = evaluation.during_training(*seen)
    try:
        state = loop.train(
            config,
            program,
            plan,
            mesh,
            batches=partial(make_batches, config, mesh, program.model, data),
            evaluators=evaluators | during,
            checkpoints=checkpoints,
            journal=journal,
        )
    finally:
        checkpoints.close()
    rows = list(make_final_rows(config, program, mesh, data, state, evaluators, run=workdir.name))

    def evaluate_last() -> dict[str, float]:
        scores = [loop.Score(row.split, row.weights, row.metric, row.value) for row in rows]
        return {score.name: score.value for score in (*scores, *loop.run_all(during, state))}

    journal.write_last(int(state.step), evaluate_last)
    model = runtime.fetch({"params": state.params, "model_state": state.model_state, "ema": state.ema}, mesh)
    if jax.process_index() == 0:
        write_rows(workdir, "pretrain", rows)
    return checkpoint.hash_tree(model)


def _report_classes(workdir: Path, splits: Mapping[str, Source]) -> None:
    """Print and write how many records of each class the splits have, without noise."""
    counts = {name: count_labels(source.labels_clean, source.class_names) for name, source in splits.items()}
    for name, of in counts.items():
        console.notice(describe_split(f"{workdir.name}: {name}", of))
    with errors.report_disk_errors(workdir):
        write_counts(workdir / PRETRAINING, counts)


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Check that the batch, the model, the objective, the noise and the evaluators fit together."""
    runtime.check_batch(config.train.batch, mesh, "train.batch")
    encoder.require_own(config, "pretrain")
    noisy_data.check_inputs(config)
    captions = objectives.uses_captions(config.objective)
    has_text = encoder.has_text(config)
    evaluation.check(config, text=has_text)
    if captions and not has_text:
        raise errors.UserError(
            f"objective.name={config.objective.name} needs a text tower, and model.name={config.model.name} has none",
            f"choose a model such as {', '.join(name for name in models.MODELS if name.startswith('clip'))}",
        )
    if has_text and not captions:
        raise errors.UserError(
            f"objective.name={config.objective.name} learns from labels, but model.name={config.model.name} "
            "has no head for them",
            "set objective.name=clip, or choose a model without a text tower",
        )
    if captions != (config.noise_kind == "caption_swap"):
        kinds = ["caption_swap"] if captions else [*noise.KINDS]
        raise errors.UserError(
            f"noise_kind={config.noise_kind} does not fit objective.name={config.objective.name}, "
            f"which learns from {'captions' if captions else 'labels'}",
            f"set --config.noise_kind to {' or '.join(kinds)}",
        )
    noisy_data.check_noise_file(config)


def list_needed(workdir: Path, rows: list[Row]) -> set[Path]:
    """List the ledger and the checkpoint that the rows refer to."""
    return {workdir / "noise.json", *(workdir / "checkpoints" / str(row.step) for row in rows)}


def make_batches(
    config: ConfigDict, mesh: Mesh, model: models.Model, data: noisy_data.Data, start_step: int
) -> Generator[pipeline.Portion]:
    """Yield this process's rows of the training batches, from `start_step` on."""
    how = {"batch": config.train.batch, "seed": config.seed, "weights": config.data.weights}
    return streams.read_training(config, mesh, model, data.train, start_step, tokenize=data.tokenizer, **how)


def make_final_rows(
    config: ConfigDict,
    program: loop.Program,
    mesh: Mesh,
    data: noisy_data.Data,
    state: TrainState,
    evaluators: Mapping[str, loop.Evaluator],
    *,
    run: str,
) -> Iterator[Row]:
    """Yield clean validation scores of the final weights, and how much of the noise they memorised."""
    wrong = noisy_data.find_wrong_records(data.train, data.ledger, FIT_RECORDS)
    if len(wrong):
        fit = evaluation.build_fit(config, program.model, mesh, Subset(data.train, wrong), data.tokenizer)
        evaluators = {**evaluators, "train": fit}
    for split, weights, metric, value in loop.run_all(evaluators, state):
        if (split == "train") != (metric in ("noisy_fit", "noisy_nearer")):
            continue
        yield Row(
            **describe_origin(config, data.ledger, run=run, step=int(state.step), weights=weights),
            stage="pretrain",
            metric=metric,
            value=value,
            task="pretrain",
            split=split,
            domain="id",
            n_train=len(data.train),
            n_test=len(wrong) if split == "train" else evaluation.count_classes(data.validation, metric),
        )


STAGE = Stage(
    name="pretrain",
    version=2,
    keys=(
        "seed", "noise", "noise_kind", "noise_seed", "noise_classes", "noise_rate_of", "noise_file", "init_from",
        "data", "augment", "model", "objective", "optimizer", "train", "texts.tokenizer", "texts.length",
        "texts.buckets", "texts.literal", "texts.separator",
    ),
    upstream=(),
    outputs=Outputs(
        (
            "checkpoints", "tensorboard", "noise.json", "metrics.jsonl", "samples.jsonl", "quarantine.jsonl",
            "goodput.json", PRETRAINING,
        ),
        list_needed,
        proved=("noise.json", PRETRAINING),
        grown=GROWN,
    ),
    check=check,
    run=run,
)  # fmt: skip
