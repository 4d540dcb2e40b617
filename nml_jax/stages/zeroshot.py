"""Score frozen towers, or a classifier as it is, on the downstream tasks, without training -> rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import errors, runtime, settings
from nml_jax.assembly import agreement, encoder, evaluators, own_classes
from nml_jax.data import sources
from nml_jax.data.sources.source import Source
from nml_jax.processes import peers
from nml_jax.runs.rows import Row, write_rows
from nml_jax.stages.stage import Outputs, Stage
from nml_jax.tasks.classification import check_tasks, choose_dataset_name

METHOD = "zero-shot"


def run(config: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Classify every test split by its class names, and retrieve in the splits with captions.

    A model without a text tower classifies by its own head.

    Returns:
        The digest of the rows.

    Raises:
        UserError: there is no encoder, a checkpoint is damaged, a dataset is missing, or prompts do not fit a task.
    """
    if encoder.has_text(config):
        frozen = encoder.load(config, workdir, mesh)
        scores = list(score_task(config, frozen, mesh))
    else:
        frozen, scores = own_classes.score_tasks(config, workdir, mesh)
        scores = [{**fields, "method": METHOD} for fields in scores]
    weights = config.extract.weights
    origin = encoder.describe_origin(config, frozen.ledger, run=workdir.name, step=frozen.step, weights=weights)
    rows = [Row(**origin, stage="zeroshot", **fields) for fields in scores]
    if jax.process_index() == 0:
        with errors.report_disk_errors(workdir):
            write_rows(workdir, "zeroshot", rows)
    return settings.hash_json([[row.metric, row.task, row.split, row.value] for row in rows])


def score_task(config: ConfigDict, frozen: encoder.Encoder, mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Yield the fields of the row of every score."""
    tokenizer, model, batch = encoder.load_tokenizer(config), frozen.model, config.extract.batch
    weights = frozen.params, frozen.model_state
    for name in config.downstream.tasks:
        task, classes = agreement.open_task(name, config), None
        for test in task.tests:
            evaluator = evaluators.build_zero_shot(config, model, mesh, task, test, tokenizer, batch=batch)
            where = {"task": name, "split": test.split, "domain": test.domain, "n_test": len(test.source)}
            with peers.track(test.split):
                classes = evaluator.embed_classes(*weights) if classes is None else classes
                scored = list(evaluator.run(*weights, classes))
            yield from ({**where, "method": METHOD, "metric": metric, "value": value} for metric, value in scored)
    dataset = choose_dataset_name("directory", config)
    for split in config.zeroshot.retrieval:
        source = load_retrieval_source(config, split)
        evaluator = evaluators.build_retrieval(config, model, mesh, source, tokenizer, batch=batch)
        domain = "ood" if split in config.downstream.ood else "id"
        with peers.track(split):
            scored = list(evaluator.run(*weights))
        for metric, value in scored:
            where = {"task": "pretrain", "split": f"{dataset}/{split}", "domain": domain}
            yield {**where, "metric": metric, "value": value, "n_test": evaluators.count_classes(source, metric)}


def load_retrieval_source(config: ConfigDict, split: str) -> Source:
    """Load a split with captions from the directory of the downstream tasks."""
    path = config.downstream.path or config.data.path
    return sources.load("directory", path, split, captions=True)


def check(config: ConfigDict, mesh: Mesh, *, data: bool = True) -> None:
    """Check the batch, the tasks, the text tower and the splits to retrieve in."""
    runtime.check_batch(config.extract.batch, mesh, "extract.batch")
    check_tasks(config, data=data)
    if not encoder.has_text(config):
        if config.zeroshot.retrieval:
            cause = f"zeroshot.retrieval needs a text tower, and model.name={config.model.name} has none"
            raise errors.UserError(cause, "leave it out, or choose a model such as clip")
        return
    cure = "leave it out of stages, or choose a model such as clip"
    evaluators.check_described(config, "the stage zeroshot", cure, data=data)
    for split in config.zeroshot.retrieval if data else ():
        load_retrieval_source(config, split)


STAGE = Stage(
    name="zeroshot",
    version=1,
    keys=("seed", "init_from", "data", "augment", "model", "downstream", "extract", "zeroshot"),
    upstream=("pretrain",),
    outputs=Outputs(),  # rows alone
    check=check,
    run=run,
    encoded=lambda config: True,
)
