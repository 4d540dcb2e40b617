"""Turn weights and their config into the files of a folder: timm's, open_clip's, transformers', or our own."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from nml_jax.assembly.encoder import has_text, load_tokenizer, reads_texts
from nml_jax.assembly.fingerprint import describe_preprocessing
from nml_jax.data.text import handed_on
from nml_jax.data.text.batches import has_tokens
from nml_jax.data.text.batches import load_tokenizer as load_texts
from nml_jax.data.text.tokenizer import PUBLISHED
from nml_jax.errors import UserError
from nml_jax.export.origin import Origin
from nml_jax.models.describe import describe_tower
from nml_jax.models.overview import count_features
from nml_jax.models.published.language import describe_language
from nml_jax.models.weights import constructors, language, nml, openclip, timm
from nml_jax.settings import to_json


class Package(NamedTuple):
    """The content of a folder, apart from its card.

    library: that opens it, as in the card's front matter.
    task: the Hub's pipeline tag.
    config_name, config: the file that describes the network and the preprocessing, and its JSON.
    weights_name, tensors: the file of the weights, and its arrays by name.
    metadata: of the file of the weights; one entry, as the library writes several in no fixed order.
    license: an identifier; "": none is stated.
    files: further files of JSON by name, those of a tokenizer.
    """

    library: str
    task: str
    config_name: str
    config: dict[str, Any]
    weights_name: str
    tensors: Mapping[str, np.ndarray]
    metadata: dict[str, str]
    license: str = ""
    files: Mapping[str, dict[str, Any]] = MappingProxyType({})


CROP_MODES = {"shortest": "center", "squash": "squash"}  # augment.resize -> timm's word


def choose_format(config: Any) -> str:
    """Return the format for a model: transformers for a text encoder, open_clip for one with two towers, else timm."""
    return "transformers" if reads_texts(config) else "open_clip" if has_text(config) else "timm"


def make_package(origin: Origin, kind: str, licence: str = "") -> Package:
    """Make the content of a folder.

    Args:
        kind: one of FORMATS.
        licence: identifier of a licence for the folder's configs; "": none is stated.

    Raises:
        UserError: the library has no constructor for the network, or no such preprocessing; the message names the key.
    """
    usual = choose_format(origin.config)
    if kind not in ("nml", usual):
        what = {"transformers": "a text encoder", "open_clip": "a CLIP", "timm": "an encoder of images"}[usual]
        cause = f"--format={kind}, but model.name={origin.config.model.name} is {what}"
        raise UserError(cause, f"give --format={usual}")
    return FORMATS[kind](origin, licence)._replace(license=licence)


def _make_timm(origin: Origin, licence: str) -> Package:
    """Make a folder of timm, which transformers opens as well."""
    config, classes = origin.config, origin.num_classes
    found = constructors.describe_for_timm(config.model, config.data.image_size, origin.loaded.params)
    seen = _require_antialias(config)
    labels = {"label_names": list(origin.class_names)} if origin.class_names else {}
    pretrained = {
        "custom_load": False, "input_size": [3, seen["size"], seen["size"]], "fixed_input_size": found.sized,
        "interpolation": seen["interpolation"], "crop_pct": seen["crop"], "crop_mode": CROP_MODES[seen["resize"]],
        "mean": seen["mean"], "std": seen["std"], "num_classes": classes,
        "first_conv": found.first, "classifier": found.classifier, **_state(licence),
    }  # fmt: skip
    described = {
        "architecture": found.architecture, "num_classes": classes, "num_features": count_features(origin.loaded.model),
        "global_pool": found.pool, "model_args": found.arguments, **labels, "pretrained_cfg": pretrained,
    }  # fmt: skip
    task = "image-classification" if classes else "image-feature-extraction"
    tensors = _add_counters(timm.export_weights(origin.loaded.params, origin.loaded.model_state), origin.loaded.step)
    return Package("timm", task, "config.json", described, "model.safetensors", tensors, {"format": "pt"})


def _make_open_clip(origin: Origin, licence: str) -> Package:
    """Make a folder of open_clip."""
    config = origin.config
    network = constructors.describe_for_open_clip(config.model, config.data.image_size, origin.loaded.params)
    seen = _require_antialias(config)
    if seen["crop"] != 1:
        raise UserError(
            f"open_clip crops nothing at evaluation, and augment.test_crop={seen['crop']}", constructors.CURE
        )
    files = _make_tokenizer(config)
    if files:  # open_clip looks for it in the folder
        network["text_cfg"] |= {"hf_tokenizer_name": ".", "tokenizer_kwargs": handed_on.CLEAN}
    described = {
        "model_cfg": network,
        "preprocess_cfg": {
            "mean": seen["mean"], "std": seen["std"], "interpolation": seen["interpolation"],
            "resize_mode": seen["resize"],
        },
        **_state(licence),
    }  # fmt: skip
    tensors = _add_counters(
        openclip.export_weights(origin.loaded.params, origin.loaded.model_state), origin.loaded.step
    )
    names = ("open_clip_config.json", described, "open_clip_model.safetensors", tensors)
    return Package("open_clip", "zero-shot-image-classification", *names, {"format": "pt"}, files=files)


def _make_transformers(origin: Origin, licence: str) -> Package:
    """Make a folder of transformers' BERT, RoBERTa or GPT-2, and of sentence-transformers where it can pool so."""
    config, params = origin.config, origin.loaded.params
    fields = describe_tower(config.model, config.data.image_size)
    tokenizer = load_texts(config, origin.loaded.model)
    files = describe_language(fields, tokenizer.length)
    described = files.pop("config.json") | _state(licence)
    files |= handed_on.make_text_files(tokenizer, typed=fields["types"] > 1)
    names = ("config.json", described, "model.safetensors", language.export_weights(params))
    return Package("transformers", "feature-extraction", *names, {"format": "pt"}, files=files)


def _make_nml(origin: Origin, licence: str) -> Package:
    """Make a folder that this package alone reads."""
    config, model = to_json(origin.config), origin.loaded.model
    keys = {f"model.{key}": value for key, value in config["model"].items()}
    described = {
        "format": nml.FORMAT, "num_classes": origin.num_classes, "class_names": list(origin.class_names),
        "keys": keys | (_list_text_keys(config) if has_tokens(model.spec) else _list_image_keys(origin.config)),
        **_state(licence),
    }  # fmt: skip
    tensors = nml.export_weights(origin.loaded.params, origin.loaded.model_state)
    text = has_text(origin.config)
    if has_tokens(model.spec):
        tokenizer = load_texts(origin.config, model)
        task = "text-classification" if origin.num_classes else "feature-extraction"
        files: dict[str, Any] = {handed_on.FILE: tokenizer.definition}
    else:
        task = ("zero-shot-image-classification" if text else
                "image-classification" if origin.num_classes else "image-feature-extraction")  # fmt: skip
        files = _make_tokenizer(origin.config) if text else {}
    return Package("nml_jax", task, nml.CONFIG, described, nml.WEIGHTS, tensors, {"format": nml.FORMAT}, files=files)


def _list_image_keys(config: Any) -> dict[str, Any]:
    """Return the keys of the preprocessing of images."""
    seen = describe_preprocessing(config)
    keys = {f"augment.{key}": seen[key] for key in ("interpolation", "antialias", "resize")}
    keys |= {"augment.test_crop": seen["crop"], "augment.test_size": config.augment.test_size}
    return keys | {"data.image_size": config.data.image_size}


def _list_text_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that say how texts become tokens, apart from the tokenizer's file."""
    return {f"texts.{key}": config["texts"][key] for key in ("length", "literal", "separator")}


def _add_counters(tensors: Mapping[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """Add PyTorch's counter of batches to every BatchNorm. Nothing reads it, but transformers reports it as missing."""
    norms = [name.removesuffix("running_var") for name in tensors if name.endswith("running_var")]
    return {**tensors, **{f"{name}num_batches_tracked": np.array(step, np.int64) for name in norms}}


def _state(licence: str) -> dict[str, str]:
    return {"license": licence} if licence else {}


def _require_antialias(config: Any) -> dict[str, Any]:
    """Return the preprocessing. Raise UserError if it is that of OpenCV, which no other library has."""
    seen = describe_preprocessing(config)
    if not seen["antialias"]:
        raise UserError(
            "timm and open_clip filter when they shrink an image, and augment.antialias=False", constructors.CURE
        )
    return seen


def _make_tokenizer(config: Any) -> dict[str, dict[str, Any]]:
    """Return the files of the tokenizer of captions. CLIP's published vocabulary has none: open_clip brings it along.

    Raises:
        UserError: the tokenizer's file cannot be read, or is not that of the text tower.
    """
    if config.data.tokenizer.endswith((".txt", ".txt.gz")) and config.model.text_vocab == PUBLISHED:
        return {}
    return handed_on.make_files(load_tokenizer(config))


# The makers of folders, by the library that opens them.
FORMATS: dict[str, Callable[[Origin, str], Package]] = {
    "timm": _make_timm,
    "open_clip": _make_open_clip,
    "transformers": _make_transformers,
    "nml": _make_nml,
}
