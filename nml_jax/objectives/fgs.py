"""FGS: Feature Geometry Stabilization ("Stabilizing Feature Geometry in Noisy Pretrained Models", CVPR 2026).

Of the paper only the abstract could be read: noise in pre-training rotates the dominant subspace of the features even
where their spectral energy hardly changes; against that work perturbation consistency, variance-activation
regularisation and feature consistency distillation together. What the three are is our reading, unconfirmed, and so are
the weights:

- consistency: Z of perturbed features against Z, which is held fixed, as squared distance of unit rows;
- variance: the hinge of VICReg (arXiv 2105.04906, eq. 1) on every feature's standard deviation over the batch, against
  `target` times that of F's features (their root mean square), so that the scale of the features does not matter;
- distillation: Z against F, NMTune's consistency.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nml_jax.objectives.lgm import perturb
from nml_jax.objectives.nmtune import consistency
from nml_jax.objectives.step import Step

EPS = 1e-4  # VICReg's, in units of the variance that is held against: the slope of the root at 0 stays finite


class Weights(NamedTuple):
    """Weights of the three terms, 0 to leave one out, and their forms. All values are our choice."""

    consistency: float = 0.1
    variance: float = 0.1
    distillation: float = 0.1
    noise: float = 0.1  # of the perturbation, in units of `scale`
    scale: Literal["feature", "one"] = "feature"  # std of each feature over the batch, or 1
    target: float = 1.0  # standard deviation of a feature of Z, over that of F's


def penalty(step: Step, form: Weights, weights: Weights) -> jax.Array:
    """The weighted sum of the three terms.

    Args:
        step: F, Z, head and key are used.
        form: static.
        weights: float32 [], possibly traced, where `form` has floats.

    Returns:
        float32 [].
    """
    total = jnp.zeros(())
    if form.consistency:
        total += weights.consistency * consistency(step.Z, step.head(perturb(step, weights.noise, form.scale))[0])
    if form.variance:
        total += weights.variance * variance(step.F, step.Z, weights.target)
    if form.distillation:
        total += weights.distillation * consistency(step.F, step.Z)
    return total


def variance(F: jax.Array, Z: jax.Array, target: jax.Array | float = 1.0) -> jax.Array:
    """Mean over features of max(0, target − std(Z)/s), s² the mean variance of F's features; 0 where s is 0.

    Args:
        F: float32 [B, V, D]; it receives no gradient.
        Z: float32 [B, V, D]. Its variance is over rows and views, with B·V − 1 in the denominator.
        target: at least 0.
    """
    F, Z = (x.reshape(-1, x.shape[-1]) for x in (jax.lax.stop_gradient(F), Z))
    if len(Z) == 1:
        return jnp.zeros(())
    mean = F.var(0, ddof=1).mean()
    varies = mean > 0
    ratio = Z.var(0, ddof=1) / jnp.where(varies, mean, 1)
    return jnp.where(varies, jax.nn.relu(target - jnp.sqrt(ratio + EPS)).mean(), 0)
