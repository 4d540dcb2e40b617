"""The table of a head's terms, whose numbers can vary without another compilation."""

from types import ModuleType
from typing import Any, NamedTuple

import jax

from nml_jax.objectives import fgs, lgm, nmtune, skd
from nml_jax.objectives.step import Step

# name -> module with `Weights`, a NamedTuple of numbers and forms, and `penalty(step, form, weights)`.
TERMS: dict[str, ModuleType] = {"nmtune": nmtune, "skd": skd, "fgs": fgs, "lgm": lgm}


class Terms(NamedTuple):
    """The static part of terms: a name in TERMS, and its Weights with 1.0 or 0.0 for every float.

    The program leaves out a float that is 0. The others are traced, so that a sweep over them compiles once.
    """

    name: str
    form: Any

    def penalty(self, step: Step, numbers: dict[str, jax.Array]) -> jax.Array:
        """Return the sum of the terms, float32 []; `numbers` come from `split`."""
        return TERMS[self.name].penalty(step, self.form, self.form._replace(**numbers))


def split(name: str, weights: Any) -> tuple[Terms, dict[str, float]]:
    """Split weights into their static part and the numbers that are traced.

    Args:
        name: a key of TERMS.
        weights: its Weights, checked.
    """
    fields = type(weights).__annotations__.items()
    numbers = {field: float(getattr(weights, field)) for field, kind in fields if kind is float}
    form = weights._replace(**{field: float(value != 0) for field, value in numbers.items()})
    return Terms(name, form), numbers


def make_weights(name: str, **overrides: Any) -> Any:
    """Make the Weights of a key of TERMS, with the overrides that are not None.

    Raises:
        UserError: there is no such field, or its value is out of range.
    """
    return nmtune.replace_weights(TERMS[name].Weights(), **overrides)
