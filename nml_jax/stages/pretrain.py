"""Noisy data + objective -> checkpoint."""

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import errors, log, models, noise, objectives, runtime, settings
from nml_jax.data import pipeline, sources
from nml_jax.data import tokenizer as tokenizers
from nml_jax.data.captions import Captions
from nml_jax.data.texts import join
from nml_jax.data.tokenizer import Tokenizer
from nml_jax.stages import encoder, evaluation
from nml_jax.stages.encoder import provenance
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
    train: sources.Source  # with noisy supervision
    validation: sources.Source  # clean
    ledger: noise.Ledger
    tokenizer: Tokenizer | None  # of captions


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
    seen = config, program.model, mesh, data.validation, data.tokenizer
    evaluators = {"validation": evaluation.validation(*seen)}
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
            batches=partial(batches, config, mesh, data),
            evaluators=evaluators | evaluation.on_the_way(*seen),
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
    captions = objectives.reads_captions(config.objective)
    has_text = encoder.has_text(config)
    evaluation.check(config, text=has_text)
    if captions and not has_text:
        raise errors.UserError(
            f"objective.name={config.objective.name} needs a text tower, and model.name={config.model.name} has none",
            f"choose a model such as {', '.join(name for name in models.MODELS if name.startswith('clip'))}",
        )
    if has_text and not captions:
        raise errors.UserError(
            f"objective.name={config.objective.name} learns from labels, for which model.name={config.model.name} "
            "has no head",
            "set objective.name=clip, or choose a model of images",
        )
    if captions != (config.noise_kind == "caption_swap"):
        kinds = ["caption_swap"] if captions else [*noise.KINDS]
        raise errors.UserError(
            f"noise_kind={config.noise_kind} is not for objective.name={config.objective.name}, "
            f"which learns from {'captions' if captions else 'labels'}",
            f"set --config.noise_kind to {' or '.join(kinds)}",
        )


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
    validation is cut off; a mixture is one dataset after another.
    """
    data, captions = config.data, objectives.reads_captions(config.objective)
    if not (data.validation_split or data.validation):
        raise errors.UserError("there is nothing to validate on", "set data.validation_split, or data.validation > 0")
    parts = [_split(config, path, captions) for path in data.mixture or (data.path,)]
    train, validation = (s[0] if len(s) == 1 else sources.Mixture(s) for s in zip(*parts, strict=True))
    if data.size is not None and data.size != len(train):
        raise errors.UserError(
            f"data.size={data.size}, but the training split has {len(train)} records",
            f"set --config.data.size={len(train)}, or check the dataset",
        )
    if not captions:
        noisy, ledger = corrupt(config, train)
        return Data(sources.NoisyLabels(train, noisy), validation, ledger, None)
    swap = noise.CaptionSwap(n=len(train), rate=config.noise, seed=config.noise_seed)
    return Data(
        sources.SwappedCaptions(train, swap), validation, caption_ledger(train.captions, swap), load_tokenizer(config)
    )


def _split(config: ConfigDict, path: str, captions: bool) -> tuple[sources.Source, sources.Source]:
    """(train, validation) of one dataset."""
    data = SimpleNamespace(**{**config.data.to_dict(), "path": path})
    source = sources.load(data, data.train, captions=captions)
    if data.validation_split:
        return source, sources.load(data, data.validation_split, captions=captions)
    return sources.split_validation(source, data.validation)


def load_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of `data.tokenizer`.

    Raises:
        UserError: no such file, or another vocabulary than the model's.
    """
    tokenizer = tokenizers.load(config.data.tokenizer, config.model.text_context)
    tokenizers.check(tokenizer, config.model.text_vocab)
    return tokenizer


def caption_ledger(captions: Captions, swap: noise.CaptionSwap) -> noise.Ledger:
    """The ledger of a swap, with the number of records whose captions it leaves as they were, being the same texts."""
    swapped = swap.swapped()
    unchanged = sum(
        list(captions[i]) == list(captions[j]) for i, j in zip(swapped.tolist(), swap(swapped).tolist(), strict=True)
    )
    return noise.Ledger.of_captions(swap, map(join, captions), unchanged=unchanged)


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


def batches(config: ConfigDict, mesh: Mesh, data: Data, start_step: int) -> Iterator[Any]:
    """Training batches from `start_step` on; this process's rows of them."""
    return pipeline.train(
        data.train,
        batch=config.train.batch,
        seed=config.seed,
        tokenize=data.tokenizer,
        weights=config.data.weights,
        start_step=start_step,
        **evaluation.reading(config, mesh),
    )


def final_rows(
    config: ConfigDict,
    program: loop.Program,
    mesh: Mesh,
    data: Data,
    state: TrainState,
    evaluators: Mapping[str, loop.Evaluator],
    *,
    run: str,
) -> Iterator[log.Row]:
    """Clean validation scores of the final weights, and how much of the noise they have learned by heart."""
    wrong = wrong_records(data.train, data.ledger)
    if len(wrong) > FIT_RECORDS:  # evenly, as sources are often sorted by class
        wrong = wrong[np.linspace(0, len(wrong) - 1, FIT_RECORDS).astype(int)]
    if len(wrong):
        fit = evaluation.fit(config, program.model, mesh, sources.Subset(data.train, wrong), data.tokenizer)
        evaluators = {**evaluators, "train": fit}
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


def wrong_records(train: sources.Source, ledger: noise.Ledger) -> np.ndarray:
    """Ids of the records whose supervision is wrong, ascending."""
    if len(train.labels):
        return np.flatnonzero(train.labels != train.labels_clean)
    return np.sort(noise.CaptionSwap(n=ledger.n, rate=ledger.asked or 0.0, seed=ledger.seed).swapped())
