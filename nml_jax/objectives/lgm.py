"""LGM, Local Gradient Matching (arXiv 2502.06604).

Of the paper only the abstract could be read: the loss makes the head of a downstream task better at denoising by
aligning the gradients with respect to normal and to perturbed features, without knowing the parameters of the model
that made them. All else here is our reading, unconfirmed: what is perturbed and how, which gradient, which distance,
the weight.

    t̂ = t + γ·n, n Gaussian;   g(t) = ∂ Σ ℓ/∂t, ℓ the cross-entropy of a row;   penalty = w · mean ‖g(t) − g(t̂)‖₂

t is the head's input. The sum is over the batch, so that the size of a row's gradient does not depend on B. In training
BatchNorm takes part in it: g holds what a row does to the others through the batch's statistics, as the gradient of
the parameters does. Both gradients move with the head, neither is held fixed.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nml_jax.objectives.step import Step


class Weights(NamedTuple):
    """Weight of the term, 0 to leave it out, and how features are perturbed. All values are our choice."""

    match: float = 0.1
    noise: float = 0.1  # γ
    scale: Literal["feature", "one"] = "feature"  # std of n: that of each feature over the batch, or 1
    squared: bool = False  # mean of the squared distances in place of the distances


def penalty(step: Step, form: Weights, weights: Weights) -> jax.Array:
    """w · mean over rows and views of ‖g(t) − g(t̂)‖₂, or of its square.

    Args:
        step: F, labels, head and key are used.
        form: static.
        weights: float32 [], possibly traced, where `form` has floats.

    Returns:
        float32 []; 0, and without a gradient, where both gradients are equal.
    """
    if not form.match:
        return jnp.zeros(())

    def entropy(F: jax.Array) -> jax.Array:
        logits = step.head(F)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, step.labels[:, None]).sum()

    gradient = jax.grad(entropy)
    square = ((gradient(step.F) - gradient(perturb(step, weights.noise, form.scale))) ** 2).sum(-1)
    if form.squared:
        return weights.match * square.mean()
    apart = square > 0  # selected on both sides of the root, so that the gradient at 0 is 0 and not NaN
    return weights.match * jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0).mean()


def perturb(step: Step, noise: jax.Array | float, scale: str) -> jax.Array:
    """F + noise·n, float32 [B, V, D], with n Gaussian of std 1 ("one") or of each feature's over the batch ("feature").

    The draw depends on `step.key` and the shape of F alone.
    """
    n = jax.random.normal(step.key, step.F.shape, jnp.float32)
    return step.F + noise * n * (step.F.std((0, 1)) if scale == "feature" else 1)
