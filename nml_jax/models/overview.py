"""A table of a model's parameters, for the person at the terminal."""

import dataclasses
import math
import re
from typing import Any

import jax
from clu import parameter_overview

WHOLE = 24  # parameters up to which each has a line of its own; larger models have a line for each block
BLOCK = re.compile(r"^(.*?block\d+)(/.*)?$")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table: a parameter, or all parameters of a block."""

    name: str
    shape: str
    size: str
    sharding: str


def describe_parameters(params: Any) -> str:
    """Describe parameters as a table of name, shape, size and sharding.

    Args:
        params: nested dicts of arrays, or of shapes with shardings.
    """
    leaves = {"/".join(key.key for key in path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    groups: dict[str, list[Any]] = {}
    for name, leaf in leaves.items():
        found = BLOCK.match(name) if len(leaves) > WHOLE else None
        groups.setdefault(found[1] if found else name, []).append(leaf)
    table = parameter_overview.make_table([_make_line(name, group) for name, group in groups.items()])
    return f"{table}\n{sum(x.size for x in leaves.values()):,} parameters in {len(leaves)} arrays"


def count_features(model: Any, layer: str = "features") -> int:
    """Return the number of values of an image or text in an output of a model.

    Raises:
        KeyError: there is no such output.
    """

    def apply(params: Any, model_state: Any, inputs: Any) -> Any:
        return model.apply(params, model_state, inputs, train=False, key=None)[0][layer]

    return math.prod(jax.eval_shape(apply, *model.shapes, model.inputs).shape[1:])


def _make_line(name: str, leaves: list[Any]) -> Line:
    """Make the line of one parameter, or of the several of a block."""
    shape = f"{len(leaves)} arrays" if len(leaves) > 1 else " × ".join(map(str, leaves[0].shape)) or "a number"
    return Line(name, shape, f"{sum(math.prod(x.shape) for x in leaves):,}", _name_axes(leaves))


def _name_axes(leaves: list[Any]) -> str:
    """Name the mesh axes over which parameters are split, and how many of them."""
    axes = [_list_axes(leaf) for leaf in leaves]
    split = [own for own in axes if own]
    if not split:
        return "whole"
    names = ", ".join(sorted(set().union(*split)))
    return names if len(leaves) == 1 else f"{names}: {len(split)} of {len(leaves)}"


def _list_axes(leaf: Any) -> set[str]:
    spec = getattr(getattr(leaf, "sharding", None), "spec", ())
    parts = [part if isinstance(part, tuple) else (part,) for part in spec if part is not None]
    return {axis for part in parts for axis in part}
