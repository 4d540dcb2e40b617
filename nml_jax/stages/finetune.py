"""Tune encoder and head on downstream images or texts (LoRA, full), with WiSE-FT between start and end -> rows.

Each setting of a task has a folder. `load_model` reads it once it is finished:

    finetune/<task>/<method>,terms=<terms>,share=<share>,seed=<seed>/    with wrong labels "noise=<rate>," before seed
        checkpoints/<step>/   the result as an ordinary checkpoint, with factors merged and the head in the model
        head.safetensors      the head alone, if the model has no place for it (CLIP, finetune.head=mlp)
        metrics.jsonl         metrics of the final training
        rows.jsonl            written last, which marks the setting done
        training/, search/    checkpoints for a restart, removed at the end
"""

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import errors, runtime, settings
from nml_jax.assembly import agreement, encoder, evaluators, streams
from nml_jax.assembly.heads.wrong_labels import check_downstream_kind, corrupt_downstream
from nml_jax.data.sources.noisy import NoisyLabels
from nml_jax.data.stratify import draw_stratified
from nml_jax.evals import collect, mapped
from nml_jax.models import Model
from nml_jax.objectives import finetune as objectives
from nml_jax.processes import peers
from nml_jax.runs.files import write_bytes
from nml_jax.runs.heads import confusion_path, correct_path, write_confusions, write_correct
from nml_jax.runs.predictions import Predictions, predictions_path, write_predictions
from nml_jax.runs.rows import Row, has_rows, read_rows, write_rows
from nml_jax.runs.tensors import seal_tensors
from nml_jax.stages.finetune_search import (
    FinetuneSetup,
    Heads,
    Trained,
    choose_and_train,
    make_initial_heads,
    make_training_config,
    name_setting,
)
from nml_jax.stages.stage import HEADS, Outputs, Stage
from nml_jax.tasks.classification import check_tasks, has_scores, list_tasks
from nml_jax.tasks.task import Task, Test
from nml_jax.training import checkpoint, finetune, lora
from nml_jax.training.leaves import name_leaves
from nml_jax.tuning import methods
from nml_jax.tuning.holdout import check_choices


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Tune the run's encoder on every task by every method with every set of terms, and write the rows.

    Returns:
        The digest of the rows.

    Raises:
        UserError: there is no encoder, a checkpoint is damaged, a dataset is missing, or training diverges at every
            rate.
    """
    frozen = encoder.load(config, workdir, mesh)
    params, model_state = runtime.fetch((frozen.params, frozen.model_state), mesh)
    weights = {name: x for name, x in params.items() if name != "head"}, model_state
    where = {"run": workdir.name, "step": frozen.step, "weights": config.extract.weights}
    origin = encoder.describe_origin(config, frozen.ledger, **where)
    rows: list[Row] = []
    for name in list_tasks(config):
        task = agreement.open_task(name, config)
        for share, rate in itertools.product(config.finetune.shares, config.finetune.noises):
            kept = draw_stratified(task.train.labels, share, config.seed)
            given = corrupt_task(task, kept, rate, config)
            for seed in settings.repetition_seeds(config.seed, config.finetune.seeds):
                setup = FinetuneSetup(
                    config=make_training_config(config, seed), mesh=mesh, frozen=frozen, weights=weights, task=given,
                    rows=kept, share=share, noise=rate, folder=workdir / "finetune" / task.name,
                )  # fmt: skip
                start = make_initial_heads(setup)
                for method in config.finetune.methods:
                    for terms in config.finetune.terms:
                        rows += tune_setting(setup, method, terms, start, origin)
    if jax.process_index() == 0:
        with errors.report_disk_errors(workdir):
            write_rows(workdir, "finetune", rows)
            for probe in (workdir / "finetune").glob(f"*/{finetune.PROBE},*"):
                shutil.rmtree(probe)
    return settings.hash_json([[row.metric, row.task, row.split, row.method, row.preset, row.value] for row in rows])


def differs(config: ConfigDict, rows: list[Row]) -> bool:
    """Return whether the rows are of other settings than those that the section `finetune` asks for."""
    own, seeds = config.finetune, settings.repetition_seeds(config.seed, config.finetune.seeds)
    presets = [objectives.preset_label(terms, **own.nmtune) for terms in own.terms]
    asked = {*itertools.product(own.methods, presets, own.shares, own.noises, seeds)}
    found: dict[str, set[Any]] = {}
    for row in rows:
        setting = row.method, row.preset, row.train_share, row.downstream_noise, row.head_seed
        found.setdefault(row.task, set()).add(setting)
    return not found or any(asked != settings_of for settings_of in found.values())


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Check the settings, the batches, the tasks, the start of the head and LoRA's targets."""
    finetune.check(config.finetune)
    check_downstream_kind(config)
    runtime.check_batch(config.finetune.batch, mesh, "finetune.batch")
    runtime.check_batch(config.extract.batch, mesh, "extract.batch")
    check_tasks(config, data=data)
    encoder.require_own(config, "finetune")
    require_classes(config, data=data)
    evaluators.check_inputs(config)
    model = encoder.build(config, num_classes=0)
    if config.finetune.head_init == "zeroshot":
        cure = "set finetune.head_init to fresh or probe"
        evaluators.check_described(config, "finetune.head_init=zeroshot", cure, data=data)
    choices = {"finetune.lrs": config.finetune.lrs}
    if config.finetune.head_init == finetune.PROBE:
        choices["tune.lrs"] = config.tune.lrs
    check_choices(config.tune.validation, choices)
    if "lora" in config.finetune.methods:
        how = {key: config.finetune[key] for key in ("rank", "alpha", "targets")}
        _ = lora.adapt_model(model, **how).shapes  # raises UserError if the targets match nothing


def corrupt_task(task: Task, rows: np.ndarray, rate: float, config: ConfigDict) -> Task:
    """Return the task with wrong labels on exactly the share `rate` of these training rows; see `tune.noises`."""
    if not rate:
        return task
    labels = task.train.labels.copy()
    labels[rows] = corrupt_downstream(labels[rows], task.num_classes, rate, config)
    return dataclasses.replace(task, train=NoisyLabels(task.train, labels))


def require_classes(config: ConfigDict, *, data: bool) -> None:
    """Raise UserError if a task is a regression, which fine-tuning does not do.

    Args:
        data: whether files may be looked for; else only the tasks that are named count.
    """
    names = list_tasks(config) if data else config.downstream.tasks
    if scored := next((name for name in names if has_scores(config, name)), None):
        heads = ", ".join(name for name, method in methods.METHODS.items() if method.regresses)
        raise errors.UserError(
            f"the stage finetune trains classifiers, and {scored} has scores",
            f"use the stage tune, whose heads {heads} predict scores, or make five classes of STS-B with "
            "--config.glue.stsb=classes; or leave the task out of --config.downstream.tasks",
        )


def list_needed(workdir: Path, rows: list[Row]) -> set[Path]:
    """List the tuned models that the rows refer to, and the files of correct test rows."""
    saved = set()
    for row in rows:
        name = name_setting(row.method, row.preset, row.train_share, row.downstream_noise, row.head_seed)
        saved.add(workdir / "finetune" / row.task / name / "checkpoints")
    # If no step was saved, this path does not exist.
    models = {folder / str(checkpoint.find_latest_step(folder)) for folder in saved}
    return models | {correct_path(workdir, vars(row)) for row in rows}


# ---- one setting


def tune_setting(setup: FinetuneSetup, method: str, terms: str, heads: Heads, origin: dict[str, Any]) -> list[Row]:
    """Choose the learning rate, train, save the result and score it. If it was done before, read its rows."""
    folder, config = setup.setting_folder(method, terms), setup.config.finetune
    shared = {
        **origin, "stage": "finetune", "task": setup.task.name, "n_train": len(setup.rows), "train_share": setup.share,
        "downstream_noise": setup.noise, "method": method, "preset": setup.preset(terms),
        "head_seed": setup.config.seed,
    }  # fmt: skip
    kept = correct_path(setup.folder.parents[1], shared)
    whole = kept.is_file() and bool(checkpoint.list_steps(folder / "checkpoints"))
    if peers.agree(whole and has_rows(folder)):
        return read_rows(folder)
    done = choose_and_train(setup, method, terms, config.lrs, heads)
    start = finetune.merge_factors(done.begin(), config)
    start[0]["encoder"], start[1]["encoder"] = setup.weights  # the weights before NoisyTune's perturbation
    end = finetune.merge_factors(runtime.fetch((done.state.params, done.state.model_state), setup.mesh), config)
    keep(setup, folder, end, done)
    hyper, rows = {"lr": done.lr, "weight_decay": config.weight_decay}, []
    scorers: dict[str, mapped.Scorer] = {}
    for share in (None, *config.wise):
        weights = end if share is None else finetune.interpolate(start, end, share)
        found, own = score_setting(setup, weights)
        scorers = scorers or own  # only of the result, which comes first
        rows += [Row(**shared, **fields, metric=metric, hyper=hyper, wise_alpha=share) for metric, fields in found]
    if jax.process_index() == 0:
        workdir = setup.folder.parents[1]
        write_correct(kept, {test: scorer.correct for test, scorer in scorers.items()})
        write_confusions(confusion_path(workdir, shared), {test: s.confusion for test, s in scorers.items()})
        answers = {test: Predictions(*s.answers[:2], *s.soft) for test, s in scorers.items()}
        write_predictions(predictions_path(workdir, shared), answers)
        with errors.report_disk_errors(folder):
            write_rows(folder, "finetune", rows)
            for name in ("training", "search"):
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
    return rows


# ---- the result of a setting


def keep(setup: FinetuneSetup, folder: Path, end: tuple[Any, Any], done: Trained) -> None:
    """Write the tuned classifier as an ordinary checkpoint, and the head to a file if the model has no place for it."""
    (params, model_state), config = end, setup.config
    head, num_classes = params["head"], 0
    params, model_state = params["encoder"], model_state["encoder"]
    if config.finetune.head == "linear" and not encoder.has_text(config):
        params, num_classes = {**params, "head": head["classifier"]}, setup.task.num_classes
    elif jax.process_index() == 0:
        named = {name: np.asarray(x) for part in (head, end[1]["head"]) for name, x in name_leaves(part).items()}
        with errors.report_disk_errors(folder):
            write_bytes(folder / "head.safetensors", seal_tensors(named, {}))
    ledger = setup.frozen.ledger
    meta = {
        "config": settings.to_json(config), "ledger": ledger.to_dict() if ledger else None, "lr": done.lr,
        "num_classes": num_classes, "task": setup.task.name, "class_names": list(setup.task.train.class_names),
        "downstream_noise": setup.noise, "environment": runtime.describe_environment(),
    }  # fmt: skip
    result = checkpoint.Checkpoints(folder / "checkpoints", every=1, keep=1, keep_every=0, meta=meta)
    try:
        if not peers.agree(bool(checkpoint.list_steps(folder / "checkpoints"))):
            placed = runtime.to_mesh((params, model_state), setup.mesh)
            result.save(
                dataclasses.replace(done.state, params=placed[0], model_state=placed[1], opt_state={}), must=True
            )
    finally:
        result.close()


def score_setting(
    setup: FinetuneSetup, weights: tuple[Any, Any]
) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, mapped.Scorer]]:
    """Score the classifier on every test of the task.

    Returns:
        Metrics with the fields of their rows, and the scorer of each split.
    """
    out, scorers = [], {}
    params, model_state = runtime.to_mesh(weights, setup.mesh)
    model_config, config = settings.freeze_sections(setup.config.model, setup.config.finetune)
    model = _build_classifier(model_config, config, setup.loop_setup("full"))
    for test in setup.task.tests:
        frames = {"frame_labels": test.frames.labels, "groups": test.frames.groups} if test.frames else {}
        how: dict[str, Any] = {"class_map": test.class_map, "soft": True, **frames, **test.scoring}
        scorer = mapped.Scorer(setup.task.num_classes, **how)
        drawn = {"batch": setup.config.extract.batch, "shift": test.shift, "seed": setup.config.seed}
        for rows in streams.restore_order(_compute_logits(setup, model, (params, model_state), test, drawn)):
            scorer.update(rows["label"], rows["logits"])
        for metric, value in scorer.scores().items():
            where = {"split": test.split, "domain": test.domain, "n_test": len(test.source)}
            out.append((metric, {**where, "value": value}))
        scorers[test.split] = scorer
    return out, scorers


def _compute_logits(
    setup: FinetuneSetup, model: Model, weights: tuple[Any, Any], test: Test, drawn: dict[str, Any]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield logits, labels and ids of every batch of a test split, without rows of padding."""
    put = runtime.put_batch(setup.mesh)
    for local in streams.read_records(setup.config, setup.mesh, setup.frozen.model, test.source, **drawn):
        batch = put(local)
        inputs = {name: batch[name] for name in model.inputs}
        logits = collect.get_output(*weights, inputs, apply=model.apply, name="logits")
        rows = {"logits": logits, **{name: batch[name] for name in ("label", "id", "mask")}}
        found = runtime.fetch(rows, setup.mesh)
        real = found.pop("mask") > 0
        yield {name: x[real] for name, x in found.items()}


_build_classifier = functools.lru_cache(maxsize=4)(finetune.build_classifier)


STAGE = Stage(
    name="finetune",
    version=3,
    keys=(
        "seed", "init_from", "data", "augment", "model", "downstream", "texts", "glue", "extract", "zeroshot", "tune",
        "finetune",
    ),
    upstream=("pretrain",),
    outputs=Outputs(("finetune", "correct/finetune", "confusion/finetune", "predictions/finetune"), list_needed),
    check=check,
    run=run,
    lists=("finetune.methods", "finetune.terms", "finetune.shares", "finetune.noises", *HEADS),
    differs=differs,
    encoded=lambda config: True,
)  # fmt: skip
