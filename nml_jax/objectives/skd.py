"""SKD: skewness and kurtosis of features and logits held up ("From Pretraining to Pathology", NeurIPS 2025).

Of the paper only the abstract could be read: noise in pre-training lowers the skewness and the kurtosis of features and
logits, which flattens the representation; two scalar regularisers beside the task loss restore both. All else here is
our reading, unconfirmed: over what the moments are taken, the targets, the form of the regularisers, the weights.

    s = mean(x̂³), k = mean(x̂⁴) of x̂ = (x − mean)/std,
    penalty = w_skew · mean (max(0, 1 − s²/skew_target²))² + w_kurtosis · mean (max(0, 1 − k/kurtosis_target))²

Both lie in [0, 1] whatever the scale of x, are continuously differentiable, keep the sign of the skewness, and leave
alone what is as skewed or as peaked as the target already.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nml_jax.objectives.step import Step

CONSTANT = 1e-5  # std over |mean|: less is what rounding leaves of a constant, whose moments mean nothing


class Weights(NamedTuple):
    """Weights of the two terms, 0 to leave one out, and what they are taken of. All values are our choice."""

    skew: float = 0.1
    kurtosis: float = 0.1
    skew_target: float = 1.0  # |s|; 0 for a symmetric distribution, 2 for an exponential one
    kurtosis_target: float = 6.0  # not in excess of 3: 3 for a Gaussian, 6 for a Laplace distribution
    axis: Literal["row", "batch"] = "row"  # moments of each row over its features, or of each feature over the rows
    logits: bool = True  # the terms of the logits are added to those of Z


def penalty(step: Step, form: Weights, weights: Weights) -> jax.Array:
    """The penalty above of Z, and of the logits where `form.logits` says so.

    What does not vary has s = k = 0, and no gradient. With two values k = 1 and s = 0 whatever they are: no gradient.

    Args:
        step: Z and logits are used.
        form: static.
        weights: float32 [], possibly traced, where `form` has floats. A target of 0 is met by anything.

    Returns:
        float32 [], finite wherever Z and the logits are and their squares do not overflow.
    """
    total = jnp.zeros(())
    for x in (step.Z, step.logits) if form.logits else (step.Z,):
        x = x.reshape(-1, x.shape[-1])
        skewness, kurtosis = moments(x if form.axis == "row" else x.T)
        if form.skew and form.skew_target:
            total += weights.skew * (jax.nn.relu(1 - (skewness / weights.skew_target) ** 2) ** 2).mean()
        if form.kurtosis and form.kurtosis_target:
            total += weights.kurtosis * (jax.nn.relu(1 - kurtosis / weights.kurtosis_target) ** 2).mean()
    return total


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Standardised third and fourth moments over the last axis, float32 [...]; 0 where x is constant (CONSTANT).

    Args:
        x: float32 [..., N].
    """
    mean = x.mean(-1, keepdims=True)
    x = x - mean
    x = x - x.mean(-1, keepdims=True)  # once more, for what rounding of a large mean has left
    variance = (x * x).mean(-1, keepdims=True)
    varies = variance > jnp.maximum((CONSTANT * mean) ** 2, 1e-30)
    x = x * jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1)), 0)
    return (x**3).mean(-1), (x**4).mean(-1)
