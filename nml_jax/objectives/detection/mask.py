"""The losses of Mask R-CNN: those of Faster R-CNN, and that of the masks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nml_jax.objectives.detection import faster
from nml_jax.objectives.detection.losses import binary_cross_entropy
from nml_jax.objectives.detection.totals import Metrics, add_terms


class Mask(faster.Faster):
    """An Objective over batches of `models.detection`; the fields are those of `Faster`."""

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the sum of Faster R-CNN's losses and the binary cross-entropy per pixel of positive regions' masks."""
        out, state = model.apply(params, model_state, batch, train=True, key=key)
        positive = out["mask_index"] >= 0
        losses = binary_cross_entropy(out["mask_logits"], out["mask_target"]).mean((2, 3)) * positive
        terms = self.terms(out) | {"mask_loss": losses.sum() / jnp.maximum(positive.sum(), 1)}
        return add_terms(terms, state, faster.count_regions(out))


def make(config: Any) -> Mask:
    """Make the objective from the section `detect`."""
    return Mask(config.rpn.beta, config.rpn.per, config.rpn.samples, config.roi.beta)
