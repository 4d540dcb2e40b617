"""Supervised classification: softmax or binary cross-entropy, label smoothing, mixup and cutmix on the device."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from nml_jax import ranges
from nml_jax.errors import UserError


def softmax_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the cross-entropy −Σₖ tₖ log softmax(x)ₖ of float32 logits [B, K] and targets [B, K], float32 [B]."""
    return optax.softmax_cross_entropy(logits, targets)


def bce_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the binary cross-entropy, averaged over the classes as in timm: [B, K], [B, K] -> float32 [B]."""
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


LOSSES = {"softmax": softmax_loss, "bce": bce_loss}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised:
    """An Objective over batches of the model's inputs, label int32 [B] and mask float32 [B].

    Mixup and cutmix need images: image [B, H, W, 3], 0 to 255.

    The fields are the keys of the section `objective` of configs/common.py; `form` is its `loss`.
    """

    num_classes: int
    form: str = "softmax"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    switch_prob: float = 0.5
    multi_hot: bool = False

    def loss(
        self, model: Any, params: Any, model_state: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, tuple[jax.Array, jax.Array]]]]:
        """Return the mean loss over the mask of the global batch, the new model state, and the metrics as (sum, count).

        If images are mixed, `accuracy` compares with the label of the unreversed image, whatever its share.
        """
        key_mix, key_model = jax.random.split(key)
        inputs, share = batch, 1.0
        if self.mixup or self.cutmix:
            how = {"mixup": self.mixup, "cutmix": self.cutmix, "switch_prob": self.switch_prob}
            image, share = mix(key_mix, batch["image"], **how)
            inputs = {**batch, "image": image}
        outputs, new_state = model.apply(params, model_state, inputs, train=True, key=key_model)
        logits, label, mask = outputs["logits"], batch["label"], batch["mask"]
        losses = LOSSES[self.form](logits, self.targets(label, share)) * mask
        correct = (logits.argmax(-1) == label) * mask
        count = mask.sum()
        metrics = {"loss": (losses.sum(), count), "accuracy": (correct.sum(), count)}
        return losses.sum() / count, (new_state, metrics)

    def targets(self, label: jax.Array, share: jax.Array | float) -> jax.Array:
        """Return targets float32 [B, K]: `share` of each image's own class, and the rest of its partner's (see `mix`).

        With `multi_hot`, every class with any share has a target of 1 (arXiv 2110.00476). Smoothing ε turns a target t
        into t(1−ε) + ε/K, as in timm, for BCE too.
        """
        own, partner = (jax.nn.one_hot(x, self.num_classes) for x in (label, label[::-1]))
        targets = share * own + (1 - share) * partner
        if self.multi_hot:
            targets = (targets > 0).astype(own.dtype)
        return targets * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes


def check_ranges(config: ConfigDict) -> None:
    """Refuse numbers of the section `objective` that are out of range."""
    ranges.require_share("objective", config, "label_smoothing", "switch_prob")
    ranges.require_at_least(0, "objective", config, "mixup", "cutmix")


def make(config: ConfigDict, *, num_classes: int) -> Supervised:
    """Make the objective of the section `objective` of configs/common.py.

    Raises:
        UserError: a value is out of range.
    """
    if config.loss not in LOSSES:
        raise UserError(f"there is no objective.loss={config.loss!r}", f"choose one of {', '.join(LOSSES)}")
    check_ranges(config)
    if config.multi_hot and config.loss != "bce":
        raise UserError(f"objective.multi_hot needs objective.loss=bce, not {config.loss}", "set objective.loss=bce")
    return Supervised(
        num_classes=num_classes,
        form=config.loss,
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
        cutmix=config.cutmix,
        switch_prob=config.switch_prob,
        multi_hot=config.multi_hot,
    )


def mix(
    key: jax.Array, image: jax.Array, *, mixup: float, cutmix: float, switch_prob: float
) -> tuple[jax.Array, jax.Array]:
    """Mix every image with its partner in the reversed batch, as in timm's mode "batch".

    mixup (arXiv 1710.09412) adds λ of the image to 1−λ of the partner; cutmix (arXiv 1905.04899) pastes a box of the
    partner. The whole global batch shares one draw of λ ~ Beta(a, a), of the box, and, if both are on, of the choice
    between the two.

    Args:
        key: PRNG key.
        image: [B, H, W, C], uint8 or float, in any unit.
        mixup: a of mixup; 0 turns it off.
        cutmix: a of cutmix; 0 turns it off. One of the two must be on.
        switch_prob: probability of cutmix if both are on.

    Returns:
        The mixed images, float32 [B, H, W, C] in the same unit, and the share of its own image in each: λ for mixup;
        for cutmix, one minus the share of pixels in the box after clipping.
    """
    key_switch, key_share, key_box = jax.random.split(key, 3)
    is_cutmix = jax.random.bernoulli(key_switch, switch_prob if mixup and cutmix else float(cutmix > 0))
    a = jnp.where(is_cutmix, cutmix, mixup)
    share = jax.random.beta(key_share, a, a)
    height, width = image.shape[1:3]
    outside = ~draw_box(key_box, height, width, 1 - share)
    weight = jnp.where(is_cutmix, outside, share)[..., None]  # of the own image, pixel by pixel
    share = jnp.where(is_cutmix, outside.mean(), share)
    # Reverse before the conversion: the partner is on another device, and its bytes are a quarter of its floats.
    image, partner = image.astype(jnp.float32), image[::-1].astype(jnp.float32)
    return image * weight + partner * (1 - weight), share


def draw_box(key: jax.Array, height: int, width: int, area: jax.Array) -> jax.Array:
    """Draw a box, as bool [height, width].

    It has the image's aspect ratio and a share `area` of its pixels, with sides rounded down. Its centre is on any
    pixel with equal probability, and it is clipped at the border.
    """

    def side(key: jax.Array, length: int) -> jax.Array:
        cut = jnp.floor(length * jnp.sqrt(area))
        start = jax.random.randint(key, (), 0, length) - cut // 2
        pixels = jnp.arange(length)
        return (pixels >= start) & (pixels < start + cut)

    key_y, key_x = jax.random.split(key)
    return side(key_y, height)[:, None] & side(key_x, width)
