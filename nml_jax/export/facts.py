"""Collect what the card of an exported folder says."""

from collections.abc import Mapping
from typing import Any

import jax

from nml_jax.assembly.fingerprint import describe_inputs
from nml_jax.data.text.batches import has_tokens
from nml_jax.export.formats import Package
from nml_jax.export.origin import Origin, describe_data
from nml_jax.export.results import as_table, summarise_results
from nml_jax.models.describe import describe_tower, find_clip_values
from nml_jax.models.overview import count_features

TIMM = """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)"""
TRANSFORMERS = """from transformers import AutoImageProcessor, {0}

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = {0}.from_pretrained("FOLDER").eval()"""
OPEN_CLIP = """import open_clip

model, _, transform = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")"""
TEXTS = """from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModel.from_pretrained("FOLDER").eval()"""
# The name of the folder's tokenizer is for folders on a disk.
UPLOADED = """
# After an upload, replace text_cfg.hf_tokenizer_name in open_clip_config.json, ".", by the name of the repository."""
OURS_OF_TEXTS = "python -m nml_jax.main --config=configs/text.py:FOLDER --config.texts.train=train.tsv"
OURS = "python -m nml_jax.main --config=configs/published.py:FOLDER --config.data.path=PREPARED"


def collect_facts(origin: Origin, package: Package, sums: Mapping[str, str]) -> dict[str, Any]:
    """Return what templates/card.jinja reads.

    Args:
        sums: SHA-256 of the folder's other files, by name.
    """
    config = origin.config
    setting = [origin.home.parent.name, origin.home.name] if origin.tuned else []
    return {
        "library": package.library, "task": package.task, "license": package.license,
        "title": ": ".join([config.name, " ".join([origin.run.name, *setting])]), "lead": _write_lead(origin),
        "ledger": origin.ledger, "training": _describe_training(origin), "network": _describe_network(origin),
        "parameters": sum(x.size for x in jax.tree.leaves(origin.loaded.params)),
        "features": count_features(origin.loaded.model), "classes": origin.num_classes,
        "class_names": origin.class_names, "config_name": package.config_name,
        "preprocessing": _show(describe_inputs(config, origin.loaded.model)),
        "results": as_table(summarise_results(origin)),
        "loaders": _list_loaders(origin, package), "sums": dict(sums), "revision": origin.revision,
    }  # fmt: skip


def _write_lead(origin: Origin) -> str:
    """Return a sentence on what the weights are."""
    ledger, kind = origin.ledger, "The moving average of the weights" if origin.weights == "ema" else "Weights"
    what = f"{kind} of `{origin.config.model.name}` at step {origin.loaded.step:,}"
    if origin.tuned:
        what += f", fine-tuned on the task `{origin.loaded.meta['task']}`"
    if ledger is None:
        return f"{what}."
    wrong = "captions of another image" if ledger.kind == "caption_swap" else f"wrong labels ({ledger.kind})"
    return f"{what}, pre-trained with {100 * ledger.realised:.4g} % {wrong}."


def _describe_training(origin: Origin) -> dict[str, Any]:
    """Return what the weights were trained on and how."""
    config, ledger = origin.config, origin.ledger
    out = {f"data: {key}": value for key, value in describe_data(config).items()} if ledger else {}
    out |= {"records": f"{ledger.n:,}"} if ledger else {}
    if config.init_from:
        out["started from"] = config.init_from.rstrip("/").rpartition("/")[2]
    keys = ["seed"]
    if ledger:
        keys += ["objective.name", "optimizer.name", "optimizer.lr", "optimizer.weight_decay", "train.batch",
                 "train.epochs", "train.ema"]  # fmt: skip
    if origin.tuned:
        out |= {"fine-tuned on": origin.loaded.meta["task"], "setting": origin.home.name,
                "learning rate of fine-tuning": origin.loaded.meta["lr"]}  # fmt: skip
        keys += ["finetune.epochs", "finetune.batch"]
    flat = config.to_dict()
    for key in keys:
        section, _, name = key.rpartition(".")
        out[key] = flat[section][name] if section else flat[name]
    return out | {"activations in training": config.model.dtype}


def _describe_network(origin: Origin) -> dict[str, Any]:
    """Return the fields of the image tower and, of a CLIP, of the text tower."""
    config = origin.config
    out = {"model.name": config.model.name, **describe_tower(config.model, config.data.image_size)}
    return _show(out | (find_clip_values(config.model) if "text" in origin.loaded.params else {}))


def _show(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without those that are None; lists as words."""
    words = {key: ", ".join(map(str, x)) if isinstance(x, (list, tuple)) else x for key, x in values.items()}
    return {key: value for key, value in words.items() if value is not None}


def _list_loaders(origin: Origin, package: Package) -> dict[str, str]:
    """Return the code that loads the folder, by library."""
    kind = "TimmWrapperForImageClassification" if origin.num_classes else "TimmWrapperModel"
    open_clip = OPEN_CLIP + (UPLOADED if package.files else "")
    others = {"timm": {"timm": TIMM, "transformers": TRANSFORMERS.format(kind)}, "open_clip": {"open_clip": open_clip},
              "transformers": {"transformers": TEXTS}}  # fmt: skip
    ours = OURS_OF_TEXTS if has_tokens(origin.loaded.model.spec) else OURS
    return {**others.get(package.library, {}), "nml_jax": ours}
