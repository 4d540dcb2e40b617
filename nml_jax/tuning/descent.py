"""Train a head by gradient, in one compiled loop over the features on the device; spread.py trains many.

The optimiser is AdamW (PyTorch's defaults) with decay on every parameter, and a cosine to zero without warm-up, as
released. An epoch is a new permutation of the n rows in ⌈n/B⌉ full batches. The last one is filled up with the epoch's
first rows, so no row is left out and BatchNorm always sees B rows. A batch holds all views of its rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nml_jax.arithmetic.bits import in_32_bits
from nml_jax.models.heads.mlp import Form, Tree, make_head, standardize
from nml_jax.objectives.step import Step, compute_losses, generalise
from nml_jax.objectives.terms import Terms
from nml_jax.processes.forks import refuse_fork
from nml_jax.training import perturb

CHUNK = 512  # rows per call outside training; one size, so that it is compiled once


class Spec(NamedTuple):
    """The static arguments of a compiled run."""

    form: Form
    terms: Terms | None  # besides the cross-entropy
    num_classes: int  # 1: a regression
    batch: int
    standardize: bool
    noisytune: bool = False  # whether the start is perturbed
    neftune: bool = False  # whether training perturbs the inputs
    penalised: bool = False  # whether the loss has ½·penalty·‖W‖² of the classifier's kernel W
    gce: bool = False  # whether the cross-entropy is the generalised one, of `Setting.q`


class Setting(NamedTuple):
    """The arguments that may differ between runs of one compiled program."""

    rows: Any  # int [N], a permutation of all rows; the first n are trained on
    lr: Any  # at the start of the cosine
    weight_decay: Any
    seed: Any  # of the initialisation, the order and the draws of the terms
    numbers: Any = {}  # of the terms, see `objectives.terms.split`  # noqa: RUF012
    noisytune: Any = 0.0  # λ of training/perturb.py
    neftune: Any = 0.0  # α of training/perturb.py
    penalty: Any = 0.0  # of the classifier's kernel; 1/(C·N) is that of a logistic regression with C on N rows
    q: Any = 0.0  # of the generalised cross-entropy, see `objectives.step.generalise`


class TrainingSet(NamedTuple):
    """Training examples."""

    features: Any  # float32 [N, V, D]
    labels: Any  # int32 [N]; of a regression float32 [N], standardised targets
    weights: Any  # float32 [N], in the cross-entropy; 1 on average over the rows that are trained on


class Carry(NamedTuple):
    """A head in training."""

    params: Tree
    state: Tree
    opt_state: Any


def to_arrays(setting: Setting) -> Setting:
    """Convert a setting to the dtypes of the compiled program."""
    seed, *numbers = np.uint32(setting.seed % 2**32), *jax.tree.map(np.float32, setting[4:])
    return Setting(np.int32(setting.rows), np.float32(setting.lr), np.float32(setting.weight_decay), seed, *numbers)


@in_32_bits
def start(spec: Spec, setting: Setting, dim: int, standard: Tree | None) -> Carry:
    """Initialise a head.

    Args:
        dim: D.
        standard: {"mean", "scale"} of the input, float32 [D] each, to standardise it; None: do not.
    """
    params, state = make_head(spec.form, spec.num_classes).init(_make_keys(setting)[0], dim)
    if spec.noisytune:
        params = perturb.noisytune(params, _make_keys(setting)[3], setting.noisytune)
    state = state if standard is None else {**state, "input": standard}
    return Carry(params, state, _make_optimizer(setting, 1).init(params))


@in_32_bits
def run_epoch(
    spec: Spec, carry: Carry, bank: TrainingSet, setting: Setting, n: jax.Array, i: jax.Array, total: jax.Array
) -> Carry:
    """Train for one pass over the first n of `setting.rows`.

    Args:
        i: number of this pass, from 0; each has its own order.
        total: steps of the whole run, for the cosine.
    """
    model, optimizer = make_head(spec.form, spec.num_classes), _make_optimizer(setting, total)
    _, for_order, for_terms, _ = _make_keys(setting)

    def apply(params: Tree, state: Tree, F: jax.Array) -> tuple[dict[str, jax.Array], Tree]:
        outputs, state = model.apply(params, state, F.reshape(-1, F.shape[-1]), train=True)
        return {name: x.reshape(*F.shape[:2], -1) for name, x in outputs.items()}, state

    def loss(params: Tree, state: Tree, rows: jax.Array, key: jax.Array) -> tuple[jax.Array, Tree]:
        key, for_inputs = jax.random.split(key)
        F, label = bank.features[rows], bank.labels[rows]
        if "input" in state:  # here, so that terms and perturbations see standardised inputs
            F = standardize(F, state["input"])
        bare = {name: x for name, x in state.items() if name != "input"}
        noisy = F + perturb.neftune(F.shape[:2], F.shape[2], for_inputs, setting.neftune) if spec.neftune else F
        views, new_state = apply(params, bare, noisy)
        losses = compute_losses(views["logits"], label)
        losses = generalise(losses, setting.q) if spec.gce else losses
        total = (bank.weights[rows, None] * losses).mean()
        if spec.terms is not None:

            def apply_again(F: jax.Array) -> tuple[jax.Array, jax.Array]:
                outputs, _ = apply(params, bare, F)
                return outputs["features"], outputs["logits"]

            step = Step(F, views["features"], views["logits"], label, apply_again, key)
            total += spec.terms.penalty(step, setting.numbers)
        if spec.penalised:
            total += setting.penalty * (params["classifier"]["kernel"] ** 2).sum() / 2
        return total, {**state, **new_state}

    order = setting.rows[_permute(jax.random.fold_in(for_order, i), len(setting.rows), n)]
    for_epoch = jax.random.fold_in(for_terms, i)

    def step(k: jax.Array, carry: Carry) -> Carry:
        rows = order[(k * spec.batch + jnp.arange(spec.batch)) % n]
        gradient, state = jax.grad(loss, has_aux=True)(
            carry.params, carry.state, rows, jax.random.fold_in(for_epoch, k)
        )
        updates, opt_state = optimizer.update(gradient, carry.opt_state, carry.params)
        return Carry(optax.apply_updates(carry.params, updates), state, opt_state)  # type: ignore[arg-type]

    return jax.lax.fori_loop(0, -(-n // spec.batch), step, carry)


# For callers that validate, or read other rows, between two epochs.
begin = in_32_bits(jax.jit(start, static_argnums=(0, 2)))
advance = in_32_bits(jax.jit(run_epoch, static_argnums=0, donate_argnums=1))


def _make_optimizer(setting: Setting, total: jax.Array | int) -> optax.GradientTransformation:
    return optax.adamw(
        lambda step: setting.lr * (1 + jnp.cos(jnp.pi * step / total)) / 2, weight_decay=setting.weight_decay
    )


def _make_keys(setting: Setting) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Make the keys of the initialisation, the order, the terms, and the perturbation of the initialisation."""
    key = jax.random.key(setting.seed)
    return (*jax.random.split(key), jax.random.fold_in(key, 2), jax.random.fold_in(key, 3))  # type: ignore[return-value]


@in_32_bits
def run(
    spec: Spec, bank: TrainingSet, setting: Setting, n: jax.Array, epochs: jax.Array, standard: Tree | None = None
) -> tuple[Tree, Tree]:
    """Train a head for some epochs; return its parameters and its state.

    Args:
        standard: mean and scale of the features, if `spec.standardize`; None: compute them.
    """
    if spec.standardize and standard is None:
        standard = compute_statistics(bank.features, setting.rows, n)
    carry = start(spec, setting, bank.features.shape[-1], standard)
    total = epochs * -(-n // spec.batch)
    carry = jax.lax.fori_loop(0, epochs, lambda i, carry: run_epoch(spec, carry, bank, setting, n, i, total), carry)
    return carry.params, carry.state


train_one = jax.jit(run, static_argnums=0)


@in_32_bits
def _permute(key: jax.Array, size: int, n: jax.Array) -> jax.Array:
    """Return int32 [size] whose first n are a uniform permutation of 0..n−1."""
    draws = jnp.where(jnp.arange(size) < n, jax.random.bits(key, (size,)), np.uint32(2**32 - 1))
    return jnp.argsort(draws, stable=True)


@in_32_bits
def compute_statistics(features: jax.Array, rows: jax.Array, n: jax.Array) -> Tree:
    """Compute mean and standard deviation over all views of the first n of `rows`; a constant feature becomes 0."""
    size, views, _ = features.shape
    used = jnp.zeros((size, 1, 1)).at[rows].set((jnp.arange(size) < n)[:, None, None].astype(jnp.float32))
    mean = (used * features).sum((0, 1)) / (n * views)
    variance = (used * (features - mean) ** 2).sum((0, 1)) / (n * views)
    constant = variance <= 1e-10 * mean**2  # rounding of the mean leaves this much, which AdamW would learn from
    return {
        "mean": jnp.where(constant, features[rows[0], 0], mean),
        "scale": jnp.where(constant, 1, jnp.sqrt(variance)),
    }


@in_32_bits
def get_standard(features: np.ndarray, n: int | None = None) -> Tree:
    """Compute {"mean", "scale"} over the first n rows of features [N, V, D], or over all; float32 [D] each."""
    used = np.int32(len(features) if n is None else n)
    return jax.device_get(jax.jit(compute_statistics)(features, np.arange(len(features)), used))


@in_32_bits
def compute_outputs(
    form: Form, num_classes: int, params: Tree, state: Tree, features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute Z float32 [M, D] and logits float32 [M, K] of features [M, D], with running BatchNorm statistics."""
    refuse_fork()
    params, state = jax.device_put((params, state))
    chunks = []
    for begin in range(0, len(features), CHUNK):
        rows = np.asarray(features[begin : begin + CHUNK], np.float32)
        filled = np.pad(rows, ((0, CHUNK - len(rows)), (0, 0)))
        chunks.append([x[: len(rows)] for x in jax.device_get(_apply(form, num_classes, params, state, filled))])
    Z, logits = zip(*chunks, strict=True)
    return np.concatenate(Z), np.concatenate(logits)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(form: Form, num_classes: int, params: Tree, state: Tree, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    out, _ = make_head(form, num_classes).apply(params, state, features, train=False)
    return out["features"], out["logits"]
