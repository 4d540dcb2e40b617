"""Steps that evaluators share: add up over the batches of a split, or collect an output of the model for all rows."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.errors import UserError


def add_up(parts: Iterable[Any]) -> Any:
    """Add up trees of one structure, one for each batch; the sum stays on their devices.

    Raises:
        UserError: there is no batch.
    """
    whole = reduce(lambda a, b: b if a is None else jax.tree.map(jnp.add, a, b), parts, None)
    if whole is None:
        raise UserError("there is nothing to evaluate: the split is empty", "choose a split with examples")
    return whole


# A module function, so that all evaluators of one model share its compiled program.
@partial(jax.jit, static_argnames=("apply", "name"))
def get_output(
    params: Any, model_state: Any, batch: Mapping[str, jax.Array], *, apply: Callable, name: str
) -> jax.Array:
    """Return one output of the model in evaluation, float32 [B, D]."""
    return apply(params, model_state, batch, train=False, key=None)[0][name].astype(jnp.float32)


def collect_rows(
    parts: Iterable[tuple[jax.Array, jax.Array, jax.Array]], fetch: Callable[[Any], Any]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Collect the rows that count on the host, in order.

    Args:
        parts: (output [B, D], value [B], mask [B]) of every batch.
        fetch: global arrays -> NumPy.

    Returns:
        Outputs [N, D] and values [N]; None if there is no batch.
    """
    fetched = fetch(list(parts))
    if not fetched:
        return None
    outputs, values, mask = (np.concatenate(column) for column in zip(*fetched, strict=True))
    return outputs[mask > 0], values[mask > 0]
