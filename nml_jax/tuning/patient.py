"""Train a head from a solved probe, and stop when the validation loss no longer falls.

A head with a residual starts where it equals the probe: the classifier has its weights, and the scale of the MLP is 0.
Its gradient is not 0, so the MLP joins in with the first step. The classifier keeps the probe's penalty.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nml_jax.models.heads.mlp import Form
from nml_jax.tuning import descent
from nml_jax.tuning.descent import Carry, Setting, Spec, TrainingSet
from nml_jax.tuning.head_file import TunedHead
from nml_jax.tuning.holdout import cross_entropy
from nml_jax.tuning.probes import Linear, fit_lbfgs

CS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # inverse strengths of the probe's L2 penalty, as scikit-learn's C
WIDTHS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # that `choose_width` knows


class Course(NamedTuple):
    """A training with validation.

    head: that of the lowest validation loss, or the last one without validation.
    losses: validation loss of every epoch, in nats.
    best: epochs after which the loss was lowest; 0: the start.
    """

    head: TunedHead
    losses: list[float]
    best: int


def choose_width(dim: int, rows: int) -> float:
    """Return the width of the MLP's hidden layer that N rows of D features deserve, as a multiple of D.

    benchmarks/width.py measures accuracy beside time. The papers' is 4.
    """
    wanted = min(512, max(64, rows // 8)) / dim
    return min((w for w in WIDTHS if w >= wanted), default=WIDTHS[-1])


def choose_probe(
    F: np.ndarray,
    labels: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    cs: Sequence[float] = CS,
    weights: np.ndarray | None = None,
) -> tuple[Linear, float]:
    """Solve a logistic regression for each C, and return the probe of the lowest validation loss and its C.

    Args:
        F: float32 [N, D], as the head sees them.
        labels: int [N].
        parts: rows to train on, and rows to validate on. Without the latter the middle of the grid is taken.
        num_classes: K.
        cs: the grid.
        weights: of the rows in the loss, [N]; None: 1 each.
    """
    train, held_out = parts
    cs = sorted(cs)
    if not len(held_out):
        cs = cs[(len(cs) - 1) // 2 :][:1]
    own = None if weights is None else weights[train] / weights[train].mean()
    probes = fit_lbfgs(F[train], labels[train], cs, num_classes=num_classes, weights=own)
    if len(cs) == 1:
        return probes[0], cs[0]
    held = None if weights is None else weights[held_out]
    losses = [cross_entropy(probe(F[held_out]), labels[held_out], held) for probe in probes]
    best = int(np.argmin(losses))
    return probes[best], cs[best]


def make_linear(probe: Linear, state: Any) -> TunedHead:
    """Return a probe as a linear head; `state` holds the standardisation of its input, or nothing."""
    return TunedHead(Form(mlp=False), {"classifier": {"kernel": probe.kernel, "bias": probe.bias}}, state)


def compute_penalty(c: float, n: int, num_classes: int) -> float:
    """Return the penalty of the kernel in a mean loss that is C's of `fit_lbfgs` on n rows."""
    return (2 if num_classes == 2 else 1) / (c * n)


def start_at(carry: Carry, probe: Linear) -> Carry:
    """Return a start that computes what the probe does; see the module."""
    params = {**carry.params, "classifier": {"kernel": probe.kernel, "bias": probe.bias}}
    if "scale" in params:
        params["scale"] = np.zeros_like(params["scale"])
    return carry._replace(params=jax.device_put(params))


def train(
    spec: Spec,
    carry: Carry,
    bank: TrainingSet,
    setting: Setting,
    n: int,
    *,
    epochs: int,
    patience: float = math.inf,
    score: Callable[[TunedHead], float] | None = None,
    tell: Callable[[int, float], None] = lambda i, loss: None,
    horizon: int | None = None,
    started: bool = False,
) -> Course:
    """Train epoch by epoch.

    Args:
        spec: static arguments.
        carry: where to start; it is used up.
        bank, setting: on the device, as `descent.advance` takes them.
        n: rows to train on.
        epochs: passes over them, at most.
        patience: epochs without a lower loss after which training stops.
        score: returns the validation loss of a head, in nats; None: train all epochs.
        tell: called with the number of every epoch, from 1, and its loss.
        horizon: passes after which the cosine reaches 0; None: `epochs`.
        started: the start is a head of its own, so that it may be the best.
    """
    total = np.int32((horizon or epochs) * -(-n // spec.batch))
    losses: list[float] = []
    head = _fetch(spec, carry) if started and score else None
    lowest, best = (score(head) if head and score else math.inf), 0
    for i in range(epochs):
        carry = descent.advance(spec, carry, bank, setting, np.int32(n), np.int32(i), total)
        if not score:
            jax.block_until_ready(carry.params)
            tell(i + 1, math.nan)
            continue
        now = _fetch(spec, carry)
        losses.append(score(now))
        tell(i + 1, losses[-1])
        if losses[-1] < lowest or head is None:
            head, lowest, best = now, losses[-1], i + 1
        elif i + 1 - best >= patience:
            break
    return Course(head if head and score else _fetch(spec, carry), losses, best if score else epochs)


def _fetch(spec: Spec, carry: Carry) -> TunedHead:
    return TunedHead(spec.form, *jax.device_get((carry.params, carry.state)))
