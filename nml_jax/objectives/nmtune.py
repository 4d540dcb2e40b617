"""NMTune: cross-entropy plus three regularisers of a head's features Z and its frozen input F.

The terms are those of arXiv 2309.17002, section 4. The consistency term keeps Z near F, the covariance term
decorrelates the features of Z, and the singular term rewards a dominant singular value. The total is CE +
w_mse·consistency + w_cov·covariance + w_svd·singular. The paper and the released code differ in weights and forms;
PRESETS has both.

Every term computes its value and its gradient in float64 and returns them as float32. In float32, the gradient can be
wrong from the fourth digit on, or entirely: if a feature has 10⁶ times the variance of the others, if a mean is 100
standard deviations, if Z is close to F, or if rows are two views of one image. At the usual batch sizes, float64 costs
a few per cent of a step. (Measured only on a CPU; a TPU emulates float64.)
"""

import math
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nml_jax.errors import UserError
from nml_jax.objectives.step import Step

# Shares of σ₁. A float64 Gram matrix has σ² to 1e-16·σ₁²: for σ above GRAM, value and gradient are accurate to 1e-6.
# Below GRAM they come from an SVD, which has the direction of σ to 1e-16·σ₁/σ. Below ZERO, this is too inaccurate.
GRAM, ZERO = 1e-5, 1e-12


class Weights(NamedTuple):
    """Weights and forms of the three terms. A weight of 0 leaves a term out; all 0 is plain cross-entropy."""

    mse: float = 0.0
    cov: float = 0.0
    svd: float = 0.0
    per_dim: bool = False  # divide the consistency by D
    cross_view: bool = False  # compare Z of the other views with F of the first
    top: int = 1  # how many of the largest singular values to average


PRESETS = {
    "paper": Weights(mse=0.01, cov=0.01, svd=0.01),
    "code": Weights(mse=1.0, cov=0.04, svd=0.001, per_dim=True, cross_view=True, top=5),
}

Free = TypeVar("Free", bound=NamedTuple)


def resolve_weights(preset: str | Weights | None, views: int, **overrides: Any) -> tuple[Weights, str]:
    """Return the weights of a preset, and their name in rows, such as "paper", "code/1view" or "paper,svd=0.1".

    Args:
        preset: a key of PRESETS, or free weights, whose name lists their values.
        views: stored views per example; with one view, `code` is "code/1view".
        overrides: values in place of the preset's, by field of Weights; None keeps the preset's.

    Raises:
        UserError: there is no such preset, or a value is out of range.
    """
    if isinstance(preset, Weights):
        free = replace_weights(preset, **overrides)
        return free, ",".join(f"{field}={value:g}" for field, value in free._asdict().items())
    if preset not in PRESETS:
        raise UserError(f"there is no NMTune preset {preset!r}", f"choose one of {', '.join(PRESETS)}")
    chosen = replace_weights(PRESETS[preset], **overrides)
    changed = [f"{k}={v:g}" for k, v in chosen._asdict().items() if v != getattr(PRESETS[preset], k)]
    name = f"{preset}/1view" if chosen.cross_view and views == 1 else preset
    return chosen, ",".join([name, *changed])


def replace_weights(defaults: Free, **overrides: Any) -> Free:
    """Return the weights of any method with the `overrides` that are not None, checked.

    Raises:
        UserError: there is no such field, a number is negative or not finite, a count is below 1, or a word is not one
            of those in the field's type.
    """
    unknown = sorted(set(overrides) - set(defaults._fields))
    if unknown:
        raise UserError(f"there is no weight {unknown[0]!r}", f"choose among {', '.join(defaults._fields)}")
    given = {k: v.item() if isinstance(v, np.generic) else v for k, v in overrides.items() if v is not None}
    new = defaults._replace(**given)
    hints = typing.get_type_hints(type(defaults))
    for field, value in new._asdict().items():
        words = typing.get_args(hints[field])
        if words:
            good, cure = value in words, f"choose one of {', '.join(words)}"
        elif hints[field] is bool:
            good, cure = isinstance(value, bool), "give True or False"
        elif hints[field] is int:
            good, cure = isinstance(value, int) and value is not True and value >= 1, "give an integer of at least 1"
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            good, cure = number and math.isfinite(value) and value >= 0, "give a finite number of at least 0"
        if not good:
            raise UserError(f"{field} is {value!r}", cure)
    return new


def penalty(step: Step, form: Weights, weights: Weights) -> jax.Array:
    """Return w_mse·consistency + w_cov·covariance + w_svd·singular; the last two terms take all views together.

    Args:
        step: its F and Z are used.
        form: static. It decides which terms are in the program, those with a weight other than 0, and their forms.
        weights: the floats of `form` as float32 [], possibly traced.

    Returns:
        float32 [], finite if F and Z are finite and the square of Z's covariance does not overflow.
    """
    return _sum_terms(step.F, step.Z, form, weights)


def loss(F: jax.Array, Z: jax.Array, logits: jax.Array, labels: jax.Array, *, weights: Weights) -> jax.Array:
    """Return the cross-entropy over all views plus the terms, float32 []; the arrays are those of a Step."""
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels[:, None]).mean()
    return entropy + _sum_terms(F, Z, weights, weights)


def _sum_terms(F: jax.Array, Z: jax.Array, form: Weights, weights: Weights) -> jax.Array:
    rows = Z.reshape(-1, Z.shape[-1])
    total = jnp.zeros(())
    if form.mse:
        across = form.cross_view and Z.shape[1] > 1
        pair = (F[:, :1], Z[:, 1:]) if across else (F, Z)
        total += weights.mse * consistency(*pair, per_dim=form.per_dim)
    if form.cov:
        total += weights.cov * covariance(rows)
    if form.svd:
        total += weights.svd * singular(rows, form.top)
    return total


def consistency(F: jax.Array, Z: jax.Array, *, per_dim: bool = False) -> jax.Array:
    """Return the mean over rows of ‖F/‖F‖ − Z/‖Z‖‖². Rows of zeros stay zeros.

    Args:
        F: float32 [..., D], the target, which gets no gradient. Its shape broadcasts to Z's.
        Z: float32 [..., D].
        per_dim: divide by D. The released code has the mean over features; the paper has the sum.
    """
    dim = Z.shape[-1]
    F = jnp.broadcast_to(F, Z.shape).reshape(-1, dim)
    return _run_in_float64(partial(_consistency, dim if per_dim else 1))(Z.reshape(-1, dim), F)


def covariance(Z: jax.Array) -> jax.Array:
    """Return (1/D) Σ_{i≠j} C(Z)²_ij with C = (Z − mean)ᵀ(Z − mean)/(B − 1); 0 for a single row.

    For B < D, it is computed as ‖(Z − mean)(Z − mean)ᵀ‖²_F less the squared diagonal of C, without C itself.

    Args:
        Z: float32 [B, D].
    """
    return _run_in_float64(_covariance)(Z)


def singular(Z: jax.Array, top: int = 1) -> jax.Array:
    """Return −(mean of the `top` largest σᵢ) / Σσ, with σ the singular values of Z, uncentred; 0 for an all-zero Z.

    With fewer than `top` singular values, the mean is over all of them. The gradient is U diag(g) Vᵀ with g = ∂/∂σ,
    from the eigenvectors of the smaller Gram matrix, or from an SVD if any σ/σ₁ is below GRAM. Directions with σ/σ₁
    below ZERO get no gradient, so that it is finite at any rank.

    Args:
        Z: float32 [B, D].
        top: how many values to average.
    """
    return _run_in_float64(partial(_singular, top))(Z)


def _run_in_float64(term: Callable[..., tuple[jax.Array, jax.Array]]) -> Callable[..., jax.Array]:
    """Make a function of float32 arrays, differentiable in the first, that runs `term` in float64.

    Args:
        term: (Z [..., B, D], *others) -> (value [...], gradient by Z [..., B, D]). It must take leading axes itself,
            because `vmap` would rewrite the float64 operations outside the context that allows them.
    """

    @jax.custom_batching.custom_vmap
    def both(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.enable_x64(True):
            value, gradient = term(*(x.astype(jnp.float64) for x in arrays))
            return value.astype(jnp.float32), gradient.astype(jnp.float32)

    @both.def_vmap
    def _(size: int, batched: list[bool], *arrays: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[bool, bool]]:
        pairs = zip(arrays, batched, strict=True)
        return both(*(x if mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, mapped in pairs)), (True, True)

    @jax.custom_vjp
    def value(Z: jax.Array, *others: jax.Array) -> jax.Array:
        return both(Z, *others)[0]

    def forward(Z: jax.Array, *others: jax.Array) -> tuple[jax.Array, tuple[jax.Array, int]]:
        value, gradient = both(Z, *others)
        return value, (gradient, len(others))

    def backward(saved: tuple[jax.Array, int], cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
        gradient, others = saved
        return cotangent * gradient, *[None] * others

    value.defvjp(forward, backward)
    return value


_matmul = partial(jnp.matmul, precision="highest")


def _consistency(divisor: int, Z: jax.Array, F: jax.Array) -> tuple[jax.Array, jax.Array]:
    def inverse_norm(x: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return jnp.where(norm == 0, 0, 1 / jnp.where(norm == 0, 1, norm))

    inverse = inverse_norm(Z)
    unit = Z * inverse
    away = unit - F * inverse_norm(F)
    scale = divisor * Z.shape[-2]
    along = (away * unit).sum(-1, keepdims=True)  # the length of Z has no effect
    return (away**2).sum((-2, -1)) / scale, 2 * (away - along * unit) * inverse / scale


def _covariance(Z: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, dim = Z.shape[-2:]
    Z = Z - Z.mean(-2, keepdims=True)
    if rows < dim:
        gram, diagonal = _matmul(Z, Z.mT), (Z * Z).sum(-2, keepdims=True)
        total = (gram * gram).sum((-2, -1)) - (diagonal * diagonal).sum((-2, -1))
        gradient = _matmul(gram, Z) - Z * diagonal
    else:
        off = _matmul(Z.mT, Z) * (1 - jnp.eye(dim))
        total, gradient = (off * off).sum((-2, -1)), _matmul(Z, off)
    scale = dim * max(rows - 1, 1) ** 2
    return total / scale, 4 * gradient / scale


def _singular(top: int, Z: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = Z.shape[-2] < Z.shape[-1]

    def use_gram(_: None) -> tuple[jax.Array, jax.Array]:
        return sigma, q

    def use_svd(_: None) -> tuple[jax.Array, jax.Array]:
        u, s, vt = jnp.linalg.svd(Z, full_matrices=False)
        return s[..., ::-1], (u if wide else vt.mT)[..., ::-1]

    gram = _matmul(Z, Z.mT) if wide else _matmul(Z.mT, Z)
    eigenvalues, q = jnp.linalg.eigh(gram, symmetrize_input=False)  # ascending
    sigma = jnp.sqrt(jnp.maximum(eigenvalues, 0))
    steep = (sigma[..., 0] < GRAM * sigma[..., -1]).any()  # in a batch of Z, one decides for all; false for NaN
    sigma, q = jax.lax.cond(steep, use_svd, use_gram, None)

    first = sigma[..., -1:]
    zero = sigma <= ZERO * first  # false for NaN, so that it is kept
    sigma = jnp.where(zero, 0, sigma)
    total = jnp.where(zero[..., -1:], 1, sigma.sum(-1, keepdims=True))
    k = min(top, sigma.shape[-1])
    value = -sigma[..., -k:].mean(-1, keepdims=True) / total
    largest = jnp.arange(sigma.shape[-1]) >= sigma.shape[-1] - k
    g = -(largest / k + value) / total
    g = jnp.where(zero, 0, g / jnp.where(zero, 1, sigma))[..., None, :]
    inner = _matmul(q * g, q.mT)  # U diag(g/σ) Uᵀ if wide, else V diag(g/σ) Vᵀ
    return value[..., 0], _matmul(inner, Z) if wide else _matmul(Z, inner)
