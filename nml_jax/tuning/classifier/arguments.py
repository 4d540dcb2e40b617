"""Check the arguments of `NMTuneClassifier`, and say what they mean."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form
from nml_jax.objectives import nmtune, terms
from nml_jax.tuning import methods
from nml_jax.tuning.descent import Spec

METHODS = tuple(name for name, method in methods.METHODS.items() if not method.probe)
STARTS = (None, "probe", "fresh")
OPTIONAL = ("epochs", "batch_size", "learning_rate", "patience", "width", "C", "validation_fraction",
            "calibrate", "weights")  # may be None  # fmt: skip


class Kind(NamedTuple):
    """What an argument must be: a test, and the words for what passes it."""

    allows: Callable[[Any], Any]
    words: str


def _is_switch(value: Any) -> Any:
    return isinstance(value, bool | np.bool_)


def _is_count(value: Any) -> Any:
    return isinstance(value, int | np.integer) and not _is_switch(value) and value >= 1


def _is_number(value: Any) -> Any:
    return isinstance(value, int | float | np.integer | np.floating) and not _is_switch(value) and 0 <= value < np.inf


COUNT = Kind(_is_count, "an integer of 1 or more")
NUMBER = Kind(_is_number, "a number of 0 or more")
POSITIVE = Kind(lambda value: _is_number(value) and value > 0, "a number above 0")
SHARE = Kind(lambda value: _is_number(value) and 0 < value < 1, "a share between 0 and 1")
EXPONENT = Kind(lambda value: _is_number(value) and value <= 1, "a number from 0 to 1")
SWITCH = Kind(_is_switch, "True or False")
MAPPING = Kind(lambda value: isinstance(value, Mapping), "numbers by name, such as {'svd': 0.1}, or None")

KINDS = {
    **dict.fromkeys(("epochs", "batch_size", "patience", "depth"), COUNT),
    **dict.fromkeys(("learning_rate", "weight_decay"), NUMBER),
    **dict.fromkeys(("width", "C"), POSITIVE),
    **dict.fromkeys(
        ("standardize", "early_stopping", "residual", "warm_start", "compute_spectrum", "calibrate"), SWITCH
    ),
    "validation_fraction": SHARE,
    "gce_q": EXPONENT,
    "weights": MAPPING,
}


def check_arguments(asked: Any) -> tuple[Callable[[int, int], Spec], dict[str, float]]:
    """Check the arguments of an estimator. Return a function (K, batch) -> Spec, and the numbers of the terms.

    Raises:
        UserError: one is out of range.
    """
    for name, known in (("method", METHODS), ("preset", tuple(nmtune.PRESETS))):
        if (value := getattr(asked, name)) not in known:
            raise UserError(f"{name}={value!r} is unknown", f"choose one of {', '.join(known)}")
    for name, kind in KINDS.items():
        value = getattr(asked, name)
        if not ((value is None and name in OPTIONAL) or kind.allows(value)):
            raise UserError(f"{name}={value!r}", f"give {kind.words}")
    if asked.start not in STARTS:
        raise UserError(f"start={asked.start!r} is unknown", "give 'probe', 'fresh' or None")
    weights, kind = _make_weights(asked), methods.find(asked.method)
    active, numbers = terms.split(kind.terms, weights) if weights else (None, {})
    form = _make_form(asked)
    return lambda k, batch: Spec(form, active, k, batch, bool(asked.standardize), gce=kind.gce), numbers


def _make_weights(asked: Any) -> Any:
    """Return the weights of the method's terms; None if it has none."""
    changes, kind = asked.weights or {}, methods.find(asked.method).terms
    if methods.has_presets(asked.method):
        return nmtune.resolve_weights(asked.preset, 1, **changes)[0]
    if kind:
        return terms.make_weights(kind, **changes)
    if changes:
        raise UserError(f"weights={changes!r}: {asked.method} has no terms", "leave weights out")
    return None


def _make_form(asked: Any) -> Form:
    """Return the form of the head, in Python's types: NumPy's, as np.arange puts into grids, fit into no file."""
    if not methods.find(asked.method).mlp:
        return Form(False)
    whole = asked.width is not None and asked.width == int(asked.width)
    width = 1 if asked.width is None else int(asked.width) if whole else float(asked.width)
    return Form(True, width, int(asked.depth), bool(asked.residual), asked.norm)


def starts_from_probe(asked: Any) -> bool:
    """Return whether there is a probe to start from, see `NMTuneClassifier.start`.

    Raises:
        UserError: it is asked for, and other arguments exclude it.
    """
    can = not methods.find(asked.method).mlp or bool(asked.residual)
    if asked.start == "probe" and (not can or asked.warm_start):
        what = "warm_start=True" if asked.warm_start else "residual=False"
        raise UserError(f"start='probe' and {what} exclude each other", "give one of them")
    free = asked.epochs is None and asked.learning_rate is None and not asked.warm_start
    return asked.start == "probe" or (asked.start is None and can and free)
