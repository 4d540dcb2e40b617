"""Exact gradient accumulation for every objective: a model whose training pass takes its batch in parts."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from nml_jax.errors import UserError

if TYPE_CHECKING:
    from nml_jax.models import Model


def split_batches(model: "Model", n: int, *, blocks: int = 1) -> "Model":
    """Return `model` with a training pass that takes the batch in `n` parts, one after another.

    The pass returns the outputs of the whole batch, so that the objective sees all its embeddings, as the contrastive
    losses must. Memory holds the activations of only one part: the backward pass recomputes those of each part and adds
    up the gradients of the parameters. This is GradCache (arXiv 2101.06983) by rematerialisation.

    Part j holds the rows a·n + j, so that every device keeps its rows, and draws with fold_in(key, j). BatchNorm uses
    the statistics of a part; each part continues the running statistics of the part before.

    Use no more parts than memory requires: the devices reduce the gradients of every part, n times a step.

    `apply` with `train=False` is the model's own. With `train=True`, its outputs are those of at most two axes: one row
    per example, or a scalar, taken from the last part. On a CPU, the gradient of a convolution inside this loop is 25
    to 70 times slower than outside. There, use models without convolutions, or n = 1.

    Args:
        model: any model.
        n: number of parts; 1 returns `model` itself.
        blocks: number of devices; each holds one of so many equal consecutive blocks of the batch's rows.

    Raises:
        UserError: n is below 1 or, in `apply`, does not divide the rows of a device.
    """
    if n < 1:
        raise UserError(f"train.micro_batches={n} is out of range", "give the number of parts, 1 or more")
    if n == 1:
        return model

    def apply(
        params: Any, model_state: Any, batch: Mapping[str, Any], *, train: bool, key: jax.Array | None
    ) -> tuple[dict[str, jax.Array], Any]:
        if not train:
            return model.apply(params, model_state, batch, train=train, key=key)
        rows = len(next(iter(batch.values()))) // blocks
        if rows % n:
            raise UserError(
                f"train.micro_batches={n} does not divide the {rows} row(s) of each device",
                "give a divisor of train.batch / devices",
            )

        @jax.checkpoint
        def part(model_state: Any, xs: Any) -> tuple[Any, dict[str, jax.Array]]:
            j, batch = xs
            part_key = None if key is None else jax.random.fold_in(key, j)
            outputs, model_state = model.apply(params, model_state, batch, train=True, key=part_key)
            return model_state, {name: x for name, x in outputs.items() if x.ndim <= 2}

        parts = {name: _split(x, n) for name, x in batch.items()}
        model_state, outputs = jax.lax.scan(part, model_state, (jnp.arange(n), parts))
        return {name: _join(x) for name, x in outputs.items()}, model_state

    return dataclasses.replace(model, apply=apply)


def _split(x: Any, n: int) -> jax.Array:
    """Split [B, ...] into [n, B/n, ...]: row a·n + j becomes row a of part j."""
    return jnp.swapaxes(jnp.reshape(x, (-1, n, *x.shape[1:])), 0, 1)


def _join(x: jax.Array) -> jax.Array:
    """Join [n, B/n, ...] to [B, ...], the inverse of `_split`; of n scalars keep the last one."""
    return x[-1] if x.ndim == 1 else jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
