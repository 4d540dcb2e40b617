"""The losses of Faster R-CNN: those of its proposals, and those of its regions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nml_jax.objectives.detection.assign import IGNORED
from nml_jax.objectives.detection.losses import binary_cross_entropy, smooth_l1
from nml_jax.objectives.detection.totals import Metrics, add_terms


@dataclasses.dataclass(frozen=True)
class Faster:
    """An Objective over batches of `models.detection`; the fields are keys of `detect.rpn` and `detect.roi`."""

    rpn_beta: float
    rpn_per: str
    rpn_samples: int
    roi_beta: float

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the sum of the four losses of a batch."""
        out, state = model.apply(params, model_state, batch, train=True, key=key)
        return add_terms(self.terms(out), state, count_regions(out))

    def terms(self, out: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the losses by name."""
        return self.rpn_terms(out) | self.roi_terms(out)

    def rpn_terms(self, out: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return binary cross-entropy over sampled anchors, and smooth L1 over the positive ones, per sample."""
        used, positive = out["rpn_index"] != IGNORED, out["rpn_index"] >= 0
        class_loss = binary_cross_entropy(out["rpn_logits"], positive.astype(out["rpn_logits"].dtype)) * used
        box_loss = smooth_l1(out["rpn_deltas"] - out["rpn_target"], self.rpn_beta) * positive[..., None]
        count = used.sum() if self.rpn_per == "sampled" else self.rpn_samples * len(used)
        count = jnp.maximum(count, 1)
        return {"rpn_class_loss": class_loss.sum() / count, "rpn_box_loss": box_loss.sum() / count}

    def roi_terms(self, out: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return cross-entropy over the sampled regions, and smooth L1 over the positive ones, both per sample."""
        used, positive = out["roi_index"] != IGNORED, out["roi_index"] >= 0
        class_loss = optax.softmax_cross_entropy_with_integer_labels(out["class_logits"], out["target_class"]) * used
        own = jnp.where(positive, out["target_class"], 0)[..., None, None]
        deltas = jnp.take_along_axis(out["class_deltas"], own, axis=2)[..., 0, :]
        box_loss = smooth_l1(deltas - out["target_deltas"], self.roi_beta) * positive[..., None]
        count = jnp.maximum(used.sum(), 1)
        return {"class_loss": class_loss.sum() / count, "box_loss": box_loss.sum() / count}


def count_regions(out: dict[str, jax.Array]) -> Metrics:
    """Return the positive anchors and regions of an image as metrics."""
    names = {"rpn_positives": "rpn_index", "positives": "roi_index"}
    return {name: ((out[key] >= 0).sum(), len(out[key])) for name, key in names.items()}


def make(config: Any) -> Faster:
    """Make the objective from the section `detect`."""
    return Faster(config.rpn.beta, config.rpn.per, config.rpn.samples, config.roi.beta)
