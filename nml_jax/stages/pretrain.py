"""Noisy data + objective -> checkpoint."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import errors, log, noise, runtime, settings
from nml_jax.data import pipeline, sources
from nml_jax.evals.classification import Classification
from nml_jax.training import checkpoint, loop
from nml_jax.training.state import TrainState

VERSION = 1
KEYS = (
    "seed", "noise", "noise_kind", "noise_seed", "noise_classes", "noise_rate_of", "noise_file", "init_from",
    "data", "augment", "model", "objective", "optimizer", "train",
)  # fmt: skip
UPSTREAM = ()

# Of the corrupted records, this many tell how far the network has learned the wrong labels by heart.
FIT_RECORDS = 10_000


class Data(NamedTuple):
    train: sources.Source  # with noisy labels
    validation: sources.Source  # clean
    ledger: noise.Ledger


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Pre-train one run and write its checkpoints, ledger, metrics and rows.

    Returns:
        The digest of the final model: equal iff its weights and statistics are bit-equal.

    Raises:
        UserError: bad data or settings, or a folder that belongs to another ledger.
    """
    data = load_data(config)
    keep_ledger(workdir, data.ledger)
    plan = loop.Plan.of(config, len(data.train))
    num_classes = data.train.num_classes
    program = loop.build(config, plan, mesh, num_classes=num_classes)
    evaluators = {"validation": classifier(config, program, mesh, data.validation)}
    meta = {"config": settings.to_json(config), "ledger": data.ledger.to_dict(), "num_classes": num_classes}
    checkpoints = checkpoint.Checkpoints(
        workdir / "checkpoints",
        every=plan.every(config.runtime.save_every),
        keep=config.runtime.keep,
        keep_every=plan.every(config.runtime.keep_every) if config.runtime.keep_every else 0,
        meta=meta | {"environment": runtime.environment()},
    )
    try:
        state = loop.train(
            config,
            program,
            plan,
            mesh,
            batches=partial(batches, config, mesh, data.train),
            evaluators=evaluators,
            checkpoints=checkpoints,
            metrics=lambda step: log.Metrics(
                workdir, step=step, steps=plan.steps, batch=config.train.batch, label=workdir.name,
                active=jax.process_index() == 0,
            ),
        )  # fmt: skip
    finally:
        checkpoints.close()
    rows = list(final_rows(config, program, mesh, data, state, evaluators, run=workdir.name))
    model = runtime.fetch({"params": state.params, "model_state": state.model_state, "ema": state.ema}, mesh)
    if jax.process_index() == 0:
        log.write_rows(workdir, "pretrain", rows)
    return checkpoint.digest(model)


def check(config: ConfigDict, mesh: Mesh) -> None:
    runtime.check_batch(config.train.batch, mesh, "train.batch")


def intact(workdir: Path) -> bool:
    """Whether the checkpoint that the rows speak of is there."""
    steps = {row.step for row in log.read_rows(workdir) if row.stage == "pretrain"}
    return steps <= set(checkpoint.steps(workdir / "checkpoints"))


def forget(workdir: Path) -> None:
    for name in ("checkpoints", "tensorboard"):
        if (workdir / name).exists():
            shutil.rmtree(workdir / name)
    for name in ("noise.json", "metrics.jsonl"):
        (workdir / name).unlink(missing_ok=True)


def load_data(config: ConfigDict) -> Data:
    """The training split with its noise laid over it, the clean validation split, and the ledger.

    Record i of the training split is what `id == i` means everywhere: after the selection of classes and after
    validation is cut off.
    """
    source = sources.load(config.data, config.data.train)
    if config.data.validation_split:
        train, validation = source, sources.load(config.data, config.data.validation_split)
    elif config.data.validation:
        train, validation = sources.split_validation(source, config.data.validation)
    else:
        raise errors.UserError("there is nothing to validate on", "set data.validation_split, or data.validation > 0")
    if config.data.size is not None and config.data.size != len(train):
        raise errors.UserError(
            f"data.size={config.data.size}, but the training split has {len(train)} records",
            f"set --config.data.size={len(train)}, or check the dataset",
        )
    noisy, ledger = corrupt(config, train)
    return Data(sources.NoisyLabels(train, noisy), validation, ledger)


def corrupt(config: ConfigDict, train: sources.Source) -> tuple[np.ndarray, noise.Ledger]:
    """Noisy labels of a source, and their ledger, from the `noise*` keys of the config."""
    fixed = config.noise_kind in ("matrix", "labels")
    if fixed and config.noise:
        raise errors.UserError(
            f"noise_kind={config.noise_kind} fixes its own rate, but noise={config.noise}", "leave noise at 0"
        )
    given: dict[str, Any] = {} if fixed else {"rate": config.noise}
    if fixed:
        given["matrix" if config.noise_kind == "matrix" else "noisy"] = read_noise_file(config, train)
    if config.noise_kind == "asymmetric":
        given |= {"classes": config.noise_classes, "rate_of": config.noise_rate_of}
    common = {"num_classes": train.num_classes, "kind": config.noise_kind, "seed": config.noise_seed}
    noisy = noise.corrupt_labels(train.labels, **common, **given)
    return noisy, noise.Ledger.of_labels(train.labels, noisy, asked=None if fixed else config.noise, **common)


def read_noise_file(config: ConfigDict, train: sources.Source) -> np.ndarray:
    """The array in `noise_file`: a K×K matrix, or noisy labels aligned with the records of `train`.

    A .csv of key,label aligns by the source keys. A .npy holds one label per record of the training split, in order.
    """
    path, kind = Path(config.noise_file), config.noise_kind
    cure = "give --config.noise_file=FILE.npy" + (", or a .csv of key,label" if kind == "labels" else " of shape K×K")
    if not path.is_file():
        raise errors.UserError(f"noise_kind={kind} needs noise_file, and {str(path)!r} is no file", cure)
    if path.suffix == ".csv" and kind == "labels":
        return sources.align_by_key(path, train)
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise errors.UserError(f"noise_file={path} is no .npy array: {e}", cure) from e


def keep_ledger(workdir: Path, ledger: noise.Ledger) -> None:
    """Put the ledger on record, or prove that it is the one on record.

    Raises:
        UserError: the folder's ledger is another one: its data or noise have changed.
    """
    path = workdir / "noise.json"
    if path.exists():
        ledger.check_same(noise.Ledger.read(path), str(path))
    elif jax.process_index() == 0:
        with errors.storage(path):
            log.write_json(path, ledger.to_dict())


def reading(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """What training and evaluation tell the pipeline alike: how images are made, which rows are this process's."""
    block, blocks = runtime.rows_of_process(mesh)
    return {
        "augment": config.augment,
        "image_size": config.data.image_size,
        "mean": config.model.mean,
        "std": config.model.std,
        "process_index": block,
        "process_count": blocks,
        "threads": config.runtime.threads,
        "prefetch": config.runtime.prefetch,
    }


def batches(config: ConfigDict, mesh: Mesh, source: sources.Source, start_step: int) -> Iterator[Any]:
    """Training batches from `start_step` on; this process's rows of them."""
    return pipeline.train(
        source,
        batch=config.train.batch,
        seed=config.seed,
        start_step=start_step,
        **reading(config, mesh),
    )


def evaluation_batches(
    config: ConfigDict, mesh: Mesh, source: sources.Source, *, batch: int, **drawn: Any
) -> Iterator[pipeline.Batch]:
    """All of `source` once, in order; this process's rows. `drawn`: shift, view and seed of `pipeline.evaluate`."""
    return pipeline.evaluate(
        source,
        batch=batch,
        **reading(config, mesh),
        **drawn,
    )


def classifier(config: ConfigDict, program: loop.Program, mesh: Mesh, source: sources.Source) -> Classification:
    """An evaluator on all of `source`, against its clean labels."""
    test = partial(evaluation_batches, config, mesh, source, batch=config.train.batch)
    return Classification(
        program.model.apply,
        test,
        num_classes=source.num_classes,
        put=runtime.put_batch(mesh),
        fetch=partial(runtime.fetch, mesh=mesh),
    )


def final_rows(
    config: ConfigDict,
    program: loop.Program,
    mesh: Mesh,
    data: Data,
    state: TrainState,
    evaluators: dict[str, Classification],
    *,
    run: str,
) -> Iterator[log.Row]:
    """Clean validation scores of the final weights, and how much of the noise they have learned by heart."""
    wrong = np.flatnonzero(data.train.labels != data.train.labels_clean)
    if len(wrong) > FIT_RECORDS:  # evenly, as sources are often sorted by class
        wrong = wrong[np.linspace(0, len(wrong) - 1, FIT_RECORDS).astype(int)]
    if len(wrong):
        evaluators = evaluators | {"train": classifier(config, program, mesh, sources.Subset(data.train, wrong))}
    for name, value in loop.run_all(evaluators, state):
        split, metric = name.split("/")
        weights = "ema" if split.endswith("_ema") else "raw"
        split = split.removesuffix("_ema")
        if (split == "train") != (metric == "noisy_fit"):
            continue
        yield log.Row(
            **provenance(config, data.ledger, run=run, step=int(state.step), weights=weights),
            stage="pretrain",
            metric=metric,
            value=value,
            task="pretrain",
            split=split,
            domain="id",
            n_train=len(data.train),
            n_test=len(wrong) if split == "train" else len(data.validation),
        )


def provenance(config: ConfigDict, ledger: noise.Ledger | None, *, run: str, step: int, weights: str) -> dict[str, Any]:
    """The fields of a row that say how the encoder came about. Without a ledger: weights from elsewhere."""
    return {
        "run": run,
        "step": step,
        "weights": weights,
        "noise_kind": ledger.kind if ledger else "unknown",
        "noise_asked": ledger.asked if ledger else None,
        "noise_realised": ledger.realised if ledger else None,
        "noise_seed": config.noise_seed,
        "seed": config.seed,
        "objective": config.objective.name,
        "model": config.model.name,
    }
