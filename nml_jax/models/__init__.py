"""The table of image models, and `build`, which turns the `model` section of a config into a pair of pure functions.

This folder is the only one that imports flax: outside it a model is `init`, `apply` and nested dicts of arrays.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.errors import UserError
from nml_jax.models.resnet import ResNet
from nml_jax.models.vit import ViT

Tree = dict[str, Any]

# Fields given here are the variant's; the other fields, and those that a config sets, come from `config.model`.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(ResNet, blocks=(3, 4, 23, 3), bottleneck=True),
    "vit_ti": partial(ViT, dim=192, depth=12, heads=3),
    "vit_s": partial(ViT, dim=384, depth=12, heads=6),
    "vit_b": partial(ViT, dim=768, depth=12, heads=12),
    "vit_l": partial(ViT, dim=1024, depth=24, heads=16),
}


class Model(NamedTuple):
    """A model as two pure functions; both work under `jax.jit`, `jax.eval_shape` and `jax.grad`.

    init: `(key, batch_spec) -> (params, model_state)`. `batch_spec["image"]` is anything with a shape [B, H, W, 3].
        `params` is a nested dict of float32 arrays, `model_state` is {"batch_stats": ...} (ResNet) or {} (ViT).
    apply: `(params, model_state, batch, *, train, key) -> (outputs, new_model_state)`. `batch["image"]` is uint8 or
        float [B, H, W, 3] with values in 0..255; it is normalised here, on the device. `outputs` holds "features"
        (float32 [B, D], pooled, before the head), "logits" (float32 [B, num_classes]), every layer as a pooled float32
        [B, D] ("stage1", "block0", ...) and as it is ("stage1_map", "block0_tokens", ...); XLA removes what nobody
        uses. `key` may be None where nothing is drawn: not `train`, or all rates 0. Dropout masks depend on `key` and
        the position in the global batch only.
    """

    init: Callable[..., tuple[Tree, Tree]]
    apply: Callable[..., tuple[dict[str, jax.Array], Tree]]


def build(config: Any, *, num_classes: int, image_size: int) -> Model:
    """The model that `config`, the `model` section of a (frozen or plain) ConfigDict, describes.

    Args:
        config: see `configs/common.py`; None under a key means the variant's value.
        num_classes: width of the head.
        image_size: height and width in pixels. A ResNet accepts other sizes in `apply`, a ViT does not.

    Raises:
        UserError: an unknown model or value, or sizes that do not fit each other.
    """
    _check(config)
    variant = MODELS[config.name]
    fields = {field.name for field in dataclasses.fields(variant.func)} - {"name"}  # Linen's own `name` is another
    values = {**config, "num_classes": num_classes, "image_size": image_size, "dtype": jnp.dtype(config.dtype)}
    module = variant(**{key: value for key, value in values.items() if key in fields and value is not None})
    mean, std = np.asarray(config.mean, np.float32), np.asarray(config.std, np.float32)

    def init(key: jax.Array, batch_spec: Mapping[str, Any]) -> tuple[Tree, Tree]:
        image = jnp.zeros((1, *batch_spec["image"].shape[1:]))
        variables = jax.jit(partial(module.init, train=False))({"params": key}, image)
        return variables.pop("params"), variables

    def apply(
        params: Tree, model_state: Tree, batch: Mapping[str, Any], *, train: bool, key: jax.Array | None
    ) -> tuple[dict[str, jax.Array], Tree]:
        image = batch["image"]
        if image.ndim != 4 or image.shape[-1] != len(mean):
            raise UserError(
                f"a batch of images has shape {image.shape}; the model takes [B, H, W, {len(mean)}]",
                "convert the images to RGB, channels last",
            )
        outputs, new_state = module.apply(
            {"params": params, **model_state},
            (image.astype(jnp.float32) / 255 - mean) / std,
            train=train,
            rngs={} if key is None else {"dropout": key},
            mutable=list(model_state) if train else [],
        )
        return outputs, dict(new_state) if train else model_state

    return Model(init, apply)


def _check(config: Any) -> None:
    if config.name not in MODELS:
        raise UserError(f"model.name is {config.name!r}", f"give one of {', '.join(MODELS)}")
    positive = ("width", "patch", "dim", "depth", "heads")
    for ok, key, cure in (
        (config.dtype in ("float32", "bfloat16"), "dtype", "give float32 or bfloat16"),
        (len(config.mean) == 3, "mean", "give one number per channel, as (0.5, 0.5, 0.5)"),
        (len(config.std) == 3 and all(s > 0 for s in config.std), "std", "give one positive number per channel"),
        (0 <= config.drop_path < 1, "drop_path", "give a rate in [0, 1)"),
        (0 <= config.dropout < 1, "dropout", "give a rate in [0, 1)"),
        (0 <= config.bn_momentum < 1, "bn_momentum", "give a number in [0, 1); 0.9 is usual"),
        (config.bn_group >= 0, "bn_group", "give the examples per statistics group, or 0 for the whole batch"),
        (config.stem in ("imagenet", "small"), "stem", "give imagenet or small"),
        (config.pool in ("cls", "gap"), "pool", "give cls or gap"),
        (config.blocks is None or _counts(config.blocks), "blocks", "give blocks per stage, as (2, 2, 2, 2)"),
        *((config[key] is None or config[key] > 0, key, "give a positive whole number") for key in positive),
    ):
        if not ok:
            raise UserError(f"model.{key} is {config[key]!r}", cure)


def _counts(blocks: tuple[Any, ...]) -> bool:
    return len(blocks) > 0 and all(isinstance(n, int) and n > 0 for n in blocks)
