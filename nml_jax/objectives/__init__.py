"""What is minimised. An objective is a value that the training loop is given; OBJECTIVES is the table of them."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from nml_jax.errors import UserError
from nml_jax.objectives import contrastive, supervised

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count)


class Objective(Protocol):
    """Something to minimise. It may not read `label_clean`: that is for evaluation alone."""

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """(scalar, (new_model_state, metrics)) of a global batch; metrics are (sum, count), never means."""
        ...


# Each takes of the sizes what it needs: (config, num_classes, blocks).
OBJECTIVES: dict[str, Callable[[ConfigDict, int, int], Objective]] = {
    "supervised": lambda config, num_classes, _: supervised.make(config, num_classes=num_classes),
    "clip": lambda config, _, blocks: contrastive.make(config, blocks=blocks),
    "siglip": lambda config, _, blocks: contrastive.make(config, blocks=blocks),
}


def check_ranges(config: ConfigDict) -> None:
    """Refuse values of the section `objective` that are out of range."""
    supervised.check_ranges(config)


def make(config: ConfigDict, *, num_classes: int, blocks: int = 1) -> Objective:
    """The objective of the section `objective` of configs/common.py.

    Args:
        num_classes: of the labels, where there are any.
        blocks: equal consecutive blocks of rows in which a batch lies on the devices: the size of the mesh.

    Raises:
        UserError: there is no objective of that name, or a value is out of range.
    """
    _check(config)
    return OBJECTIVES[config.name](config, num_classes, blocks)


def uses_captions(config: ConfigDict) -> bool:
    """Whether it learns from captions, else from labels.

    Raises:
        UserError: there is no objective of that name.
    """
    _check(config)
    return config.name in contrastive.FORMS


def _check(config: ConfigDict) -> None:
    if config.name not in OBJECTIVES:
        raise UserError(f"there is no objective.name={config.name!r}", f"choose one of {', '.join(OBJECTIVES)}")
