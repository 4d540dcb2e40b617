"""Frozen image and text towers over the downstream tasks, without training anything -> rows."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import errors, log, processes, runtime, settings
from nml_jax.data import sources, tasks
from nml_jax.stages import encoder, evaluation

VERSION = 1
KEYS = ("seed", "init_from", "data", "augment", "model", "downstream", "extract", "zeroshot")
UPSTREAM = ("pretrain",)


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Classify every test split of every task by the names of its classes, and retrieve in the splits with captions.

    Returns:
        The digest of the rows.

    Raises:
        UserError: no encoder, a damaged checkpoint, a missing dataset, or prompts that do not fit a task.
    """
    frozen = encoder.load(config, workdir, mesh)
    weights = config.extract.weights
    origin = encoder.provenance(config, frozen.ledger, run=workdir.name, step=frozen.step, weights=weights)
    rows = [log.Row(**origin, stage="zeroshot", **fields) for fields in scores(config, frozen, mesh)]
    if jax.process_index() == 0:
        with errors.storage(workdir):
            log.write_rows(workdir, "zeroshot", rows)
    return settings.sha([[row.metric, row.task, row.split, row.value] for row in rows])


def scores(config: ConfigDict, frozen: encoder.Encoder, mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Every number, as the fields of its row."""
    tokenizer, model, batch = encoder.load_tokenizer(config), frozen.model, config.extract.batch
    weights = frozen.params, frozen.model_state
    for name in config.downstream.tasks:
        task, classes = tasks.load(name, config), None
        for test in task.tests:
            evaluator = evaluation.zero_shot(config, model, mesh, task, test, tokenizer, batch=batch)
            where = {"task": name, "split": test.split, "domain": test.domain, "n_test": len(test.source)}
            with processes.at(test.split):
                classes = evaluator.class_matrix(*weights) if classes is None else classes
                scored = list(evaluator.run(*weights, classes))
            yield from ({**where, "method": "zero-shot", "metric": metric, "value": value} for metric, value in scored)
    dataset = tasks.dataset_of("directory", config)
    for split in config.zeroshot.retrieval:
        source = retrieval_source(config, split)
        evaluator = evaluation.retrieval(config, model, mesh, source, tokenizer, batch=batch)
        domain = "ood" if split in config.downstream.ood else "id"
        with processes.at(split):
            scored = list(evaluator.run(*weights))
        for metric, value in scored:
            where = {"task": "pretrain", "split": f"{dataset}/{split}", "domain": domain}
            yield {**where, "metric": metric, "value": value, "n_test": evaluation.count(source, metric)}


def retrieval_source(config: ConfigDict, split: str) -> sources.Source:
    """A split with captions, of the directory that the downstream tasks are in."""
    path = config.downstream.path or config.data.path
    return sources.load(SimpleNamespace(source="directory", path=path, classes=()), split, captions=True)


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    runtime.check_batch(config.extract.batch, mesh, "extract.batch")
    tasks.check(config, data=data)
    cure = "leave it out of stages, or choose a model such as clip"
    evaluation.check_described(config, "the stage zeroshot", cure, data=data)
    for split in config.zeroshot.retrieval if data else ():
        retrieval_source(config, split)


def intact(workdir: Path) -> bool:
    return True  # its rows are all it leaves


def forget(workdir: Path) -> None:
    """Rows are replaced when the stage ends; there is nothing else."""
