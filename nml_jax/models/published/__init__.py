"""Read what the folder of a published model says of itself, as keys of our config.

Four forms are read: `config.json` of timm, `open_clip_config.json`, `config.json` of transformers' CLIPModel, BERT,
RoBERTa and GPT-2, and `nml_config.json`, which nml_jax.export writes.
"""

import json
from pathlib import Path
from typing import Any

from nml_jax.console import notice_once
from nml_jax.errors import MissingInput, UserError
from nml_jax.models.published.common import Keys
from nml_jax.models.published.common import list_constants as list_constants
from nml_jax.models.published.openclip import read_open_clip
from nml_jax.models.published.own import read_nml
from nml_jax.models.published.timm import read_timm
from nml_jax.models.published.transformers import read_transformers
from nml_jax.models.variants import TOWERS
from nml_jax.models.weights import nml

TIMM_OR_TRANSFORMERS, OPEN_CLIP = "config.json", "open_clip_config.json"
PREPROCESSING = (
    *("data.image_size", "augment.test_crop", "augment.interpolation", "augment.resize"),
    *("model.mean", "model.std", "model.epsilon", "model.padding", "model.quick_gelu"),
)


def find_config(path: Path) -> Path | None:
    """Return the config of a folder, or the path itself if it is one; None if there is none, or that of a run of ours.

    If both forms are there, as in timm's folders of CLIPs, take open_clip's, which describes both towers, and say so.
    Take timm's if its weights alone are there.

    Raises:
        UserError: both are there and disagree.
    """
    if path.name in (TIMM_OR_TRANSFORMERS, OPEN_CLIP, nml.CONFIG) and path.is_file():
        return path
    if (path / nml.CONFIG).is_file():
        return path / nml.CONFIG
    found = [path / name for name in (OPEN_CLIP, TIMM_OR_TRANSFORMERS) if (path / name).is_file()]
    found = [config for config in found if not _is_ours(config)]
    if len(found) == 2:
        _compare(*found)
        if _parse(found[1])["model.name"] in TOWERS and not _has_both(path):
            return found[1]
        notice_once(f"{found[0]} is read, of two towers; for the image tower alone give {found[1]}")
    return found[0] if found else None


def _has_both(folder: Path) -> bool:
    """Return whether weights of both towers may be in a folder: in open_clip's file, or in shards."""
    return not (folder / "model.safetensors").is_file() or (folder / "open_clip_model.safetensors").is_file()


def _is_ours(path: Path) -> bool:
    """Return whether a config.json is that of a run of ours."""
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"objective", "model", "optimizer"} <= config.keys()


def _compare(first: Path, second: Path) -> None:
    """Raise a UserError if two configs of one folder say different things of the pixels or the activation."""
    one, two = _parse(first), _parse(second)
    for key in PREPROCESSING:
        if key in one and key in two and None not in (one[key], two[key]) and one[key] != two[key]:
            raise UserError(
                f"{first.parent} holds two configs that disagree: {key} is {one[key]} in {first.name} and "
                f"{two[key]} in {second.name}",
                f"find out which is right, and give {first} or {second} in place of the folder",
            )


def read_keys(path: Path) -> Keys:
    """Return the keys of our config that a published folder, or its config file, sets.

    What the folder does not say is assumed as the libraries do, and a line says so.

    Raises:
        UserError: there is no such folder or config, it cannot be read, or asks for what we do not have.
    """
    if not path.exists():
        raise MissingInput(f"{path} does not exist", "give the folder of a published model")
    config = find_config(path)
    if config is None:
        raise UserError(f"{path} holds no {TIMM_OR_TRANSFORMERS} or {OPEN_CLIP}", "download the whole folder")
    return _parse(config)


def _parse(path: Path) -> Keys:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping")
        keys = _read(path, content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
        raise UserError(f"cannot read {path}: {e!r}", "download it again, or correct it") from e
    tokenizer = path.parent / "tokenizer.json"
    if "model.text_vocab" in keys and tokenizer.is_file():  # of a CLIP
        keys["data.tokenizer"] = str(tokenizer)
    return keys


def _read(path: Path, content: dict[str, Any]) -> Keys:
    if path.name == OPEN_CLIP:
        return read_open_clip(path, content)
    if path.name == nml.CONFIG:
        return read_nml(path, content)
    if "architecture" in content:
        return read_timm(path, content)
    return read_transformers(path, content)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes of a published folder's classifier; () if it does not say them.

    Raises:
        UserError: its config cannot be read.
    """
    config = find_config(path)
    if config is None:
        return ()
    try:
        whole = json.loads(config.read_bytes())
        of_weights = whole.get("pretrained_cfg", {}).get("label_names")
        names = next(filter(None, (whole.get("class_names"), whole.get("label_names"), of_weights)), [])
        names = list(names.values()) if isinstance(names, dict) else names
        if not all(isinstance(name, str) for name in names):
            raise ValueError("label_names are not texts")
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise UserError(f"cannot read {config}: {e}", "download it again, or correct it") from e
    return tuple(names)
