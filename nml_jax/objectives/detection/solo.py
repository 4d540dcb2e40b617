"""The losses of SOLOv2: Dice on the masks of positive cells, focal on the classes of all cells."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nml_jax.objectives.detection.losses import focal
from nml_jax.objectives.detection.totals import Metrics, add_terms


@dataclasses.dataclass(frozen=True)
class Solo:
    """An Objective over batches of `models.detection`. `weight` is that of the mask loss."""

    weight: float

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the sum of both losses, divided by the number of positive cells (plus 1 for the classes)."""
        out, state = model.apply(params, model_state, batch, train=True, key=key)
        dice = compute_dice(jax.nn.sigmoid(out["masks"]) * out["inside"][:, None], out["painted"]) * out["used"]
        logits, positive = out["logits"], out["class"] >= 0
        classes = jax.nn.one_hot(out["class"], logits.shape[-1], dtype=logits.dtype)
        count = positive.sum()
        terms = {
            "mask_loss": self.weight * dice.sum() / jnp.maximum(count, 1),
            "class_loss": focal(logits, classes).sum() / (count + 1),
        }
        counts = {"positives": (count, len(positive)), "dropped": (out["dropped"].sum(), len(positive))}
        return add_terms(terms, state, counts)


def compute_dice(p: jax.Array, t: jax.Array) -> jax.Array:
    """Return 1 − 2Σpt / (Σp² + Σt² + 0.002) of probabilities and targets of 0 or 1, [..., h, w] -> [...]."""
    t = t.astype(p.dtype)
    both, own, there = ((x * y).sum((-2, -1)) for x, y in ((p, t), (p, p), (t, t)))
    return 1 - 2 * both / (own + there + 0.002)


def make(config: Any) -> Solo:
    """Make the objective from the section `detect`."""
    return Solo(config.solo.weight)
