"""Build evaluators with their data from a config, for the stages and for use during training."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import runtime
from nml_jax.assembly import encoder, streams
from nml_jax.data.sources.source import Source, Subset
from nml_jax.data.stream import pipeline
from nml_jax.data.text import batches as texts
from nml_jax.errors import UserError
from nml_jax.evals import EVALUATORS
from nml_jax.evals.zeroshot import ZeroShot
from nml_jax.models import Model
from nml_jax.tasks import prompts
from nml_jax.tasks.classification import choose_dataset_name, has_texts, load_task
from nml_jax.tasks.task import Task, Test
from nml_jax.training.loop import Evaluator

TRAINING_EVALUATORS = ("spectrum", "zeroshot")  # what runtime.evaluators may name
PROBE = 256  # number of records whose spectrum is measured


def read_texts(config: ConfigDict, mesh: Mesh, captions: Any, tokenize: Any, *, batch: int) -> Iterator[pipeline.Batch]:
    """Yield this process's rows of the captions, once and in order."""
    block, blocks = runtime.find_process_block(mesh)
    found = pipeline.read_texts(captions, tokenize, batch=batch, block=block, blocks=blocks)
    return streams.track_batches(found, "texts")


def build_validation(config: ConfigDict, model: Model, mesh: Mesh, source: Source, tokenize: Any) -> Evaluator:
    """Build the evaluator of the clean validation split: classification, or retrieval if it has captions."""
    if len(source.labels):
        return build_classification(config, model, mesh, source)
    return build_retrieval(config, model, mesh, source, tokenize, batch=config.train.batch)


def build_classification(config: ConfigDict, model: Model, mesh: Mesh, source: Source) -> Evaluator:
    """Build the evaluator that compares the model's classes on all of `source` with the clean labels."""
    test = partial(streams.read_records, config, mesh, model, source, batch=config.train.batch)
    return EVALUATORS["classification"](model.apply, test, num_classes=source.num_classes, **_make_transfers(mesh))


def build_fit(config: ConfigDict, model: Model, mesh: Mesh, source: Source, tokenize: Any) -> Evaluator:
    """Build the evaluator that measures how much noise was memorised, on records with wrong supervision."""
    if len(source.labels):
        return build_classification(config, model, mesh, source)
    test = partial(streams.read_records, config, mesh, model, source, batch=config.train.batch, tokenize=tokenize)
    return EVALUATORS["caption_fit"](model.apply, test, **_make_transfers(mesh))


def build_retrieval(
    config: ConfigDict, model: Model, mesh: Mesh, source: Source, tokenize: Any, *, batch: int
) -> Evaluator:
    """Build image→text and text→image retrieval on all of `source`, with its clean captions."""
    test = partial(streams.read_records, config, mesh, model, source, batch=batch)
    captions = partial(read_texts, config, mesh, source.captions_clean, tokenize, batch=batch)
    return EVALUATORS["retrieval"](model.apply, test, captions, mesh=mesh, **_make_transfers(mesh))


def read_descriptions(config: ConfigDict, name: str, class_names: Sequence[str] | None) -> list[list[str]]:
    """Return the texts that describe each class of a task.

    Args:
        class_names: of the dataset. If None, they are not known yet: check the template file and return no texts.

    Raises:
        UserError: a file of names or prompts is missing, damaged, or does not fit the task.
    """
    dataset = choose_dataset_name(name, config)
    templates = prompts.read_templates(config.zeroshot.templates, dataset)
    if class_names is None:
        return []
    return prompts.fill_templates(
        prompts.read_class_names(config.zeroshot.class_names, dataset, class_names), templates
    )


def check_described(config: ConfigDict, what: str, cure: str, *, data: bool) -> None:
    """Check that the model has a text tower, and that every downstream task has class names and prompts.

    Args:
        what: the stage or setting that needs them.
        cure: what the user can do if there is no text tower.
        data: also read the datasets and the tokenizer.

    Raises:
        UserError: one of them is missing; see `read_descriptions`.
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
    """Build the evaluator that classifies a test split by class names. Each video frame counts on its own."""
    drawn = {"shift": test.shift, "seed": config.seed}
    return ZeroShot(
        model.apply,
        partial(streams.read_records, config, mesh, model, test.source, batch=batch, **drawn),
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
        **_make_transfers(mesh),
    )


def build_spectrum(config: ConfigDict, model: Model, mesh: Mesh, source: Source) -> Evaluator:
    """Build the evaluator of the feature spectrum of PROBE images or texts, spread evenly over `source`.

    It costs less than 1 % of training if there are at least 30 times PROBE training records between two evaluations.
    """
    n = min(PROBE, len(source))
    probe = Subset(source, [i * len(source) // n for i in range(n)])
    test = partial(streams.read_records, config, mesh, model, probe, batch=config.train.batch)
    return EVALUATORS["spectrum"](model.apply, test, **_make_transfers(mesh))


def during_training(
    config: ConfigDict, model: Model, mesh: Mesh, source: Source, tokenize: Any
) -> dict[str, Evaluator]:
    """Build the evaluators that `runtime.evaluators` names; `source` is the validation split."""
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


def check_inputs(config: ConfigDict) -> None:
    """Check that the downstream tasks are of texts for an encoder of texts, else of images.

    A text encoder of ours must have a tokenizer that fits.

    Raises:
        UserError: they are not.
    """
    model = encoder.build(config, num_classes=config.data.num_classes or 1)
    reads = "image" not in model.spec
    if wrong := [name for name in config.downstream.tasks if has_texts(name) != reads]:
        raise UserError(
            f"model.name={config.model.name} reads {'texts' if reads else 'images'}, and the downstream task is "
            f"{wrong[0]!r}",
            "give --config=configs/text.py:FOLDER for texts, and an image encoder for images",
        )
    if reads and config.extract.views > 1:
        raise UserError(f"extract.views={config.extract.views}, but texts have one view", "set it to 1")
    if texts.has_tokens(model.spec):
        texts.load_tokenizer(config, model)


def count_classes(source: Source, metric: str) -> int:
    """Return how many examples a metric averages over: captions if they are the queries, else images."""
    return sum(map(len, source.captions_clean)) if metric.startswith("t2i_") else len(source)


def check(config: ConfigDict, *, text: bool) -> None:
    """Check `runtime.evaluators`.

    Args:
        text: whether the model encodes captions.

    Raises:
        UserError: an evaluator does not exist, or the model does not support it.
    """
    for name in config.runtime.evaluators:
        if name not in TRAINING_EVALUATORS:
            raise UserError(
                f"runtime.evaluators: unknown evaluator {name!r}", f"choose from {', '.join(TRAINING_EVALUATORS)}"
            )
    if "zeroshot" in config.runtime.evaluators and not text:
        raise UserError(
            f"runtime.evaluators: zeroshot needs a text tower, and model.name={config.model.name} has none",
            "leave it out, or choose a model such as clip",
        )


def _make_transfers(mesh: Mesh) -> dict[str, Any]:
    """Return the functions that move batches to the mesh and results back, as keyword arguments."""
    return {"put": runtime.put_batch(mesh), "fetch": partial(runtime.fetch, mesh=mesh)}
