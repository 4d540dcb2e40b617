"""Read and write state dicts of transformers' BERT, RoBERTa and GPT-2."""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from nml_jax.errors import UserError
from nml_jax.models.weights import layouts
from nml_jax.models.weights.state_dict import NameLeaf, Tree, list_paths, read_trees, rename, write_tensors

PREFIX = re.compile(r"^(bert|roberta|transformer)\.")
# What lies beside the encoder in a model with a head, and GPT-2's masks (not h.0.attn.c_attn.bias).
UNREAD = re.compile(
    r"(cls|lm_head|classifier|qa_outputs|score|multiple_choice_head|summary|pre_classifier|dropout)\..*"
    r"|(embeddings\.)?(position_ids|token_type_ids)|h\.\d+\.attn\.(bias|masked_bias)"
)
OLD = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


def is_language(params: Tree) -> bool:
    """Return whether parameters are those of a text encoder of ours."""
    return "words" in params


def holds_language(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are those of a text encoder of transformers."""
    return any(PREFIX.sub("", name) in ("embeddings.word_embeddings.weight", "wte.weight") for name in names)


def choose_names(params: Tree) -> NameLeaf:
    """Return the function that names the leaves of this model."""
    return partial(rename, rules=layouts.find_layout(list_paths(params), layouts.LANGUAGE).rules)


def simplify_names(tensors: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the encoder's tensors by their names without a prefix, and with the newer names of norms.

    Raises:
        UserError: two tensors have one name then.
    """
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        short = PREFIX.sub("", name)
        for old, new in OLD:
            short = re.sub(old, new, short)
        if UNREAD.fullmatch(short):
            continue
        if short in found:
            raise UserError(f"{where} holds {short} twice, once as {name}", "give weights that hold each tensor once")
        found[short] = tensor
    return found


def import_weights(tensors: Mapping[str, Any], like: tuple[Tree, Tree], where: str) -> tuple[Tree, Tree]:
    """Convert a state dict of transformers to our trees; the arguments are those of `timm.import_weights`.

    A pooler is left out unless the model has one. A classifier is left out, and the params have no "head".

    Raises:
        UserError: tensors are missing, unexpected, of another shape, not of a float type or not finite.
    """
    found = simplify_names(tensors, where)
    like = {name: x for name, x in like[0].items() if name != "head"}, like[1]
    if "pooler" not in like[0]:
        found = {name: tensor for name, tensor in found.items() if not name.startswith("pooler.")}
    elif "pooler.dense.weight" not in found:
        raise UserError(
            f"{where} holds no pooler, which model.pool=pooler needs", "set --config.model.pool=cls or mean"
        )
    return read_trees(found, like, choose_names(like[0]))


def export_weights(params: Tree) -> dict[str, np.ndarray]:
    """Convert our trees to a state dict of transformers' encoder, without a prefix: the inverse of `import_weights`.

    A head is left out.
    """
    params = {name: x for name, x in params.items() if name != "head"}
    return write_tensors(params, {}, choose_names(params))
