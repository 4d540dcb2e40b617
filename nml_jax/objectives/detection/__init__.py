"""What training a detector minimises. OBJECTIVES has a row for each system of `nml_jax.models.detection`."""

from collections.abc import Callable
from typing import Any

from nml_jax.objectives.detection import faster, mask, retina, solo

OBJECTIVES: dict[str, Callable[[Any], Any]] = {
    "retina": retina.make,
    "faster": faster.make,
    "mask": mask.make,
    "solo": solo.make,
}


def make(config: Any, system: str) -> Any:
    """Make the Objective of a system, a key of OBJECTIVES, from the section `detect` of configs/common.py."""
    return OBJECTIVES[system](config)
