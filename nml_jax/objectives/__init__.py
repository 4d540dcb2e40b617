"""What is minimised. An objective is a value that the training loop is given; OBJECTIVES is the table of them."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from nml_jax.errors import UserError
from nml_jax.objectives import supervised

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count)


class Objective(Protocol):
    """Something to minimise. It may not read `label_clean`: that is for evaluation alone."""

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """(scalar, (new_model_state, metrics)) of a global batch; metrics are (sum, count), never means."""
        ...


OBJECTIVES = {"supervised": supervised.make}


def make(config: ConfigDict, *, num_classes: int) -> Objective:
    """The objective of the section `objective` of configs/common.py.

    Raises:
        UserError: there is no objective of that name, or a value is out of range.
    """
    if config.name not in OBJECTIVES:
        raise UserError(f"there is no objective.name={config.name!r}", f"choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[config.name](config, num_classes=num_classes)
