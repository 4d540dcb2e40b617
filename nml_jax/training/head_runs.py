"""Training runs of heads, each one compiled loop over a bank of features on the device.

AdamW (PyTorch's defaults) with decay on every parameter, and a cosine to zero without warm-up, as released. An epoch is
a new permutation of the n rows in ⌈n/B⌉ full batches: the last one is filled up with the epoch's first rows, so that no
row is left out and BatchNorm always sees B rows. A batch holds all views of its rows.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nml_jax.models.heads import Tree, head
from nml_jax.objectives import nmtune

CHUNK = 512  # rows per call outside training: one size, so that it is compiled once


class Spec(NamedTuple):
    """What a run is compiled for, besides the shape of the bank. All else may differ from run to run."""

    method: str
    weights: nmtune.Weights
    num_classes: int
    width: int
    batch: int
    standardize: bool


class Setting(NamedTuple):
    """What differs between runs that are trained together."""

    rows: Any  # int [N], a permutation of the bank's rows: the first n are trained on
    lr: Any  # at the start of the cosine
    weight_decay: Any
    seed: Any  # of initialisation and order


def train(
    spec: Spec,
    features: Any,
    labels: Any,
    settings: Sequence[Setting],
    n: int,
    *,
    epochs: int,
    mapped: bool | None = None,
) -> list[tuple[Tree, Tree]]:
    """Train one head per setting.

    Args:
        spec: of the heads; `batch` is at most n.
        features: float32 [N, V, D].
        labels: int32 [N].
        settings: of Python or NumPy values.
        n: rows to train on.
        epochs: passes over them.
        mapped: all settings at once, or one after another through one compiled function. None: mapped on an accelerator
            and not on CPU, where that would be three times as slow.

    Returns:
        (params, state) of each, nested dicts of float32 NumPy arrays; not finite where training diverged.
    """
    if mapped is None:
        mapped = jax.default_backend() != "cpu"
    typed = [
        Setting(np.int32(s.rows), np.float32(s.lr), np.float32(s.weight_decay), np.uint32(s.seed % 2**32))
        for s in settings
    ]
    sizes = np.int32(n), np.int32(epochs)
    with one_blas_thread():
        if mapped:
            stacked = jax.tree.map(lambda *xs: np.stack(xs), *typed)
            together = jax.device_get(_train_mapped(spec, features, labels, stacked, *sizes))
            return [jax.tree.map(lambda x, i=i: x[i], together) for i in range(len(typed))]
        return [jax.device_get(_train(spec, features, labels, setting, *sizes)) for setting in typed]


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread: XLA's `eigh` on CPU runs in it, and its threads would fight XLA's for the cores."""
    import scipy.linalg  # noqa: F401  XLA's LAPACK is this one, and only what is loaded can be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


@partial(jax.jit, static_argnums=0)
def _train(
    spec: Spec, features: jax.Array, labels: jax.Array, setting: Setting, n: jax.Array, epochs: jax.Array
) -> tuple[Tree, Tree]:
    model = head(spec.method, num_classes=spec.num_classes, width=spec.width)
    for_init, for_order = jax.random.split(jax.random.key(setting.seed))
    params, state = model.init(for_init, features.shape[-1])
    if spec.standardize:
        state = {**state, "input": _statistics(features, setting.rows, n)}
    steps = -(-n // spec.batch)
    optimizer = optax.adamw(
        lambda step: setting.lr * (1 + jnp.cos(jnp.pi * step / (epochs * steps))) / 2, weight_decay=setting.weight_decay
    )

    def loss(params: Tree, state: Tree, F: jax.Array, label: jax.Array) -> tuple[jax.Array, Tree]:
        outputs, state = model.apply(params, state, F.reshape(-1, F.shape[-1]), train=True)
        views = jax.tree.map(lambda x: x.reshape(*F.shape[:2], -1), outputs)
        return nmtune.loss(views["input"], views["features"], views["logits"], label, weights=spec.weights), state

    def epoch(i: jax.Array, carry: tuple) -> tuple:
        order = setting.rows[_permutation(jax.random.fold_in(for_order, i), len(labels), n)]

        def step(k: jax.Array, carry: tuple) -> tuple:
            params, state, opt_state = carry
            batch = order[(k * spec.batch + jnp.arange(spec.batch)) % n]
            gradient, state = jax.grad(loss, has_aux=True)(params, state, features[batch], labels[batch])
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), state, opt_state

        return jax.lax.fori_loop(0, steps, step, carry)

    return jax.lax.fori_loop(0, epochs, epoch, (params, state, optimizer.init(params)))[:2]


@partial(jax.jit, static_argnums=0)
def _train_mapped(
    spec: Spec, features: jax.Array, labels: jax.Array, settings: Setting, n: jax.Array, epochs: jax.Array
) -> tuple[Tree, Tree]:
    return jax.vmap(lambda setting: _train(spec, features, labels, setting, n, epochs))(settings)


def _permutation(key: jax.Array, size: int, n: jax.Array) -> jax.Array:
    """int32 [size], of which the first n are a uniform permutation of 0..n−1."""
    draws = jnp.where(jnp.arange(size) < n, jax.random.bits(key, (size,)), np.uint32(2**32 - 1))
    return jnp.argsort(draws, stable=True)


def _statistics(features: jax.Array, rows: jax.Array, n: jax.Array) -> Tree:
    """Mean and standard deviation over the first n of `rows`, all views, such that a constant feature becomes 0."""
    size, views, _ = features.shape
    used = jnp.zeros((size, 1, 1)).at[rows].set((jnp.arange(size) < n)[:, None, None].astype(jnp.float32))
    mean = (used * features).sum((0, 1)) / (n * views)
    variance = (used * (features - mean) ** 2).sum((0, 1)) / (n * views)
    constant = variance <= 1e-10 * mean**2  # what rounding of the mean leaves, which AdamW would learn from
    return {
        "mean": jnp.where(constant, features[rows[0], 0], mean),
        "scale": jnp.where(constant, 1, jnp.sqrt(variance)),
    }


def outputs(spec: Spec, params: Tree, state: Tree, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Z float32 [M, D] and logits float32 [M, K] of features [M, D], with running BatchNorm statistics."""
    params, state = jax.device_put((params, state))
    chunks = []
    for start in range(0, len(features), CHUNK):
        rows = np.asarray(features[start : start + CHUNK], np.float32)
        filled = np.pad(rows, ((0, CHUNK - len(rows)), (0, 0)))
        chunks.append([x[: len(rows)] for x in jax.device_get(_apply(spec, params, state, filled))])
    Z, logits = zip(*chunks, strict=True)
    return np.concatenate(Z), np.concatenate(logits)


@partial(jax.jit, static_argnums=0)
def _apply(spec: Spec, params: Tree, state: Tree, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    model = head(spec.method, num_classes=spec.num_classes, width=spec.width)
    out, _ = model.apply(params, state, features, train=False)
    return out["features"], out["logits"]
