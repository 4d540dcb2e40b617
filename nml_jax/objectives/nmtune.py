"""NMTune: cross-entropy plus three regularisers of a head's features Z and its frozen input F.

The terms are those of arXiv 2309.17002, section 4. The consistency term keeps Z near F, the covariance term
decorrelates the features of Z, and the singular term rewards a dominant singular value. The total is CE +
w_mse·consistency + w_cov·covariance + w_svd·singular. The paper and the released code differ in weights and forms;
PRESETS has both, and each term alone.

Every term computes its value and its gradient by a rule of its own and returns both as float32. On CPUs and GPUs the
rule runs in float64 (nmtune_double.py): exact to about 1e-6 for every input, for a few per cent of a step's time. In
plain float32, a gradient can be wrong from the fourth digit on, or entirely: if a feature has 10⁶ times the variance of
the others, if a mean is 100 standard deviations, if Z is close to F, or if rows are two views of one image. A TPU only
emulates float64 and cannot lower its SVD: there the rule is a compensated one in float32 (nmtune_single.py), whose
gradients are within 1e-4 of their largest entry where σmin/σ₁ is at least 0.05, and finite everywhere.
"""

import math
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nml_jax.errors import UserError
from nml_jax.objectives import nmtune_double, nmtune_single
from nml_jax.objectives.step import Step

SINGLE = ("tpu",)  # platforms on which the terms are computed in float32; tests add the CPU


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
    # One term of `paper` alone, to see which does what.
    "mse": Weights(mse=0.01),
    "cov": Weights(cov=0.01),
    "svd": Weights(svd=0.01),
}

Free = TypeVar("Free", bound=NamedTuple)


def resolve_weights(preset: str | Weights | None, views: int, **overrides: Any) -> tuple[Weights, str]:
    """Return the weights of a preset, and their name in tables, such as "paper", "code/1view" or "paper,svd=0.1".

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
    total = jnp.zeros((), jnp.float32)
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
    return _differentiate("consistency", dim if per_dim else 1)(Z.reshape(-1, dim), F)


def covariance(Z: jax.Array) -> jax.Array:
    """Return (1/D) Σ_{i≠j} C(Z)²_ij with C = (Z − mean)ᵀ(Z − mean)/(B − 1); 0 for a single row.

    For B < D, it is computed as ‖(Z − mean)(Z − mean)ᵀ‖²_F less the squared diagonal of C, without C itself.

    Args:
        Z: float32 [B, D].
    """
    return _differentiate("covariance")(Z)


def singular(Z: jax.Array, top: int = 1) -> jax.Array:
    """Return −(mean of the `top` largest σᵢ) / Σσ, with σ the singular values of Z, uncentred; 0 for an all-zero Z.

    With fewer than `top` singular values, the mean is over all of them. The gradient is U diag(g) Vᵀ with g = ∂/∂σ,
    from the eigenvectors of the smaller Gram matrix, or, in float64, from an SVD if any σ/σ₁ is below 1e-5. Directions
    whose σ/σ₁ is below 1e-12 (float32: 3e-4) get no gradient, so that it is finite at any rank.

    Args:
        Z: float32 [B, D].
        top: how many values to average.
    """
    return _differentiate("singular", top)(Z)


def _differentiate(rule: str, *static: int) -> Callable[..., jax.Array]:
    """Make a function of float32 arrays, differentiable in the first, from a rule for value and gradient.

    Args:
        rule: its name in nmtune_double.py and nmtune_single.py. It is called as `rule(*static, Z [..., B, D], *others)`
            and must take leading axes itself, because `vmap` would rewrite the float64 operations outside the context
            that allows them.
    """

    def run_double(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.enable_x64(True):
            value, gradient = getattr(nmtune_double, rule)(*static, *(x.astype(jnp.float64) for x in arrays))
            return value.astype(jnp.float32), gradient.astype(jnp.float32)

    def run_single(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.enable_x64(False):
            return getattr(nmtune_single, rule)(*static, *arrays)

    @jax.custom_batching.custom_vmap
    def both(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.platform_dependent(*arrays, default=run_double, **dict.fromkeys(SINGLE, run_single))

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
