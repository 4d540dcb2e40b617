"""Gradient accumulation that is exact for every objective, as another model with the same parameters."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from nml_jax.errors import UserError

if TYPE_CHECKING:
    from nml_jax.models import Model


def split_batches(model: "Model", n: int, *, blocks: int = 1) -> "Model":
    """`model`, whose training pass takes a batch in `n` parts, one after another, and returns the outputs of the whole.

    An objective thus sees every embedding of the batch, as the contrastive losses must, while the activations of one
    part at a time are held: the backward pass computes those of each part anew and adds up the gradients of the
    parameters. This is GradCache (arXiv 2101.06983) by rematerialisation. Part j holds the rows a·n + j, so that every
    device keeps its rows. What is drawn in part j is drawn with fold_in(key, j). BatchNorm's statistics are those of a
    part, and each part continues the running ones of the part before.

    Devices add up the gradients of every part among themselves: n reductions a step, where a batch in one part takes
    one. So take no more parts than memory asks for.

    `apply` with `train=False` is the model's own. With `train=True` its outputs are those of at most two axes: one row
    per example, or a scalar, which is the last part's. On a CPU the gradient of a convolution inside this loop is 25 to
    70 times slower than outside: there use models without convolutions, or n = 1.

    Args:
        model: any.
        n: parts; 1: `model` itself.
        blocks: equal consecutive blocks of rows in which a batch lies on the devices.

    Raises:
        UserError: n is out of range or, when a batch comes, does not divide the rows of a device.
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
    """[B, ...] -> [n, B/n, ...]: row a·n + j becomes row a of part j."""
    return jnp.swapaxes(jnp.reshape(x, (-1, n, *x.shape[1:])), 0, 1)


def _join(x: jax.Array) -> jax.Array:
    """[n, B/n, ...] -> [B, ...], as they were before `_split`; of n scalars the last."""
    return x[-1] if x.ndim == 1 else jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
