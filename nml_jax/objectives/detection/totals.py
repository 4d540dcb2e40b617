"""Add up the terms of a detector's loss."""

from typing import Any

import jax
import jax.numpy as jnp

Metrics = dict[str, tuple[Any, Any]]  # name -> (sum, count)


def add_terms(terms: dict[str, jax.Array], state: Any, counts: Metrics) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Return what an Objective returns: the sum of the terms, the model's state, and each of them as a metric."""
    total = sum(terms.values(), jnp.zeros((), jnp.float32))
    metrics: Metrics = {name: (value, 1) for name, value in {"loss": total, **terms}.items()}
    return total, (state, metrics | counts)
