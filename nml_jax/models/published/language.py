"""Read config.json of transformers' BERT, RoBERTa and GPT-2, and how sentence-transformers pools them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax import settings
from nml_jax.console import notice_once
from nml_jax.errors import UserError
from nml_jax.models.published.common import Keys, require
from nml_jax.models.text.language import FAMILIES
from nml_jax.models.text.language import POOLS as FAMILY_POOLS


class Names(NamedTuple):
    """What a family's config.json calls our keys, with transformers' defaults."""

    dim: tuple[str, int]
    depth: tuple[str, int]
    heads: tuple[str, int]
    hidden: tuple[str, int | None]
    positions: tuple[str, int]
    vocab: tuple[str, int]
    types: tuple[str, int]
    epsilon: tuple[str, float]
    activation: tuple[str, str]


_BERT = Names(
    dim=("hidden_size", 768),
    depth=("num_hidden_layers", 12),
    heads=("num_attention_heads", 12),
    hidden=("intermediate_size", 3072),
    positions=("max_position_embeddings", 512),
    vocab=("vocab_size", 30522),
    types=("type_vocab_size", 2),
    epsilon=("layer_norm_eps", 1e-12),
    activation=("hidden_act", "gelu"),
)
NAMES = {
    "bert": _BERT,
    "roberta": _BERT._replace(vocab=("vocab_size", 50265)),
    "gpt2": Names(
        dim=("n_embd", 768),
        depth=("n_layer", 12),
        heads=("n_head", 12),
        hidden=("n_inner", None),
        positions=("n_positions", 1024),
        vocab=("vocab_size", 50257),
        types=("type_vocab_size", 0),
        epsilon=("layer_norm_epsilon", 1e-5),
        activation=("activation_function", "gelu_new"),
    ),
}
POOL, LENGTH = "nml_jax_pool", "nml_jax_length"  # keys of config.json that only we read: model.pool, texts.length
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
               "relu": "relu", "silu": "silu", "swish": "silu"}  # fmt: skip
# Settings that change what is computed, and the one value that we have.
FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
}
POOLING = "1_Pooling"  # the folder of sentence-transformers' description
POOLS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}


def read_language(path: Path, content: Mapping[str, Any]) -> Keys:
    """Return the keys of our config that the folder of a text encoder sets.

    Raises:
        UserError: it asks for what we do not have.
    """
    kind = content["model_type"]
    for key, value in FIXED.items():
        own = content.get(key, value)
        require(path, key, own, own in (value, None), repr(value))
    read = {field: content.get(name, default) for field, (name, default) in NAMES[kind]._asdict().items()}
    pad, activation = FAMILIES[kind].pad, read["activation"]
    require(path, NAMES[kind].activation[0], activation, activation in ACTIVATIONS, " or ".join(ACTIVATIONS))
    context = read["positions"]
    if pad is not None:
        own = content.get("pad_token_id", pad)
        require(path, "pad_token_id", own, own == pad, f"{pad}, from which positions are counted")
        context -= pad + 1
    usual = settings.default_config()["texts"]["length"]
    return {
        "texts.length": content.get(LENGTH) or min(usual, context),
        "model.name": kind,
        "model.dim": read["dim"],
        "model.depth": read["depth"],
        "model.heads": read["heads"],
        "model.hidden": read["hidden"] or 4 * read["dim"],
        "model.context": context,
        "model.vocab": read["vocab"],
        "model.types": read["types"],
        "model.epsilon": float(read["epsilon"]),
        "model.activation": ACTIVATIONS[activation],
        "model.pool": read_pool(path.parent, content.get(POOL), "last" if FAMILIES[kind].causal else "cls"),
    }


MODELS = {"bert": "BertModel", "roberta": "RobertaModel", "gpt2": "GPT2Model"}  # transformers' classes


def describe_language(fields: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the config.json of a text encoder, and where it has one the `1_Pooling` of sentence-transformers.

    Args:
        fields: those of `text.language.TextEncoder`.
        length: most tokens of a text.

    Returns:
        Names of files -> their content.

    Raises:
        UserError: transformers has no such encoder; the message names the key.
    """
    family, cure = fields["family"], "export it with --format=nml, which this package alone reads"
    names, pad = NAMES[family], FAMILIES[family].pad
    if (fields["types"] > 0) != (family != "gpt2"):
        raise UserError(f"model.types is {fields['types']}, which transformers' {family} has not", cure)
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == fields["activation"])
    values = {**fields, "positions": fields["context"] + (0 if pad is None else pad + 1), "activation": activation}
    own = {name: values[field] for field, (name, _) in names._asdict().items() if field != "types" or values["types"]}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": pad}
    about = {
        "model_type": family,
        "architectures": [MODELS[family]],
        "dtype": "float32",
        POOL: fields["pool"],
        LENGTH: length,
    }
    config = {**about, **own, **tokens}
    modes = {name: ours == fields["pool"] for name, ours in POOLS.items()}
    pooling = {"word_embedding_dimension": fields["dim"], **modes}
    return {"config.json": config, **({f"{POOLING}/config.json": pooling} if any(modes.values()) else {})}


def read_pool(folder: Path, known: str | None, usual: str) -> str:
    """Return how the features are pooled: as sentence-transformers' 1_Pooling/config.json says, or `known`, or `usual`.

    Raises:
        UserError: the file cannot be read, or asks for several ways, or for one that we do not have.
    """
    path = folder / POOLING / "config.json"
    if not path.is_file() and known in FAMILY_POOLS:
        return known
    if not path.is_file():
        notice_once(f"{path} is not there; assumed: model.pool={usual}")
        return usual
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path}: {e}", "download it again") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping", "download it again")
    modes = [key for key, value in content.items() if key.startswith("pooling_mode_") and value is True]
    if "pooling_mode" in content:  # newer files name one mode
        modes = [
            f"pooling_mode_{content['pooling_mode']}".replace("_cls", "_cls_token").replace("_mean", "_mean_tokens")
        ]
    if len(modes) != 1 or modes[0] not in POOLS:
        raise UserError(
            f"{path} pools by {', '.join(modes) or 'nothing'}", f"give weights that pool by one of {', '.join(POOLS)}"
        )
    return POOLS[modes[0]]
