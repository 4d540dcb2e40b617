"""NMTune: cross-entropy plus three regularisers of a head's features Z and its frozen input F (arXiv 2309.17002, §4).

consistency keeps Z near F, covariance decorrelates the features of Z, singular rewards a dominant singular value. The
total is CE + w_mse·consistency + w_cov·covariance + w_svd·singular; the paper and the released code differ in weights
and forms, which PRESETS keeps apart.

Every term takes its value and its gradient in float64 and gives them as float32. In float32, a feature whose variance
is 10⁶ times that of the others, a mean of 100 standard deviations, a Z that has come close to F, and two views of one
image each leave a gradient that is wrong from the fourth digit on, or in all. At batch size the wider type costs a few
per cent of a step. (Run on CPU only; a TPU emulates float64.)
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

# Shares of σ₁. A float64 Gram matrix knows σ² to 1e-16·σ₁²: from GRAM on, both value and gradient are right to 1e-6.
# Below it they come from an SVD, which knows the direction of σ to 1e-16·σ₁/σ; below ZERO it knows too little of it.
GRAM, ZERO = 1e-5, 1e-12


class Weights(NamedTuple):
    """Weights and forms of the three terms. A weight of 0 leaves its term out, and all 0 is plain cross-entropy."""

    mse: float = 0.0
    cov: float = 0.0
    svd: float = 0.0
    per_dim: bool = False  # consistency is divided by D
    cross_view: bool = False  # consistency holds Z of the other views against F of the first
    top: int = 1  # singular takes the mean of so many largest values


PRESETS = {
    "paper": Weights(mse=0.01, cov=0.01, svd=0.01),
    "code": Weights(mse=1.0, cov=0.04, svd=0.001, per_dim=True, cross_view=True, top=5),
}

Free = TypeVar("Free", bound=NamedTuple)


def weights(preset: str | Weights | None, views: int, **overrides: Any) -> tuple[Weights, str]:
    """The weights behind a preset's name, and the name for tables: "paper", "code/1view" or "paper,svd=0.1".

    Args:
        preset: a key of PRESETS, or free weights, named by their values.
        views: stored views per example; where there is one, `code` is "code/1view".
        overrides: values in place of the preset's, by field of Weights; None: the preset's.

    Raises:
        UserError: there is no such preset, or a value is out of range.
    """
    if isinstance(preset, Weights):
        free = replace_weights(preset, **overrides)
        return free, ",".join(f"{field}={value:g}" for field, value in free._asdict().items())
    if preset not in PRESETS:
        raise UserError(f"there is no NMTune preset {preset!r}", f"choose one of {', '.join(PRESETS)}")
    chosen = replace_weights(PRESETS[preset], **overrides)
    return chosen, add_views(name_preset(preset, **overrides), views)


def name_preset(preset: str, **overrides: Any) -> str:
    """Return what rows call a preset, as in "paper" and "paper,svd=0.1": its key, and what `overrides` change."""
    own = PRESETS[preset]
    chosen = replace_weights(own, **overrides)._asdict()
    return ",".join([preset, *(f"{k}={v:g}" for k, v in chosen.items() if v != getattr(own, k))])


def add_views(name: str, views: int | None) -> str:
    """Return a preset's name for tables and files: "code/1view" where its consistency needs more than the one view."""
    preset, *changed = name.split(",")
    across = preset in PRESETS and (PRESETS[preset].cross_view or "cross_view=1" in changed)
    if not across or "cross_view=0" in changed or views != 1:
        return name
    return ",".join([f"{preset}/1view", *changed])


def replace_weights(defaults: Free, **overrides: Any) -> Free:
    """The weights of any method, with `overrides` that are not None in place of its own, checked.

    Raises:
        UserError: there is no such field; a number is negative or not finite; a count is below 1; a word is not one of
            those that the field's type names.
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
    """w_mse·consistency + w_cov·covariance + w_svd·singular; the last two over all views together.

    Args:
        step: F and Z are used.
        form: static. The terms whose weight is not 0 are in the program, as `per_dim`, `cross_view` and `top` say.
        weights: float32 [], possibly traced, where `form` has floats.

    Returns:
        float32 [], finite wherever F and Z are and the square of Z's covariance does not overflow.
    """
    return _terms(step.F, step.Z, form, weights)


def loss(F: jax.Array, Z: jax.Array, logits: jax.Array, labels: jax.Array, *, weights: Weights) -> jax.Array:
    """Cross-entropy over all views plus the terms, for arrays as in Step: float32 []."""
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels[:, None]).mean()
    return entropy + _terms(F, Z, weights, weights)


def _terms(F: jax.Array, Z: jax.Array, form: Weights, weights: Weights) -> jax.Array:
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
    """‖F/‖F‖ − Z/‖Z‖‖² per row, mean over rows; divided by D if `per_dim`. Rows of zeros stay zeros.

    Args:
        F: float32 [..., D], the target: it receives no gradient. Its shape broadcasts to Z's.
        Z: float32 [..., D].
        per_dim: mean over the features, as the released code has it, in place of their sum, as in the paper.
    """
    dim = Z.shape[-1]
    F = jnp.broadcast_to(F, Z.shape).reshape(-1, dim)
    return _float64(partial(_consistency, dim if per_dim else 1))(Z.reshape(-1, dim), F)


def covariance(Z: jax.Array) -> jax.Array:
    """(1/D) Σ_{i≠j} C(Z)²_ij with C = (Z − mean)ᵀ(Z − mean)/(B − 1); 0 for a single row.

    For B < D it is ‖(Z − mean)(Z − mean)ᵀ‖²_F less the squared diagonal of C, and C is never formed.

    Args:
        Z: float32 [B, D].
    """
    return _float64(_covariance)(Z)


def singular(Z: jax.Array, top: int = 1) -> jax.Array:
    """−mean of the `top` largest σᵢ over Σσ, with σ the singular values of Z, uncentred; 0 for an all-zero Z.

    With fewer than `top` singular values the mean is over all of them. The gradient is U diag(g) Vᵀ with g = ∂/∂σ, from
    the eigenvectors of the smaller Gram matrix, or from an SVD where σ/σ₁ falls below GRAM. Directions in which σ is
    zero (ZERO) get no gradient: it is finite at any rank.

    Args:
        Z: float32 [B, D].
        top: how many.
    """
    return _float64(partial(_singular, top))(Z)


def _float64(term: Callable[..., tuple[jax.Array, jax.Array]]) -> Callable[..., jax.Array]:
    """A function of float32 arrays, differentiable in the first, of `term`, which takes and gives float64.

    Args:
        term: (Z [..., B, D], *others) -> (value [...], gradient by Z [..., B, D]). It takes leading axes by itself, as
            `vmap` would rewrite the float64 operations outside the context that allows them.
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
    along = (away * unit).sum(-1, keepdims=True)  # the length of Z counts for nothing
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

    def by_gram(_: None) -> tuple[jax.Array, jax.Array]:
        return sigma, q

    def by_svd(_: None) -> tuple[jax.Array, jax.Array]:
        u, s, vt = jnp.linalg.svd(Z, full_matrices=False)
        return s[..., ::-1], (u if wide else vt.mT)[..., ::-1]

    gram = _matmul(Z, Z.mT) if wide else _matmul(Z.mT, Z)
    eigenvalues, q = jnp.linalg.eigh(gram, symmetrize_input=False)  # ascending
    sigma = jnp.sqrt(jnp.maximum(eigenvalues, 0))
    steep = (sigma[..., 0] < GRAM * sigma[..., -1]).any()  # of a batch of Z one decides for all; false for NaN
    sigma, q = jax.lax.cond(steep, by_svd, by_gram, None)

    first = sigma[..., -1:]
    zero = sigma <= ZERO * first  # false for NaN, which thus is not lost
    sigma = jnp.where(zero, 0, sigma)
    total = jnp.where(zero[..., -1:], 1, sigma.sum(-1, keepdims=True))
    k = min(top, sigma.shape[-1])
    value = -sigma[..., -k:].mean(-1, keepdims=True) / total
    largest = jnp.arange(sigma.shape[-1]) >= sigma.shape[-1] - k
    g = -(largest / k + value) / total
    g = jnp.where(zero, 0, g / jnp.where(zero, 1, sigma))[..., None, :]
    inner = _matmul(q * g, q.mT)  # U diag(g/σ) Uᵀ if wide, else V diag(g/σ) Vᵀ
    return value[..., 0], _matmul(inner, Z) if wide else _matmul(Z, inner)
