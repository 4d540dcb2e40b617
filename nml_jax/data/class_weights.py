"""Weights of classes in the loss, with the meaning that they have in scikit-learn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nml_jax.data.class_names import list_names
from nml_jax.errors import UserError

BALANCED = "balanced"


def find_class_weights(
    wanted: Any, labels: np.ndarray, names: Sequence[Any], *, what: str = "class_weight", weights: Any = None
) -> NDArray[np.float64] | None:
    """Return the weight of each class in the loss, float64 [K]; None if all are 1 because none is asked for.

    `balanced` is N / (classes with rows · rows of the class), so that all classes weigh the same. Named classes have
    the weight that is given, and the others 1. Weights are not rescaled: all of them 2 halve the penalty of a probe.

    Args:
        wanted: None or (); "balanced" or ("balanced",); a mapping of class names to weights or a tuple of such pairs;
            a tuple of K weights in the order of the classes.
        labels: class numbers of the training rows, int [N].
        names: of the K classes.
        what: the name of the argument, for messages.
        weights: of the rows, [N], by which they are counted; None: 1 each.

    Raises:
        UserError: a name is not a class, the number of weights is not K, or a weight is not a number above 0.
    """
    wanted = wanted[0] if isinstance(wanted, tuple | list) and len(wanted) == 1 else wanted
    if wanted is None or (isinstance(wanted, tuple | list | Mapping) and not len(wanted)):
        return None
    if isinstance(wanted, str):
        if wanted != BALANCED:
            raise UserError(f"{what}={wanted!r}", "give 'balanced', weights by class name, or a weight for each class")
        counts = np.bincount(labels, weights, minlength=len(names))
        return np.where(counts > 0, counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1e-300)), 1.0)
    pairs = _list_pairs(wanted)
    if pairs is None:
        values = list(wanted) if isinstance(wanted, tuple | list) else [wanted]
        if len(values) != len(names):
            shown = list_names([*map(str, names)])
            raise UserError(f"{what} has {len(values)} weights for {len(names)} classes", f"the classes are {shown}")
        return _check_weights(np.array(values, object), what)
    places = {str(name): i for i, name in enumerate(names)}
    if strange := [name for name, _ in pairs if str(name) not in places]:
        raise UserError(f"{what}: there is no class {strange[0]!r}", f"the classes are {list_names([*places])}")
    out = np.ones(len(names), object)
    for name, value in pairs:
        out[places[str(name)]] = value
    return _check_weights(out, what)


def _list_pairs(wanted: Any) -> list[tuple[Any, Any]] | None:
    """Return pairs of name and weight; None if `wanted` holds none."""
    if isinstance(wanted, Mapping):
        return list(wanted.items())
    pairs = isinstance(wanted, tuple | list) and all(isinstance(x, tuple | list) and len(x) == 2 for x in wanted)
    if pairs:
        return [(name, value) for name, value in wanted]
    if isinstance(wanted, tuple | list) and len(wanted) == 2 and isinstance(wanted[0], str):
        return [(wanted[0], wanted[1])]  # one pair
    return None


def _check_weights(values: np.ndarray, what: str) -> NDArray[np.float64]:
    """Return the weights, float64 [K]. Raise UserError if one is not a number above 0."""
    for value in values.tolist():
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not number or not 0 < value < np.inf:
            raise UserError(f"{what}: {value!r} is not a weight", "give numbers above 0")
    return values.astype(np.float64)
