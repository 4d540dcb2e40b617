"""Heads on frozen features: linear, and the MLP with a residual that NMTune trains (arXiv 2309.17002, section 4).

    Z = s ⊙ MLP(F) + F,   MLP = Linear D→wD, BatchNorm, ReLU, Linear wD→D,   logits = Z W + b

These are plain functions, because a head is only a few matrix products and one compiled loop runs thousands of training
steps (tuning/descent.py).
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nml_jax.arithmetic.bits import in_32_bits
from nml_jax.errors import UserError

Tree = dict[str, Any]

NORMS = ("batch", "layer", "none")
BN_MOMENTUM, EPS = 0.1, 1e-5  # PyTorch's: share of the new batch in the running statistics; epsilon of both norms


class Form(NamedTuple):
    """The architecture of a head.

    mlp: whether there is an MLP; the other fields describe it.
    width: width of its hidden layers, as a multiple of D; a fraction is rounded to a whole number of units, at least 1.
    depth: number of hidden layers.
    residual: Z = s ⊙ MLP(F) + F, else Z = s ⊙ MLP(F).
    norm: the norm before every ReLU, one of NORMS.
    """

    mlp: bool
    width: float = 4
    depth: int = 1
    residual: bool = True
    norm: str = "batch"


def standardize(F: Any, standard: Mapping[str, Any]) -> Any:
    """Subtract the mean of `standard` from F [..., D] and divide by its scale, float32 [D] each."""
    return (F - standard["mean"]) / standard["scale"]


class Head(NamedTuple):
    """A head as two pure functions.

    init: `(key, dim) -> (params, state)`: nested dicts of float32 arrays for features of `dim` columns.
    apply: `(params, state, F, *, train) -> (outputs, new_state)` for F float32 [B, D]. `outputs` holds "input" (F, or
        standardised F if `state` has an entry "input" with "mean" and "scale", float32 [D] each), "features" (Z,
        float32 [B, D]) and "logits" (float32 [B, K]). BatchNorm uses the statistics of the batch in training, else its
        running statistics; as in PyTorch, their variance is unbiased.
    """

    init: Callable[..., tuple[Tree, Tree]]
    apply: Callable[..., tuple[dict[str, jax.Array], Tree]]


def make_head(form: Form, num_classes: int) -> Head:
    """Make a head of that architecture for K = `num_classes`.

    Raises:
        UserError: the width is not above 0, the depth is below 1, or the norm is unknown.
    """
    if form.norm not in NORMS:
        raise UserError(f"a head has no norm {form.norm!r}", f"choose one of {', '.join(NORMS)}")
    if form.width <= 0 or form.depth < 1:
        raise UserError(
            f"a head cannot have width {form.width} and depth {form.depth}", "set the width above 0, the depth from 1"
        )
    names = [("dense1", "norm"), *((f"dense{i}", f"norm{i}") for i in range(2, form.depth + 1))] if form.mlp else []
    last = f"dense{form.depth + 1}"

    @in_32_bits
    def init(key: jax.Array, dim: int) -> tuple[Tree, Tree]:
        # Every value is drawn from U(±bound). The MLP has PyTorch's default bound, 1/√fan_in for kernel and bias. The
        # classifier, as in the released code, has Kaiming's with the gain of a ReLU, and a bias of 0. There is one flat
        # draw, because each draw costs compile time.
        hidden = max(1, round(form.width * dim))
        shapes = [((dim, num_classes), math.sqrt(6 / dim))]
        sides = [dim, *(hidden for _ in names), dim] if form.mlp else []
        for fan_in, fan_out in itertools.pairwise(sides):
            shapes += [((fan_in, fan_out), 1 / math.sqrt(fan_in)), ((fan_out,), 1 / math.sqrt(fan_in))]
        sizes = [math.prod(shape) for shape, _ in shapes]
        flat = jnp.split(jax.random.uniform(key, (sum(sizes),), minval=-1), list(itertools.accumulate(sizes))[:-1])
        classifier, *mlp = [bound * x.reshape(shape) for x, (shape, bound) in zip(flat, shapes, strict=True)]
        params: Tree = {"classifier": {"kernel": classifier, "bias": jnp.zeros(num_classes)}}
        state: Tree = {}
        if not form.mlp:
            return params, state
        params["scale"] = jnp.ones(dim)
        for i, name in enumerate([*(dense for dense, _ in names), last]):
            params[name] = {"kernel": mlp[2 * i], "bias": mlp[2 * i + 1]}
        for _, name in names if form.norm != "none" else ():
            params[name] = {"scale": jnp.ones(hidden), "bias": jnp.zeros(hidden)}
            if form.norm == "batch":
                state[name] = {"mean": jnp.zeros(hidden), "var": jnp.ones(hidden)}
        return params, state

    def apply(params: Tree, state: Tree, F: jax.Array, *, train: bool) -> tuple[dict[str, jax.Array], Tree]:
        new_state = dict(state)
        if "input" in state:
            F = standardize(F, state["input"])
        Z = F
        if form.mlp:
            h = F
            for dense, norm in names:
                h = h @ params[dense]["kernel"] + params[dense]["bias"]
                if form.norm == "batch":
                    h, new_state[norm] = _batch_norm(params[norm], state[norm], h, train=train)
                elif form.norm == "layer":
                    h = _layer_norm(params[norm], h)
                h = jax.nn.relu(h)
            Z = params["scale"] * (h @ params[last]["kernel"] + params[last]["bias"])
            Z = Z + F if form.residual else Z
        logits = Z @ params["classifier"]["kernel"] + params["classifier"]["bias"]
        return {"input": F, "features": Z, "logits": logits}, new_state

    return Head(init, apply)


def _batch_norm(params: Tree, state: Tree, x: jax.Array, *, train: bool) -> tuple[jax.Array, Tree]:
    """Normalise each column of x [B, H] and return it with the new running statistics."""
    mean, var = state["mean"], state["var"]
    if train:
        rows = len(x)
        mean = x.mean(0)
        var = ((x - mean) ** 2).mean(0)
        running = {"mean": mean, "var": var * (rows / max(rows - 1, 1))}
        state = jax.tree.map(lambda old, new: (1 - BN_MOMENTUM) * old + BN_MOMENTUM * new, state, running)
    return (x - mean) * (jax.lax.rsqrt(var + EPS) * params["scale"]) + params["bias"], state


def _layer_norm(params: Tree, x: jax.Array) -> jax.Array:
    """Normalise each row of x [B, H]."""
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + EPS) * params["scale"] + params["bias"]
