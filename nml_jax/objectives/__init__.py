"""Objectives: what training minimises. OBJECTIVES lists those of pre-training."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from nml_jax.errors import UserError
from nml_jax.objectives import contrastive, supervised

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count)


class Objective(Protocol):
    """Something to minimise. It must not read `label_clean`, which is only for evaluation."""

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return (scalar, (new_model_state, metrics)) of a global batch; metrics are (sum, count), never means."""
        ...


# Arguments: (config, num_classes, blocks).
OBJECTIVES: dict[str, Callable[[ConfigDict, int, int], Objective]] = {
    "supervised": lambda config, num_classes, _: supervised.make(config, num_classes=num_classes),
    "clip": lambda config, _, blocks: contrastive.make(config, blocks=blocks),
    "siglip": lambda config, _, blocks: contrastive.make(config, blocks=blocks),
}


def check_ranges(config: ConfigDict) -> None:
    """Refuse values of the section `objective` that are out of range."""
    supervised.check_ranges(config)


def make(config: ConfigDict, *, num_classes: int, blocks: int = 1) -> Objective:
    """Make the objective of the section `objective` of configs/common.py.

    Args:
        num_classes: number of classes, if there are labels.
        blocks: number of devices; each holds one of so many equal consecutive blocks of the batch's rows.

    Raises:
        UserError: there is no objective of that name, or a value is out of range.
    """
    _check(config)
    return OBJECTIVES[config.name](config, num_classes, blocks)


def uses_captions(config: ConfigDict) -> bool:
    """Return whether the objective learns from captions; if not, it learns from labels.

    Raises:
        UserError: there is no objective of that name.
    """
    _check(config)
    return config.name in contrastive.FORMS


def _check(config: ConfigDict) -> None:
    """Raise a UserError unless the objective is in the table."""
    if config.name not in OBJECTIVES:
        raise UserError(f"there is no objective.name={config.name!r}", f"choose one of {', '.join(OBJECTIVES)}")
