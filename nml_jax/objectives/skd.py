"""SKD: terms that keep up the skewness and kurtosis of features and logits.

The method is that of "From Pretraining to Pathology" (NeurIPS 2025), of which only the abstract could be read. Noise in
pre-training lowers the skewness and the kurtosis of features and logits, which flattens the representation. Two scalar
regularisers beside the task loss restore both. Everything else is our reading, unconfirmed: the axis of the moments,
the targets, the form of the regularisers, the weights.

    s = mean(x̂³), k = mean(x̂⁴) of x̂ = (x − mean)/std,
    penalty = w_skew · mean (max(0, 1 − s²/skew_target²))² + w_kurtosis · mean (max(0, 1 − k/kurtosis_target))²

Both terms are in [0, 1] for any scale of x and continuously differentiable. They keep the sign of the skewness, and are
0 for an x that is already as skewed or as peaked as the target.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nml_jax.objectives.step import Step

CONSTANT = 1e-5  # std over |mean|; below this, x is a constant with rounding errors, whose moments mean nothing


class Weights(NamedTuple):
    """Weights of the two terms, 0 to leave one out, and their forms. All values are our choice."""

    skew: float = 0.1
    kurtosis: float = 0.1
    skew_target: float = 1.0  # |s|; 0 for a symmetric distribution, 2 for an exponential one
    kurtosis_target: float = 6.0  # not in excess of 3: 3 for a Gaussian, 6 for a Laplace distribution
    axis: Literal["row", "batch"] = "row"  # moments of each row over its features, or of each feature over the rows
    logits: bool = True  # the terms of the logits are added to those of Z


def penalty(step: Step, form: Weights, weights: Weights) -> jax.Array:
    """Return the penalty above of Z, and, with `form.logits`, of the logits too.

    A constant x has s = k = 0 and no gradient. An x of two values always has k = 1 and s = 0, and so no gradient
    either.

    Args:
        step: its Z and logits are used.
        form: static.
        weights: the floats of `form` as float32 [], possibly traced. A target of 0 turns its term off.

    Returns:
        float32 [], finite if Z and the logits are finite and their squares do not overflow.
    """
    total = jnp.zeros(())
    for x in (step.Z, step.logits) if form.logits else (step.Z,):
        x = x.reshape(-1, x.shape[-1])
        skewness, kurtosis = compute_moments(x if form.axis == "row" else x.T)
        if form.skew and form.skew_target:
            total += weights.skew * (jax.nn.relu(1 - (skewness / weights.skew_target) ** 2) ** 2).mean()
        if form.kurtosis and form.kurtosis_target:
            total += weights.kurtosis * (jax.nn.relu(1 - kurtosis / weights.kurtosis_target) ** 2).mean()
    return total


def compute_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the standardised third and fourth moments over the last axis, float32 [...]; 0 for a constant x.

    Args:
        x: float32 [..., N].
    """
    mean = x.mean(-1, keepdims=True)
    x = x - mean
    x = x - x.mean(-1, keepdims=True)  # again, because rounding of a large mean leaves a rest
    variance = (x * x).mean(-1, keepdims=True)
    varies = variance > jnp.maximum((CONSTANT * mean) ** 2, 1e-30)
    x = x * jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1)), 0)
    return (x**3).mean(-1), (x**4).mean(-1)
