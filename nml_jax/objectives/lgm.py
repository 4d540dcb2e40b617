"""LGM, Local Gradient Matching (arXiv 2502.06604).

Only the abstract of the paper could be read. The loss makes the head of a downstream task better at denoising: it
aligns the gradients with respect to normal and to perturbed features, without knowledge of the parameters of the model
that made them. Everything else is our reading, unconfirmed: what is perturbed and how, which gradient, which distance,
the weight.

    t̂ = t + γ·n, n Gaussian;   g(t) = ∂ Σ ℓ/∂t, ℓ the loss of a row;   penalty = w · mean ‖g(t) − g(t̂)‖₂

t is the head's input. The sum is over the batch, so that the size of a row's gradient does not depend on B. In
training, it includes BatchNorm: like the gradient of the parameters, g contains a row's effect on the others through
the batch's statistics. Both gradients depend on the head, and neither is held fixed.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nml_jax.objectives.step import Step, compute_losses


class Weights(NamedTuple):
    """Weight of the term, 0 to leave it out, and how features are perturbed. All values are our choice."""

    match: float = 0.1
    noise: float = 0.1  # γ
    scale: Literal["feature", "one"] = "feature"  # std of n: that of each feature over the batch, or 1
    squared: bool = False  # mean of the squared distances instead of the distances


def penalty(step: Step, form: Weights, weights: Weights) -> jax.Array:
    """Return w · mean over rows and views of ‖g(t) − g(t̂)‖₂, or of its square.

    Args:
        step: its F, labels, head and key are used.
        form: static.
        weights: the floats of `form` as float32 [], possibly traced.

    Returns:
        float32 []. Rows with equal gradients add 0 and have no gradient.
    """
    if not form.match:
        return jnp.zeros(())

    def loss(F: jax.Array) -> jax.Array:
        return compute_losses(step.head(F)[1], step.labels).sum()

    gradient = jax.grad(loss)
    square = ((gradient(step.F) - gradient(perturb(step, weights.noise, form.scale))) ** 2).sum(-1)
    if form.squared:
        return weights.match * square.mean()
    apart = square > 0  # selected before and after the root, so that the gradient at 0 is 0 and not NaN
    return weights.match * jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0).mean()


def perturb(step: Step, noise: jax.Array | float, scale: str) -> jax.Array:
    """Return F + noise·n, float32 [B, V, D], with Gaussian n.

    The std of n is 1 for the scale "one", and that of each feature over the batch for "feature". The draw depends only
    on `step.key` and the shape of F.
    """
    n = jax.random.normal(step.key, step.F.shape, jnp.float32)
    return step.F + noise * n * (step.F.std((0, 1)) if scale == "feature" else 1)
