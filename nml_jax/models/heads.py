"""Heads on frozen features: linear, and the MLP with a residual that NMTune trains (METHOD: arXiv 2309.17002 §4).

    Z = s ⊙ MLP(F) + F,   MLP = Linear D→wD, BatchNorm, ReLU, Linear wD→D,   logits = Z W + b

These are plain functions: a head is a few matrix products, and a training run of thousands of steps is one compiled
loop around them (training/heads.py).
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nml_jax.errors import UserError

Tree = dict[str, Any]

METHODS = ("linear", "mlp", "nmtune")  # mlp and nmtune are one architecture under two losses
BN_MOMENTUM, BN_EPS = 0.1, 1e-5  # PyTorch's: share of the new batch in the running statistics


class Head(NamedTuple):
    """A head as two pure functions.

    init: `(key, dim) -> (params, state)`: nested dicts of float32 arrays for features of `dim` columns.
    apply: `(params, state, F, *, train) -> (outputs, new_state)` for F float32 [B, D]. `outputs` holds "input"
        (F, or F standardised where `state` has an entry "input" with "mean" and "scale", float32 [D] each), "features"
        (Z, float32 [B, D]) and "logits" (float32 [B, K]). BatchNorm uses the statistics of the batch in training, and
        its running statistics, biased mean and unbiased variance as in PyTorch, otherwise.
    """

    init: Callable[..., tuple[Tree, Tree]]
    apply: Callable[..., tuple[dict[str, jax.Array], Tree]]


def head(method: str, *, num_classes: int, width: int = 4) -> Head:
    """The head of a method.

    Args:
        method: one of METHODS.
        num_classes: K.
        width: hidden width of the MLP over D.

    Raises:
        UserError: there is no such method.
    """
    if method not in METHODS:
        raise UserError(f"there is no head {method!r}", f"choose one of {', '.join(METHODS)}")
    has_mlp = method != "linear"

    def init(key: jax.Array, dim: int) -> tuple[Tree, Tree]:
        # Bounds of U(±bound): PyTorch's default for the MLP, 1/√fan_in for kernel and bias; for the classifier, as
        # released, Kaiming's with the gain of a ReLU, and no bias. One flat draw, since each one costs compile time.
        hidden = width * dim
        shapes = [((dim, num_classes), math.sqrt(6 / dim))]
        if has_mlp:
            for fan_in, fan_out in ((dim, hidden), (hidden, dim)):
                shapes += [((fan_in, fan_out), 1 / math.sqrt(fan_in)), ((fan_out,), 1 / math.sqrt(fan_in))]
        sizes = [math.prod(shape) for shape, _ in shapes]
        flat = jnp.split(jax.random.uniform(key, (sum(sizes),), minval=-1), list(itertools.accumulate(sizes))[:-1])
        classifier, *mlp = [bound * x.reshape(shape) for x, (shape, bound) in zip(flat, shapes, strict=True)]
        params: Tree = {"classifier": {"kernel": classifier, "bias": jnp.zeros(num_classes)}}
        if not has_mlp:
            return params, {}
        params |= {
            "dense1": {"kernel": mlp[0], "bias": mlp[1]},
            "norm": {"scale": jnp.ones(hidden), "bias": jnp.zeros(hidden)},
            "dense2": {"kernel": mlp[2], "bias": mlp[3]},
            "scale": jnp.ones(dim),
        }
        return params, {"norm": {"mean": jnp.zeros(hidden), "var": jnp.ones(hidden)}}

    def apply(params: Tree, state: Tree, F: jax.Array, *, train: bool) -> tuple[dict[str, jax.Array], Tree]:
        new_state = state
        if "input" in state:
            F = (F - state["input"]["mean"]) / state["input"]["scale"]
        Z = F
        if has_mlp:
            h = F @ params["dense1"]["kernel"] + params["dense1"]["bias"]
            h, norm = _batch_norm(params["norm"], state["norm"], h, train=train)
            h = jax.nn.relu(h) @ params["dense2"]["kernel"] + params["dense2"]["bias"]
            Z, new_state = params["scale"] * h + F, {**state, "norm": norm}
        logits = Z @ params["classifier"]["kernel"] + params["classifier"]["bias"]
        return {"input": F, "features": Z, "logits": logits}, new_state

    return Head(init, apply)


def _batch_norm(params: Tree, state: Tree, x: jax.Array, *, train: bool) -> tuple[jax.Array, Tree]:
    mean, var = state["mean"], state["var"]
    if train:
        rows = len(x)
        mean = x.mean(0)
        var = ((x - mean) ** 2).mean(0)
        running = {"mean": mean, "var": var * (rows / max(rows - 1, 1))}
        state = jax.tree.map(lambda old, new: (1 - BN_MOMENTUM) * old + BN_MOMENTUM * new, state, running)
    return (x - mean) * (jax.lax.rsqrt(var + BN_EPS) * params["scale"]) + params["bias"], state
