"""Turn the `model` section of a config into a pair of pure functions.

Only this folder imports flax. Outside it, a model is `init`, `apply` and nested dicts of arrays.
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
from nml_jax.models.describe import find_tower, list_fields
from nml_jax.models.layers.depthwise import PADDINGS
from nml_jax.models.layers.initializers import leave_undrawn
from nml_jax.models.text.language import ACTIVATIONS, POOLS
from nml_jax.models.variants import CLIPS, LANGUAGE, MODELS, REMOTE, TOWERS

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model as two pure functions, which work under `jax.jit`, `jax.eval_shape` and `jax.grad`, and their inputs.

    init: `(key, batch_spec) -> (params, model_state)`. `batch_spec` is `spec`, or a part of it with other batch and
        image sizes. `params` is a nested dict of float32 arrays, `model_state` is {"batch_stats": ...} (ResNet) or {}
        (ViT). CLIP's params are {"image": ..., "text": ..., "logit_scale": ...}, and "logit_bias" if it has one.
    apply: `(params, model_state, batch, *, train, key) -> (outputs, new_model_state)`. `batch["image"]` is uint8 or
        float [B, H, W, 3] with values in 0..255; `apply` normalises it on the device. `outputs` holds "features"
        (float32 [B, D], pooled, before the head) and "logits" (float32 [B, num_classes]). It also holds every layer,
        pooled to float32 [B, D] ("stage1", "block0", ...) and whole ("stage1_map", "block0_tokens", ...); XLA removes
        what is not used. `key` may be None if nothing is drawn: without `train`, or if all rates are 0. Dropout masks
        depend only on `key` and the position in the global batch.
        CLIP takes images, `batch["text"]` (token ids, int [B, L]), or both. Images give the outputs above, with
        "embedding" (float32 [B, E], projected, of length 1) in place of logits. Texts give "text_features" and
        "text_embedding", of the same shapes. "logit_scale" is always there (see `clip.Clip`).
        Text encoders take "tokens", "length" and "second" (see `language.TextEncoder`) and have logits
        as images have.
    spec: name -> jax.ShapeDtypeStruct, a batch of one: "image" uint8 [1, H, W, 3] and, for CLIP, "text" int32 [1, L].
        Text encoders: "tokens" int32 [1, L], where L stands for any length up to it, "length" and "second" int32 [1].
        An embeddings service: "vector" float32 [1, D], where D is 1 and stands for any.
    """

    init: Callable[..., tuple[Tree, Tree]]
    apply: Callable[..., tuple[dict[str, jax.Array], Tree]]
    spec: Mapping[str, jax.ShapeDtypeStruct]

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The part of `spec` that one classifies and takes features of: all but the captions of a CLIP."""
        return {name: like for name, like in self.spec.items() if name != "text"}

    @cached_property
    def shapes(self) -> tuple[Tree, Tree]:
        """`params` and `model_state` as ShapeDtypeStructs, traced once. Do not change them."""
        with leave_undrawn():
            return jax.eval_shape(lambda key: self.init(key, self.spec), jax.random.key(0))


def build(config: Any, *, num_classes: int, image_size: int | tuple[int, int]) -> Model:
    """Build the model that the `model` section of a config describes.

    The same arguments return the same object, so that its users share what is traced and compiled.

    Args:
        config: a frozen or plain ConfigDict, see `configs/common.py`; None under a key means the variant's value.
        num_classes: width of the head; 0 for no head. CLIP never has one.
        image_size: pixels, height = width, or (height, width). A ResNet accepts other sizes in `apply`; a ViT and
            CLIP's ResNet do not.

    Raises:
        UserError: the model or a value is unknown, or sizes do not fit each other.
    """
    _check(config)
    (frozen,) = settings.freeze_sections(config)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return _build(frozen, num_classes, height, width, jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


def embeds_tokens(config: Any) -> bool:
    """Return whether the section `model` describes an encoder that takes NEFTune's noise at its embeddings."""
    return "neftune" in list_fields(config)


@lru_cache(maxsize=8)
def _build(config: FrozenConfigDict, num_classes: int, height: int, width: int, wide: bool) -> Model:
    """Build and cache a model. `wide` is part of the key: with JAX's 64-bit types, parameters have other dtypes."""
    values = {name: config[name] for name in config}
    values |= {"num_classes": num_classes, "dtype": jnp.dtype(config.dtype)}
    if height == width:  # else a module that needs one size has none, and says so
        values["image_size"] = height
    spec = {"image": jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)}
    if config.name in LANGUAGE:
        context = config.context or LANGUAGE[config.name].make.keywords["context"]
        shapes = {"tokens": (1, context), "length": (1,), "second": (1,)}
        spec = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
    if config.name in REMOTE:
        spec = {"vector": jax.ShapeDtypeStruct((1, 1), jnp.float32)}
    if config.name in CLIPS:
        values["tower"] = _make_module(find_tower(config), {**values, "num_classes": 0, "hidden": 0})
        spec["text"] = jax.ShapeDtypeStruct((1, config.text_context), jnp.int32)
    module = _make_module(MODELS[config.name].make, values)
    mean, std = np.asarray(config.mean, np.float32), np.asarray(config.std, np.float32)
    dtype = jnp.promote_types(config.dtype, jnp.float32)

    def init(key: jax.Array, batch_spec: Mapping[str, Any]) -> tuple[Tree, Tree]:
        shapes = [(1, *batch_spec.get(name, like).shape[1:]) for name, like in spec.items()]
        inputs = [jnp.zeros(shape, like.dtype) for shape, like in zip(shapes, spec.values(), strict=True)]
        variables = jax.jit(partial(module.init, train=False))({"params": key}, *inputs)
        return variables.pop("params", {}), variables

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


def _make_module(variant: partial[Any], values: Mapping[str, Any]) -> nn.Module:
    """Make the variant with the values that are fields of it and not None."""
    fields = inspect.signature(variant.func).parameters
    if "image_size" not in values and (sized := fields.get("image_size")) and sized.default is sized.empty:
        raise UserError(
            f"{variant.func.__name__} takes square images alone", "choose a network of convolutions, such as resnet50"
        )
    known = fields.keys() - {"name"}  # `name` is Linen's own field, not the model's
    return variant(**{key: value for key, value in values.items() if key in known and value is not None})


def _check_inputs(inputs: Mapping[str, Any], spec: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
    """Raise a UserError unless the batch holds an input of the model, in the shape of its spec."""
    if not inputs or ("tokens" in spec and len(inputs) < len(spec)):
        missing = " or ".join(name for name in spec if name not in inputs)
        raise UserError(
            f"a batch of {', '.join(batch) or 'nothing'} holds no {missing}, which the model needs",
            "give the model the inputs that its spec names",
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
            "give model.text_context token ids per text",
        )


def _check(config: Any) -> None:
    """Raise a UserError that names the first key with a wrong value."""
    if config.name not in MODELS:
        raise UserError(f"model.name is {config.name!r}", f"give one of {', '.join(MODELS)}")
    if config.name == "clip" and config.tower not in TOWERS:
        raise UserError(f"model.tower is {config.tower!r}", f"give one of {', '.join(TOWERS)}")
    tower = config.tower if config.name == "clip" else config.name
    fields = list_fields(config)
    pools = POOLS if config.name in LANGUAGE else ("cls", "gap")
    positive = ("width", "patch", "window", "dim", "depth", "heads", "embed_dim")
    positive += ("text_context", "text_vocab", "text_width", "text_depth", "text_heads", "vocab", "context")
    for ok, key, cure in (
        (config.dtype in ("float32", "bfloat16", *_allow_float64()), "dtype", "give float32 or bfloat16"),
        (len(config.mean) == 3, "mean", "give one number per channel, as (0.5, 0.5, 0.5)"),
        (len(config.std) == 3 and all(s > 0 for s in config.std), "std", "give one positive number per channel"),
        (0 <= config.drop_path < 1, "drop_path", "give a rate in [0, 1)"),
        (0 <= config.dropout < 1, "dropout", "give a rate in [0, 1)"),
        (0 <= config.patch_dropout < 1, "patch_dropout", "give a rate in [0, 1)"),
        (
            not config.patch_dropout or "patch_dropout" in fields,
            "patch_dropout",
            f"set it to 0: {tower} has no patches",
        ),
        (0 <= config.bn_momentum < 1, "bn_momentum", "give a number in [0, 1); 0.9 is usual"),
        (config.bn_group >= 0, "bn_group", "give the examples per statistics group, or 0 for the whole batch"),
        (config.stem in ("imagenet", "small"), "stem", "give imagenet or small"),
        (config.pool in pools, "pool", f"give {' or '.join(pools)}"),
        (config.name != "gpt2" or config.pool != "pooler", "pool", "give last or mean: GPT-2 has no pooler"),
        (config.activation in (None, *ACTIVATIONS), "activation", f"give one of {', '.join(ACTIVATIONS)}"),
        (config.types is None or config.types >= 0, "types", "give the number of types of tokens; 0: none"),
        (config.blocks is None or _are_counts(config.blocks), "blocks", "give blocks per stage, as (2, 2, 2, 2)"),
        (config.widths is None or _are_counts(config.widths), "widths", "give channels per stage, as (96, 192)"),
        (config.hidden is None or config.hidden >= 0, "hidden", "give a width, or 0 for no hidden layer"),
        (config.epsilon is None or config.epsilon > 0, "epsilon", "give a small positive number, as 1e-5"),
        (config.padding in (None, *PADDINGS), "padding", f"give one of {', '.join(PADDINGS)}"),
        *((config[key] is None or config[key] > 0, key, "give a positive whole number") for key in positive),
    ):
        if not ok:
            raise UserError(f"model.{key} is {config[key]!r}", cure)


def _allow_float64() -> tuple[str, ...]:
    """Allow float64 in a context with JAX's 64-bit types, for comparisons; statistics and losses then use it too."""
    return ("float64",) if jax.config.jax_enable_x64 else ()  # pyright: ignore[reportAttributeAccessIssue]


def _are_counts(blocks: tuple[Any, ...]) -> bool:
    return len(blocks) > 0 and all(isinstance(n, int) and n > 0 for n in blocks)
