"""The loss of RetinaNet: focal on the classes of all anchors, L1 on the deltas of the positive ones."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nml_jax.objectives.detection.assign import IGNORED
from nml_jax.objectives.detection.losses import focal, smooth_l1
from nml_jax.objectives.detection.totals import Metrics, add_terms


@dataclasses.dataclass(frozen=True)
class Retina:
    """An Objective over batches of `models.detection`.

    beta: of the smooth L1 loss; 0: L1.
    per: divide by the positives of the global "batch", or by each "image"'s and average over the images.
    """

    beta: float
    per: str

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the sum of both losses, each divided by the number of positive anchors."""
        out, state = model.apply(params, model_state, batch, train=True, key=key)
        logits, positive = out["logits"], out["index"] >= 0
        classes = jax.nn.one_hot(jnp.where(positive, out["target_class"], -1), logits.shape[-1], dtype=logits.dtype)
        used = out["index"] != IGNORED
        class_losses = (focal(logits, classes) * used[..., None]).sum((1, 2))
        box_losses = (smooth_l1(out["deltas"] - out["target_deltas"], self.beta) * positive[..., None]).sum((1, 2))
        count = positive.sum(1)
        if self.per == "batch":
            terms = {"class_loss": class_losses.sum(), "box_loss": box_losses.sum()}
            terms = {name: x / jnp.maximum(count.sum(), 1) for name, x in terms.items()}
        else:
            terms = {"class_loss": class_losses, "box_loss": box_losses}
            terms = {name: (x / jnp.maximum(count, 1)).mean() for name, x in terms.items()}
        return add_terms(terms, state, {"positives": (count.sum(), len(count))})


def make(config: Any) -> Retina:
    """Make the objective from the section `detect`."""
    return Retina(config.retina.beta, config.retina.per)
