"""Run a frozen encoder over images or texts, or ask a service about texts."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import models, runtime
from nml_jax.assembly import encoder, evaluators
from nml_jax.assembly.embeddings import encode as remote
from nml_jax.assembly.spectra import DeviceSpectra
from nml_jax.data.text import batches as texts
from nml_jax.tasks.classification import Test

Encode = Callable[..., dict[str, jax.Array]]


@functools.lru_cache(maxsize=4)
def compile_encoder(model: models.Model, layers: tuple[str, ...], mesh: Mesh) -> Encode:
    """Compile the encoder once for a sweep: (params, model_state, batch) -> layer -> float32 [B, D], replicated."""

    def encode(params: Any, model_state: Any, batch: Any) -> dict[str, jax.Array]:
        outputs, _ = model.apply(params, model_state, batch, train=False, key=None)
        return {layer: outputs[layer].reshape(len(outputs[layer]), -1).astype("float32") for layer in layers}

    return runtime.jit(encode, mesh, out_shardings=runtime.replicated_sharding(mesh))


def encode_split(
    config: ConfigDict,
    frozen: encoder.Encoder,
    encode: Encode,
    mesh: Mesh,
    test: Test,
    view: int | None,
    *,
    spectra: DeviceSpectra | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield blocks of features float32 [B, D], labels and ids in source order, without padding.

    Args:
        spectra: to be given the features before they leave their devices.
    """
    if encoder.is_remote(config):
        yield from remote.encode(config, test.source, test.split)
        return
    if texts.has_tokens(frozen.model.spec):
        yield from _encode_texts(config, frozen, encode, mesh, test, spectra)
        return
    put, drawn = runtime.put_batch(mesh), {"shift": test.shift, "view": view, "seed": config.seed}
    batches = evaluators.read_images(config, mesh, test.source, batch=config.extract.batch, **drawn)
    for batch in batches:
        placed = put(batch)
        features = encode(frozen.params, frozen.model_state, _take_inputs(frozen, placed))
        rest = runtime.fetch({k: placed[k] for k in ("label", "id", "mask")}, mesh)
        real = rest.pop("mask") > 0
        if spectra:
            spectra.add(features, real)
        yield {k: v[real] for k, v in (jax.device_get(features) | rest).items()}


def _take_inputs(frozen: encoder.Encoder, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of the encoder in a batch."""
    return {name: batch[name] for name in encoder.choose_inputs(frozen.model)}


def _encode_texts(
    config: ConfigDict,
    frozen: encoder.Encoder,
    encode: Encode,
    mesh: Mesh,
    test: Test,
    spectra: DeviceSpectra | None,
) -> Iterator[dict[str, np.ndarray]]:
    """Do as `encode_split`, for texts: batches of similar length, whose features go back to source order."""
    put, source, size = runtime.put_batch(mesh), test.source, config.extract.batch
    table = texts.encode_texts(source, texts.load_tokenizer(config, frozen.model), test.split)
    for window in texts.read_batches(config, mesh, table, size):
        found = []
        for own, batch in window:
            features = encode(frozen.params, frozen.model_state, _take_inputs(frozen, put(batch)))
            if spectra:
                spectra.add(features, np.arange(size) < len(own))
            found.append({name: x[: len(own)] for name, x in jax.device_get(features).items()})
        rows = np.concatenate([own for own, _ in window])
        order = np.argsort(rows)
        ids = rows[order].astype(np.int32)
        whole = {name: np.concatenate([part[name] for part in found])[order] for name in found[0]}
        yield {**whole, "label": source.labels[ids], "id": ids}
