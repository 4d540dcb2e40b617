"""The table of a head's terms, and how the numbers in them vary without compiling anew."""

from types import ModuleType
from typing import Any, NamedTuple

import jax

from nml_jax.objectives import fgs, lgm, nmtune, skd
from nml_jax.objectives.step import Step

# name -> module with `Weights`, a NamedTuple of numbers and forms, and `penalty(step, form, weights)`.
TERMS: dict[str, ModuleType] = {"nmtune": nmtune, "skd": skd, "fgs": fgs, "lgm": lgm}


class Terms(NamedTuple):
    """Terms as a program is compiled for them: which of TERMS, and its Weights with 1.0 or 0.0 for every float.

    A float that is 0 is left out of the program; the others are traced, so that a sweep over them compiles once.
    """

    name: str
    form: Any

    def penalty(self, step: Step, numbers: dict[str, jax.Array]) -> jax.Array:
        """The sum of the terms, float32 []; `numbers` as from `split`."""
        return TERMS[self.name].penalty(step, self.form, self.form._replace(**numbers))


def split(name: str, weights: Any) -> tuple[Terms, dict[str, float]]:
    """What is compiled for and what is traced.

    Args:
        name: a key of TERMS.
        weights: its Weights, checked.
    """
    fields = type(weights).__annotations__.items()
    numbers = {field: float(getattr(weights, field)) for field, kind in fields if kind is float}
    form = weights._replace(**{field: float(value != 0) for field, value in numbers.items()})
    return Terms(name, form), numbers


def defaults(name: str, **overrides: Any) -> Any:
    """The Weights of a key of TERMS, with those overrides that are not None.

    Raises:
        UserError: there is no such number, or it is out of range.
    """
    return nmtune.replace_weights(TERMS[name].Weights(), **overrides)
