"""Which evaluator sees which data: built here from a config, for the stages and for pre-training on its way."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import runtime
from nml_jax.assembly import encoder
from nml_jax.data.sources.source import Source, Subset
from nml_jax.data.stream import pipeline
from nml_jax.errors import UserError
from nml_jax.evals import EVALUATORS
from nml_jax.evals.zeroshot import ZeroShot
from nml_jax.models import Model
from nml_jax.processes import peers
from nml_jax.tasks import prompts
from nml_jax.tasks.classification import Task, Test, choose_dataset_name, load_task
from nml_jax.training.loop import Evaluator

ON_THE_WAY = ("spectrum", "zeroshot")  # what runtime.evaluators may name
PROBE = 256  # images whose spectrum is followed


def reading_options(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """What training and evaluation tell the pipeline alike: how images are made, which rows are this process's."""
    return {
        "augment": config.augment,
        "image_size": config.data.image_size,
        "mean": config.model.mean,
        "std": config.model.std,
        "threads": config.runtime.threads,
        "prefetch": config.runtime.prefetch,
        **_rows(mesh),
    }


def read_images(
    config: ConfigDict, mesh: Mesh, source: Source, *, batch: int, **drawn: Any
) -> Iterator[pipeline.Batch]:
    """All of `source` once, in order; this process's rows. `drawn`: see `pipeline.evaluate`."""
    return _counted(pipeline.evaluate(source, batch=batch, **reading_options(config, mesh), **drawn), "images")


def read_texts(config: ConfigDict, mesh: Mesh, captions: Any, tokenize: Any, *, batch: int) -> Iterator[pipeline.Batch]:
    """All captions once, in order; this process's rows."""
    return _counted(pipeline.read_texts(captions, tokenize, batch=batch, **_rows(mesh)), "texts")


def _counted(batches: Iterator[pipeline.Batch], what: str) -> Iterator[pipeline.Batch]:
    """The batches; a process that does not come to its next one is told of."""
    done = 0
    with peers.track(lambda: f"batch {done} of {what}"):
        for batch in batches:
            done += 1
            yield batch


def build_validation(config: ConfigDict, model: Model, mesh: Mesh, source: Source, tokenize: Any) -> Evaluator:
    """Of the clean validation split: classification, or retrieval where it has captions."""
    if len(source.labels):
        return build_classification(config, model, mesh, source)
    return build_retrieval(config, model, mesh, source, tokenize, batch=config.train.batch)


def build_classification(config: ConfigDict, model: Model, mesh: Mesh, source: Source) -> Evaluator:
    """The model's own classes, on all of `source`, against its clean labels."""
    test = partial(read_images, config, mesh, source, batch=config.train.batch)
    return EVALUATORS["classification"](model.apply, test, num_classes=source.num_classes, **_placing(mesh))


def build_fit(config: ConfigDict, model: Model, mesh: Mesh, source: Source, tokenize: Any) -> Evaluator:
    """How much of the noise was learned by heart, on records whose supervision is wrong."""
    if len(source.labels):
        return build_classification(config, model, mesh, source)
    test = partial(read_images, config, mesh, source, batch=config.train.batch, tokenize=tokenize)
    return EVALUATORS["caption_fit"](model.apply, test, **_placing(mesh))


def build_retrieval(
    config: ConfigDict, model: Model, mesh: Mesh, source: Source, tokenize: Any, *, batch: int
) -> Evaluator:
    """Image→text and text→image on all of `source`, with its clean captions."""
    test = partial(read_images, config, mesh, source, batch=batch)
    captions = partial(read_texts, config, mesh, source.captions_clean, tokenize, batch=batch)
    return EVALUATORS["retrieval"](model.apply, test, captions, mesh=mesh, **_placing(mesh))


def read_descriptions(config: ConfigDict, name: str, class_names: Sequence[str] | None) -> list[list[str]]:
    """For every class of a task the texts that describe it.

    Args:
        class_names: the dataset's own; None where they are not known yet: the files are read, and there are no texts.

    Raises:
        UserError: a file of names or prompts is missing, is none, or does not fit the task.
    """
    dataset = choose_dataset_name(name, config)
    templates = prompts.read_templates(config.zeroshot.templates, dataset)
    if class_names is None:
        return []
    return prompts.fill_templates(
        prompts.read_class_names(config.zeroshot.class_names, dataset, class_names), templates
    )


def check_described(config: ConfigDict, what: str, cure: str, *, data: bool) -> None:
    """That the model has a text tower, and every downstream task names and prompts for it; with `data` by reading them.

    Raises:
        UserError: `what` needs what is missing; see `described`.
    """
    if not encoder.has_text(config):
        raise UserError(f"{what} needs a text tower, and model.name={config.model.name} has none", cure)
    for name in config.downstream.tasks:
        read_descriptions(config, name, load_task(name, config).train.class_names if data else None)
    if data:
        encoder.load_tokenizer(config)


def build_zero_shot(
    config: ConfigDict, model: Model, mesh: Mesh, task: Task, test: Test, tokenize: Any, *, batch: int
) -> ZeroShot:
    """A test split of a task, classified by the names of the task's classes. Frames of videos count one by one."""
    drawn = {"shift": test.shift, "seed": config.seed}
    return ZeroShot(
        model.apply,
        partial(read_images, config, mesh, test.source, batch=batch, **drawn),
        partial(
            read_texts,
            config,
            mesh,
            read_descriptions(config, task.name, task.train.class_names),
            tokenize,
            batch=batch,
        ),
        num_classes=task.num_classes,
        class_map=test.class_map,
        **_placing(mesh),
    )


def build_spectrum(config: ConfigDict, model: Model, mesh: Mesh, source: Source) -> Evaluator:
    """Of the features of PROBE images of `source`, evenly spread.

    It costs less than 1 % of training where at least 30 times as many images are trained on between two times.
    """
    n = min(PROBE, len(source))
    probe = Subset(source, [i * len(source) // n for i in range(n)])
    test = partial(read_images, config, mesh, probe, batch=config.train.batch)
    return EVALUATORS["spectrum"](model.apply, test, **_placing(mesh))


def during_training(
    config: ConfigDict, model: Model, mesh: Mesh, source: Source, tokenize: Any
) -> dict[str, Evaluator]:
    """The evaluators of `runtime.evaluators`; `source` is the validation split."""
    out: dict[str, Evaluator] = {}
    if "spectrum" in config.runtime.evaluators:
        out["probe"] = build_spectrum(config, model, mesh, source)
    if "zeroshot" in config.runtime.evaluators:
        for name in config.downstream.tasks:
            task = load_task(name, config)
            for test in (test for test in task.tests if test.domain == "id"):
                out[f"zeroshot/{name}/{test.split}"] = build_zero_shot(
                    config, model, mesh, task, test, tokenize, batch=config.train.batch
                )
    return out


def count_classes(source: Source, metric: str) -> int:
    """Examples that a number of this metric is over: captions, where they are the queries, else images."""
    return sum(map(len, source.captions_clean)) if metric.startswith("t2i_") else len(source)


def check(config: ConfigDict, *, text: bool) -> None:
    """Refuse evaluators that do not exist, or that the model cannot serve.

    Args:
        text: whether the model encodes captions.
    """
    for name in config.runtime.evaluators:
        if name not in ON_THE_WAY:
            raise UserError(f"runtime.evaluators: no {name!r}", f"it takes {', '.join(ON_THE_WAY)}")
    if "zeroshot" in config.runtime.evaluators and not text:
        raise UserError(
            f"runtime.evaluators: zeroshot needs a text tower, and model.name={config.model.name} has none",
            "leave it out, or choose a model such as clip",
        )


def _rows(mesh: Mesh) -> dict[str, int]:
    block, blocks = runtime.find_process_block(mesh)
    return {"process_index": block, "process_count": blocks}


def _placing(mesh: Mesh) -> dict[str, Any]:
    return {"put": runtime.put_batch(mesh), "fetch": partial(runtime.fetch, mesh=mesh)}
