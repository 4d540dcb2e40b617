"""FGS: Feature Geometry Stabilization ("Stabilizing Feature Geometry in Noisy Pretrained Models", CVPR 2026).

Only the abstract of the paper could be read. Noise in pre-training rotates the dominant subspace of the features, even
if their spectral energy hardly changes. Perturbation consistency, variance-activation regularisation and feature
consistency distillation counteract this together. The definitions of the three are our reading, unconfirmed, and so are
the weights:

- consistency: the squared distance of unit rows between Z of perturbed features and Z, which gets no gradient;
- variance: the hinge of VICReg (arXiv 2105.04906, eq. 1) on every feature's standard deviation over the batch. Its
  target is `target` times that of F's features (their root mean square), so that the scale does not matter;
- distillation: NMTune's consistency of Z with F.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nml_jax.objectives.lgm import perturb
from nml_jax.objectives.nmtune import consistency
from nml_jax.objectives.step import Step

EPS = 1e-4  # VICReg's, in units of the target variance; it keeps the slope of the root at 0 finite


class Weights(NamedTuple):
    """Weights of the three terms, 0 to leave one out, and their forms. All values are our choice."""

    consistency: float = 0.1
    variance: float = 0.1
    distillation: float = 0.1
    noise: float = 0.1  # size of the perturbation, in units of `scale`
    scale: Literal["feature", "one"] = "feature"  # std of each feature over the batch, or 1
    target: float = 1.0  # standard deviation of a feature of Z, relative to F's


def penalty(step: Step, form: Weights, weights: Weights) -> jax.Array:
    """Return the weighted sum of the three terms.

    Args:
        step: its F, Z, head and key are used.
        form: static.
        weights: the floats of `form` as float32 [], possibly traced.

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
    """Return the mean over features of max(0, target − std(Z)/s), with s² the mean variance of F's features.

    It is 0 if s is 0.

    Args:
        F: float32 [B, V, D]; it gets no gradient.
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
