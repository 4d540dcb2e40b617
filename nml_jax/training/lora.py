"""LoRA in parameter space (arXiv 2106.09685): W + (α/r)·A·B for chosen kernels, then the unchanged model.

A kernel [..., in, out] counts as a matrix of prod(..., in) rows and `out` columns, so a convolution [h, w, in, out] is
one of h·w·in rows. A is [rows, r], B is [r, out]. B starts at 0, so the adapted model starts bit-equal to the model.
Every forward pass merges the weights as an export does. Activations are never multiplied by A alone, so there is no
dropout before A.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nml_jax.errors import UserError
from nml_jax.models import Model
from nml_jax.training.leaves import name_leaves

# Sets of kernels, as regexes over "a/b/kernel". Classifying images does not use CLIP's text tower. The first is that of
# ViT and Swin, the second of ConvNeXt too, the third all convolutions of networks of stages but the depthwise ones. The
# last two are of BERT, RoBERTa and GPT-2. Queries, keys and values have factors of their own where they have kernels of
# their own, as in BERT and RoBERTa; in the others, one pair of factors adapts their common kernel. So it is in peft.
TARGETS = {
    "vit_attention": r"(?!text/)(.*/)?attn/(qkv|proj)/kernel",
    "vit_mlp": r"(?!text/)(.*/)?mlp/fc[12]/kernel",
    "resnet_conv": r"(?!text/)(.*/)?(?!depthwise_)(\w+_)?conv\d?/kernel",
    "text_attention": r"block\d+/attn/(query|key|value|qkv|proj)/kernel",
    "text_mlp": r"block\d+/fc[12]/kernel",
}
OF_TEXT = ("text_attention", "text_mlp")  # the others are of images: vit_attention is not a part of BERT's


def init(key: jax.Array, params: Any, *, rank: int, targets: Sequence[str]) -> Any:
    """Draw factors for the kernels of `params` that a target matches.

    Args:
        key: PRNG key.
        params: nested dicts of float arrays.
        rank: r; at most the smaller side of every matrix.
        targets: keys of TARGETS, or regexes that match a whole name, as in "block0/attn/qkv/kernel".

    Returns:
        Nested dicts with {"a": float32 [rows, r], "b": float32 [r, out]} in the place of each such kernel. A is
        U(±1/√rows), PyTorch's default for a linear layer, as in the authors' code and peft; B is 0.

    Raises:
        UserError: a target is not a regex, matches nothing, or matches a vector; or the rank is too large.
    """
    names = name_leaves(params)
    chosen = select(list(names), targets)
    sides = {}
    for name in chosen:
        shape = names[name].shape
        if len(shape) < 2:
            raise UserError(f"LoRA cannot adapt {name!r} of shape {shape}", "let the targets match kernels only")
        sides[name] = rows, columns = math.prod(shape[:-1]), shape[-1]
        if not 1 <= rank <= min(rows, columns):
            raise UserError(
                f"LoRA of rank {rank} on {name!r}, a matrix of {rows} × {columns}",
                f"give a rank from 1 to {min(rows, columns)}, or leave this kernel out of the targets",
            )
    # One flat draw, since each draw costs compile time.
    ends = list(itertools.accumulate(rows * rank for rows, _ in sides.values()))
    draws = jnp.split(jax.random.uniform(key, (ends[-1],), minval=-1.0), ends[:-1])
    factors: dict[str, Any] = {}
    for (name, (rows, columns)), draw in zip(sides.items(), draws, strict=True):
        *folders, leaf = name.split("/")
        parent = factors
        for folder in folders:
            parent = parent.setdefault(folder, {})
        parent[leaf] = {"a": draw.reshape(rows, rank) / math.sqrt(rows), "b": jnp.zeros((rank, columns))}
    return factors


def select(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Return the names that some target matches, in their order.

    Raises:
        UserError: there is no target, or one is not a regex or matches nothing.
    """
    reads_texts = any(name.startswith("words/") for name in names)
    fitting = [target for target in TARGETS if (target in OF_TEXT) == reads_texts]
    if not targets:
        raise UserError("LoRA has no targets", f"name some of {', '.join(fitting)}, or give regexes")
    matched: set[str] = set()
    for target in targets:
        try:
            pattern = re.compile(TARGETS.get(target, target))
        except re.error as e:
            cure = f"give a regex, or one of {', '.join(fitting)}"
            raise UserError(f"the LoRA target {target!r} is not a regex: {e}", cure) from e
        fits = target not in TARGETS or target in fitting
        found = {name for name in names if fits and pattern.fullmatch(name)}
        if not found:
            kernels = [name for name in names if name.endswith("/kernel")]
            raise UserError(
                f"the LoRA target {target!r} matches no parameter of this model",
                f"name some of {', '.join(fitting)}, or match a whole path, as {(kernels or names)[0]!r}",
            )
        matched |= found
    return [name for name in names if name in matched]


def merge(params: Any, factors: Any, scale: float) -> Any:
    """Return `params` with W + scale·A·B in the place of every W that has factors. The other arrays are not copied.

    The product is computed in float32 at the highest precision on every device.

    Args:
        scale: α/r.
    """
    if isinstance(params, dict):
        return {k: merge(x, factors[k], scale) if k in factors else x for k, x in params.items()}
    delta = jnp.matmul(factors["a"], factors["b"], precision="highest")
    return params + scale * delta.reshape(params.shape).astype(params.dtype)


def adapt_model(model: Model, *, rank: int, alpha: float, targets: Sequence[str]) -> Model:
    """Return `model` with parameters {"base": its own, "lora": the factors}. The base gets no gradient.

    `apply` merges and calls the model's `apply`. The BatchNorm statistics follow the adapted activations. Freeze the
    base with a learning-rate multiplier of 0 for "base/.*": then it has no optimiser state either.

    The model's `init` raises UserError as `init` does.
    """

    def init_both(key: jax.Array, batch_spec: Any) -> tuple[Any, Any]:
        params, model_state = model.init(key, batch_spec)
        factors = init(jax.random.fold_in(key, 1), params, rank=rank, targets=targets)
        return {"base": params, "lora": factors}, model_state

    def apply(params: Any, model_state: Any, batch: Any, **how: Any) -> tuple[dict[str, jax.Array], Any]:
        base = jax.lax.stop_gradient(params["base"])
        return model.apply(merge(base, params["lora"], alpha / rank), model_state, batch, **how)

    return Model(init_both, apply, model.spec)
