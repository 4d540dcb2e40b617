"""Fine-tuning: cross-entropy, and on request NMTune's terms on features that are trained too.

Z is the input of the classifier. Below a linear head, it is the encoder's features ("NMTune + LoRA" of arXiv
2403.06869, which has the covariance and singular-value terms); with NMTune's MLP, it is the output of the MLP. There is
no frozen input for the consistency term. If it is asked for, the features of the initial encoder take the place of F in
eq. 2 of arXiv 2309.17002 (our reading).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nml_jax.errors import UserError
from nml_jax.objectives import nmtune


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning:
    """An Objective over batches of the model's inputs, label int32 [B] and mask float32 [B].

    The outputs of the model hold "logits" float32 [B, K], "features" float32 [B, D] and, for consistency,
    "initial_features" float32 [B, D]. The terms are over all rows of the batch; in training, all masks are 1.

    mse, cov, svd: weights of the three terms; 0 leaves a term out.
    per_dim, top: forms of the consistency and of the singular-value term, see `nmtune`.
    """

    mse: float = 0.0
    cov: float = 0.0
    svd: float = 0.0
    per_dim: bool = False
    top: int = 1

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, tuple[jax.Array, jax.Array]]]]:
        """Return cross-entropy plus the terms; the metrics hold the cross-entropy and each term without its weight."""
        outputs, new_state = model.apply(params, model_state, batch, train=True, key=key)
        logits, label, mask, Z = outputs["logits"], batch["label"], batch["mask"], outputs["features"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label) * mask
        correct = (logits.argmax(-1) == label) * mask
        count, one = mask.sum(), jnp.float32(1)
        total = losses.sum() / count
        metrics = {"cross_entropy": (losses.sum(), count), "accuracy": (correct.sum(), count)}
        terms: dict[str, tuple[float, jax.Array]] = {}
        if self.mse:
            initial = outputs["initial_features"]
            terms["mse"] = self.mse, nmtune.consistency(initial, Z, per_dim=self.per_dim)
        if self.cov:
            terms["cov"] = self.cov, nmtune.covariance(Z)
        if self.svd:
            terms["svd"] = self.svd, jnp.asarray(nmtune.singular(Z, self.top))
        for name, (weight, value) in terms.items():
            total += weight * value
            metrics[name] = (value, one)
        return total, (new_state, metrics | {"loss": (total, one)})


def make(preset: str, *, consistency: bool = False, **overrides: Any) -> FineTuning:
    """Make the objective of "none", or of a key of nmtune.PRESETS, whose consistency term is optional.

    Args:
        overrides: values in place of the preset's, by field; None keeps the preset's.

    Raises:
        UserError: there is no such preset, or a value is out of range.
    """
    if preset == "none":
        return FineTuning()
    if preset not in nmtune.PRESETS:
        raise UserError(f"there are no terms {preset!r}", f"choose one of none, {', '.join(nmtune.PRESETS)}")
    weights = nmtune.replace_weights(nmtune.PRESETS[preset], **overrides)
    mse = weights.mse if consistency else 0.0
    return FineTuning(mse=mse, cov=weights.cov, svd=weights.svd, per_dim=weights.per_dim, top=weights.top)


def preset_label(terms: str, **overrides: Any) -> str | None:
    """Return the name of the terms in rows and folders, as "paper" or "paper,svd=0.1"; None for "none"."""
    return None if terms == "none" else nmtune.name_preset(terms, **overrides)
