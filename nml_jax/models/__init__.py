"""The table of models, and `build`, which turns the `model` section of a config into a pair of pure functions.

This folder is the only one that imports flax: outside it a model is `init`, `apply` and nested dicts of arrays.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from nml_jax import settings
from nml_jax.errors import UserError
from nml_jax.models import clip
from nml_jax.models.encoders.resnet import ResNet
from nml_jax.models.encoders.vit import ViT

Tree = dict[str, Any]

# Fields given here are the variant's; the other fields, and those that a config sets, come from `config.model`.
TOWERS: dict[str, partial[Any]] = {
    "resnet18": partial(ResNet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(ResNet, blocks=(3, 4, 23, 3), bottleneck=True),
    "vit_ti": partial(ViT, dim=192, depth=12, heads=3),
    "vit_s": partial(ViT, dim=384, depth=12, heads=6),
    "vit_b": partial(ViT, dim=768, depth=12, heads=12),
    "vit_l": partial(ViT, dim=1024, depth=24, heads=16),
}

# An image tower, here or the one that `model.tower` names, beside a text tower.
_clip: partial[Any] = partial(clip.make, embed_dim=512, text_width=512, text_depth=12, text_heads=8)
CLIPS: dict[str, partial[Any]] = {
    "clip": _clip,
    "clip_rn50": partial(_clip, tower=partial(TOWERS["resnet50"], clip=True), embed_dim=1024),
    "clip_vitb16": partial(_clip, tower=partial(TOWERS["vit_b"], clip=True, patch=16)),
    "clip_vitl14": partial(
        _clip, tower=partial(TOWERS["vit_l"], clip=True, patch=14), embed_dim=768, text_width=768, text_heads=12
    ),
}

MODELS = TOWERS | CLIPS


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model as two pure functions, which work under `jax.jit`, `jax.eval_shape` and `jax.grad`, and what they take.

    init: `(key, batch_spec) -> (params, model_state)`. `batch_spec` is `spec`, or a part of it with other batch and
        image sizes. `params` is a nested dict of float32 arrays, `model_state` is {"batch_stats": ...} (ResNet) or {}
        (ViT). CLIP's params are {"image": ..., "text": ..., "logit_scale": ...}, and "logit_bias" where it has one.
    apply: `(params, model_state, batch, *, train, key) -> (outputs, new_model_state)`. `batch["image"]` is uint8 or
        float [B, H, W, 3] with values in 0..255; it is normalised here, on the device. `outputs` holds "features"
        (float32 [B, D], pooled, before the head), "logits" (float32 [B, num_classes]), every layer as a pooled float32
        [B, D] ("stage1", "block0", ...) and as it is ("stage1_map", "block0_tokens", ...); XLA removes what nobody
        uses. `key` may be None where nothing is drawn: not `train`, or all rates 0. Dropout masks depend on `key` and
        the position in the global batch only.
        CLIP takes images, `batch["text"]` (token ids, int [B, L]), or both, and returns what these allow: of images
        the above and, in place of logits, "embedding" (float32 [B, E], projected, of length 1); of texts
        "text_features" and "text_embedding", the same two; and always "logit_scale" (see `clip.Clip`).
    spec: name -> jax.ShapeDtypeStruct, a batch of one: "image" uint8 [1, S, S, 3] and, for CLIP, "text" int32 [1, L].
    """

    init: Callable[..., tuple[Tree, Tree]]
    apply: Callable[..., tuple[dict[str, jax.Array], Tree]]
    spec: Mapping[str, jax.ShapeDtypeStruct]

    @cached_property
    def shapes(self) -> tuple[Tree, Tree]:
        """`params` and `model_state` as ShapeDtypeStructs, traced once; not to be changed."""
        return jax.eval_shape(lambda key: self.init(key, self.spec), jax.random.key(0))


def build(config: Any, *, num_classes: int, image_size: int) -> Model:
    """The model that `config`, the `model` section of a (frozen or plain) ConfigDict, describes.

    The same arguments give the same object, so that what is traced and compiled for it is shared.

    Args:
        config: see `configs/common.py`; None under a key means the variant's value.
        num_classes: width of the head; 0: none. CLIP has none.
        image_size: height and width in pixels. A ResNet accepts other sizes in `apply`, a ViT and CLIP's ResNet do not.

    Raises:
        UserError: an unknown model or value, or sizes that do not fit each other.
    """
    _check(config)
    (frozen,) = settings.freeze_sections(config)
    return _build(frozen, num_classes, image_size, jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


@lru_cache(maxsize=8)
def _build(config: FrozenConfigDict, num_classes: int, image_size: int, wide: bool) -> Model:
    """`wide`: whether this is a context of 64 bits, where parameters have other dtypes."""
    values = {name: config[name] for name in config}
    values |= {"num_classes": num_classes, "image_size": image_size, "dtype": jnp.dtype(config.dtype)}
    spec = {"image": jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)}
    if config.name in CLIPS:
        tower = CLIPS[config.name].keywords.get("tower") or TOWERS[config.tower]
        values["tower"] = _module(tower, {**values, "num_classes": 0})
        spec["text"] = jax.ShapeDtypeStruct((1, config.text_context), jnp.int32)
    module = _module(MODELS[config.name], values)
    mean, std = np.asarray(config.mean, np.float32), np.asarray(config.std, np.float32)
    dtype = jnp.promote_types(config.dtype, jnp.float32)

    def init(key: jax.Array, batch_spec: Mapping[str, Any]) -> tuple[Tree, Tree]:
        given = [(1, *batch_spec.get(name, like).shape[1:]) for name, like in spec.items()]
        inputs = [jnp.zeros(shape, like.dtype) for shape, like in zip(given, spec.values(), strict=True)]
        variables = jax.jit(partial(module.init, train=False))({"params": key}, *inputs)
        return variables.pop("params"), variables

    def apply(
        params: Tree, model_state: Tree, batch: Mapping[str, Any], *, train: bool, key: jax.Array | None
    ) -> tuple[dict[str, jax.Array], Tree]:
        inputs = {name: batch[name] for name in spec if name in batch}
        _check_inputs(inputs, spec, batch)
        if "image" in inputs:
            inputs["image"] = (inputs["image"].astype(dtype) / 255 - mean) / std
        outputs, new_state = module.apply(
            {"params": params, **model_state},
            *(inputs.get(name) for name in spec),
            train=train,
            rngs={} if key is None else {"dropout": key},
            mutable=list(model_state) if train else [],
        )
        return outputs, dict(new_state) if train else model_state

    return Model(init, apply, spec)


def _module(variant: partial[Any], values: Mapping[str, Any]) -> nn.Module:
    """The variant with those of the values that it knows and that are given."""
    known = inspect.signature(variant.func).parameters.keys() - {"name"}  # Linen's own `name` is another
    return variant(**{key: value for key, value in values.items() if key in known and value is not None})


def _check_inputs(inputs: Mapping[str, Any], spec: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
    if not inputs:
        raise UserError(
            f"a batch of {', '.join(batch) or 'nothing'} holds no {' or '.join(spec)}, which the model takes",
            "give the model what its spec names",
        )
    image, text = inputs.get("image"), inputs.get("text")
    if image is not None and (image.ndim != 4 or image.shape[-1] != 3):
        raise UserError(
            f"a batch of images has shape {image.shape}; the model takes [B, H, W, 3]",
            "convert the images to RGB, channels last",
        )
    if text is not None and (text.shape[1:] != spec["text"].shape[1:] or not jnp.issubdtype(text.dtype, jnp.integer)):
        raise UserError(
            f"a batch of texts is {text.dtype} {text.shape}; the model takes ids, int32 [B, {spec['text'].shape[1]}]",
            "give token ids, as many per text as model.text_context says",
        )


def _check(config: Any) -> None:
    if config.name not in MODELS:
        raise UserError(f"model.name is {config.name!r}", f"give one of {', '.join(MODELS)}")
    if config.name == "clip" and config.tower not in TOWERS:
        raise UserError(f"model.tower is {config.tower!r}", f"give one of {', '.join(TOWERS)}")
    tower = config.tower if config.name == "clip" else config.name
    positive = ("width", "patch", "dim", "depth", "heads", "embed_dim")
    positive += ("text_context", "text_vocab", "text_width", "text_depth", "text_heads")
    for ok, key, cure in (
        (config.dtype in ("float32", "bfloat16", *_float64()), "dtype", "give float32 or bfloat16"),
        (len(config.mean) == 3, "mean", "give one number per channel, as (0.5, 0.5, 0.5)"),
        (len(config.std) == 3 and all(s > 0 for s in config.std), "std", "give one positive number per channel"),
        (0 <= config.drop_path < 1, "drop_path", "give a rate in [0, 1)"),
        (0 <= config.dropout < 1, "dropout", "give a rate in [0, 1)"),
        (0 <= config.patch_dropout < 1, "patch_dropout", "give a rate in [0, 1)"),
        (not config.patch_dropout or "vit" in tower, "patch_dropout", f"set it to 0: {tower} has no patches"),
        (0 <= config.bn_momentum < 1, "bn_momentum", "give a number in [0, 1); 0.9 is usual"),
        (config.bn_group >= 0, "bn_group", "give the examples per statistics group, or 0 for the whole batch"),
        (config.stem in ("imagenet", "small"), "stem", "give imagenet or small"),
        (config.pool in ("cls", "gap"), "pool", "give cls or gap"),
        (config.blocks is None or _counts(config.blocks), "blocks", "give blocks per stage, as (2, 2, 2, 2)"),
        *((config[key] is None or config[key] > 0, key, "give a positive whole number") for key in positive),
    ):
        if not ok:
            raise UserError(f"model.{key} is {config[key]!r}", cure)


def _float64() -> tuple[str, ...]:
    """For comparisons in a context where JAX has it; the statistics, norms and losses then have it too."""
    return ("float64",) if jax.config.jax_enable_x64 else ()  # pyright: ignore[reportAttributeAccessIssue]


def _counts(blocks: tuple[Any, ...]) -> bool:
    return len(blocks) > 0 and all(isinstance(n, int) and n > 0 for n in blocks)
