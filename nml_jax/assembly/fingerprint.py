"""Describe the encoder that features come from, so that a head is applied to features of no other.

An encoder is its weights, its network, a layer and the preprocessing of images, or the tokenizer of texts. A head of
the stage tune carries this description in its metadata, and predict.py compares.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nml_jax.assembly.encoder import Encoder, is_remote
from nml_jax.data.embeddings.service import describe_features
from nml_jax.data.text.batches import has_tokens, load_tokenizer
from nml_jax.errors import UserError
from nml_jax.models import Model
from nml_jax.models.describe import describe_tower


def describe_encoder(config: ConfigDict, frozen: Encoder) -> dict[str, Any]:
    """Describe an encoder by JSON values: weights (SHA-256), network (fields) and preprocessing.

    A run, and the folder that it was exported to, have the same description. The head and, of a CLIP, the text tower
    do not count: features of images do not depend on them. The network of a service is its address and model.
    """
    if is_remote(config):
        return {"weights": frozen.tower, "network": describe_features(config), "preprocessing": {}}
    return {
        "weights": frozen.tower,
        "network": describe_tower(config.model, config.data.image_size),
        "preprocessing": describe_inputs(config, frozen.model),
    }


def describe_inputs(config: ConfigDict, model: Model) -> dict[str, Any]:
    """Return how an image, or a text, becomes the network's input at evaluation, as JSON values.

    See `describe_preprocessing`, and `TextTokenizer.describe`.

    Raises:
        UserError: the tokenizer is missing.
    """
    if has_tokens(model.spec):
        return load_tokenizer(config, model).describe()
    return describe_preprocessing(config)


def describe_preprocessing(config: ConfigDict) -> dict[str, Any]:
    """Return how an image becomes the network's input at evaluation, as JSON values.

    size: pixels, height = width. crop: side of the centre crop as a share of the resized image's shorter side.
    resize, interpolation, antialias: see configs/common.py. mean, std: per channel, for pixels in [0, 1].
    """
    augment, model = config.augment, config.model
    return {
        "size": augment.test_size or config.data.image_size,
        "crop": float(augment.test_crop) if augment.crop == "random_resized" else 1.0,
        "resize": augment.resize,
        "interpolation": augment.interpolation,
        "antialias": augment.antialias,
        "mean": list(map(float, model.mean)),
        "std": list(map(float, model.std)),
    }


def compare_encoders(head: Mapping[str, Any], found: Mapping[str, Any], where: object) -> None:
    """Compare the encoder that a head was tuned on with another one. Keys that one of them lacks do not count.

    Raises:
        UserError: they differ; the message names the first three differences.
    """
    differ = []
    for part in ("network", "preprocessing"):
        theirs, ours = (dict(of.get(part, {})) for of in (head, found))
        keys = sorted(key for key in theirs.keys() & ours.keys() if theirs[key] != ours[key])
        differ += [f"{part}: {key} was {theirs[key]} and is {ours[key]}" for key in keys]
    if head.get("weights") != found.get("weights"):
        differ += [f"weights: SHA-256 was {str(head.get('weights'))[:12]} and is {str(found.get('weights'))[:12]}"]
    if differ:
        raise UserError(
            f"the head was tuned on features of another encoder than {where}: {'; '.join(differ[:3])}",
            "give --encoder the run or the folder that the head's features come from, with the same settings",
        )
