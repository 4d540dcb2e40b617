"""What evaluators do alike: add up over the batches of a split, or collect an output of the model for all its rows."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.errors import UserError


def total(parts: Iterable[Any]) -> Any:
    """The sum of equal trees, one for each batch; it stays where they are.

    Raises:
        UserError: there is no batch.
    """
    whole = reduce(lambda a, b: b if a is None else jax.tree.map(jnp.add, a, b), parts, None)
    if whole is None:
        raise UserError("there is nothing to evaluate: the split is empty", "choose a split with examples")
    return whole


# A function of the module, so that all evaluators of one model share what is compiled.
@partial(jax.jit, static_argnames=("apply", "name"))
def get_output(
    params: Any, model_state: Any, batch: Mapping[str, jax.Array], *, apply: Callable, name: str
) -> jax.Array:
    """One output of the model in evaluation, float32 [B, D]."""
    return apply(params, model_state, batch, train=False, key=None)[0][name].astype(jnp.float32)


def collect_rows(
    parts: Iterable[tuple[jax.Array, jax.Array, jax.Array]], fetch: Callable[[Any], Any]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Of (output [B, D], value [B], mask [B]) of every batch the rows that count, in order, on the host.

    Returns:
        Outputs [N, D] and values [N]; None where there is no batch.
    """
    fetched = fetch(list(parts))
    if not fetched:
        return None
    outputs, values, mask = (np.concatenate(column) for column in zip(*fetched, strict=True))
    return outputs[mask > 0], values[mask > 0]
