"""Read batches of what a model's spec names, images or texts, for training and in evaluation."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import runtime
from nml_jax.data.sources.source import Source
from nml_jax.data.stream import pipeline
from nml_jax.data.stream.reading import Reading
from nml_jax.data.text import batches as texts
from nml_jax.data.text import stream
from nml_jax.models import Model
from nml_jax.processes import peers


def make_reading(config: ConfigDict, mesh: Mesh) -> Reading:
    """Return how training and evaluation read images on this process."""
    return Reading(
        config.augment,
        config.data.image_size,
        config.model.mean,
        config.model.std,
        *runtime.find_process_block(mesh),
        threads=config.runtime.threads,
        prefetch=config.runtime.prefetch,
    )


def read_training(
    config: ConfigDict, mesh: Mesh, model: Model, source: Source, start_step: int, *, tokenize: Any = None, **how: Any
) -> Generator[pipeline.Portion]:
    """Yield this process's rows of the training batches, from `start_step` on, without end.

    Args:
        tokenize: of captions beside images.
        how: batch, seed and weights, as `pipeline.train` and `stream.train` take them.
    """
    if texts.has_tokens(model.spec):
        return stream.train(source, *_open_texts(config, mesh, model, source), start_step=start_step, **how)
    return pipeline.train(source, make_reading(config, mesh), tokenize=tokenize, start_step=start_step, **how)


def read_records(
    config: ConfigDict,
    mesh: Mesh,
    model: Model,
    source: Source,
    *,
    batch: int,
    tokenize: Any = None,
    **drawn: Any,
) -> Iterator[pipeline.Batch]:
    """Yield this process's rows of `source`, once. Images come in order; texts by length, see `stream.evaluate`.

    Args:
        tokenize: of captions beside images.
        drawn: shift, view and seed of images, as `pipeline.evaluate` takes them.
    """
    if texts.has_tokens(model.spec):
        return track_batches(stream.evaluate(source, *_open_texts(config, mesh, model, source), batch=batch), "texts")
    found = pipeline.evaluate(source, make_reading(config, mesh), batch=batch, tokenize=tokenize, **drawn)
    return track_batches(found, "images")


def _open_texts(config: ConfigDict, mesh: Mesh, model: Model, source: Source) -> tuple[Any, stream.Layout]:
    """Return the tokens of a source, and how batches of them lie."""
    table = texts.encode_texts(source, texts.load_tokenizer(config, model))
    return table, stream.Layout(texts.list_buckets(config), *runtime.find_process_block(mesh), mesh.size)


def track_batches(batches: Iterable[pipeline.Batch], what: str) -> Iterator[pipeline.Batch]:
    """Yield the batches, and note the current one, so that a process that hangs can be reported."""
    done = 0
    with peers.track(lambda: f"batch {done} of {what}"):
        for batch in batches:
            done += 1
            yield batch


def restore_order(parts: Iterable[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of `parts` in blocks of ascending id without gaps, each as soon as its rows are there.

    Args:
        parts: arrays of n rows each, among them "id", int [n]. Together the ids are 0, 1, ... once each.
    """
    held: list[Mapping[str, np.ndarray]] = []
    seen, highest = 0, -1
    for part in parts:
        held.append(part)
        seen, highest = seen + len(part["id"]), max(highest, int(part["id"].max(initial=-1)))
        if seen == highest + 1:
            rows = np.argsort(np.concatenate([own["id"] for own in held]), kind="stable")
            yield {name: np.concatenate([own[name] for own in held])[rows] for name in part}
            held = []
