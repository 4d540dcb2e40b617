"""What all trainers of heads share: the problem that they solve, the heads to train, and how the best is picked."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Tree
from nml_jax.tuning import methods
from nml_jax.tuning.holdout import PLAIN, Demands, Predictor

Scores = Mapping[str, float]


class Problem(NamedTuple):
    """Heads of one method on one set of features.

    features: float32 [N, V, D] for V views, as `select.check_features` returns them.
    labels: int32 [N].
    method: a key of `methods.METHODS`.
    preset: of nmtune: paper | code.
    num_classes: K.
    config: the section `tune` of configs/common.py.
    demands: what heads are to be good at.
    """

    features: np.ndarray
    labels: np.ndarray
    method: str
    preset: str | None
    num_classes: int
    config: Any
    demands: Demands = PLAIN


class HeadFit(NamedTuple):
    """One head to train."""

    rows: np.ndarray  # int [N], a permutation of all rows, those to train on first
    hyper: dict[str, float]
    seed: int


class Trainer(Protocol):
    """A trainer for heads of one method on one set of features.

    grid: the settings to choose from.
    preset: see `HeadResult`.
    demands: what heads are to be good at.
    method: what they are.
    """

    grid: list[dict[str, float]]
    preset: str | None
    demands: Demands
    method: methods.Method

    def train(self, fits: Sequence[HeadFit], n: int) -> Sequence[Predictor]:
        """Train one head per fit, on the first n of its rows."""
        ...

    def pick(self, scored: Sequence[Scores], logits: Sequence[np.ndarray], labels: np.ndarray) -> int:
        """Return the number of the best setting, by the scores of each and its logits of held-out rows, [M, K]."""
        ...


def pick_lowest(demands: Demands, scored: Sequence[Scores], ties: Sequence[float]) -> int:
    """Return the number of the best setting by the deciding metric; of equal ones, that of the lowest tie."""
    return min(range(len(scored)), key=lambda i: demands.rank_setting(scored[i], ties[i]))


def wrap(standard: Tree | None) -> Tree:
    """Return the state of a head whose input is standardised, or not."""
    return {"input": standard} if standard else {}


def make_grid(config: Any, names: Mapping[str, str]) -> list[dict[str, float]]:
    """Return all combinations of the values of config keys, where `names` maps the name of a value to its key."""
    for key in names.values():
        if not getattr(config, key):
            raise UserError(f"tune.{key} is empty", "give it at least one value")
    values = itertools.product(*(getattr(config, key) for key in names.values()))
    return [dict(zip(names, each, strict=True)) for each in values]
