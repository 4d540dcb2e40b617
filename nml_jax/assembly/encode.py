"""Run a frozen encoder over images or texts, or ask a service about texts."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import models, runtime
from nml_jax.assembly import encoder, streams
from nml_jax.assembly.embeddings import encode as remote
from nml_jax.assembly.spectra import DeviceSpectra
from nml_jax.tasks.task import Test

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
    """Yield blocks of features float32 [n, D], labels and ids in source order, without padding.

    Args:
        spectra: to be given the features before they leave their devices.
    """
    if encoder.is_remote(config):
        return remote.encode(config, test.source, test.split)
    put, drawn = runtime.put_batch(mesh), {"shift": test.shift, "view": view, "seed": config.seed}
    batches = streams.read_records(config, mesh, frozen.model, test.source, batch=config.extract.batch, **drawn)

    def encode_batches() -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            placed = put(batch)
            features = encode(frozen.params, frozen.model_state, {name: placed[name] for name in frozen.model.inputs})
            rest = runtime.fetch({k: placed[k] for k in ("label", "id", "mask")}, mesh)
            real = rest.pop("mask") > 0
            if spectra:
                spectra.add(features, real)
            yield {k: v[real] for k, v in (jax.device_get(features) | rest).items()}

    return streams.restore_order(encode_batches())
