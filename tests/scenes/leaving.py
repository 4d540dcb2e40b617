"""Finished runs to export, without training: random weights as the checkpoint of a run, with its record and rows."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import common
from nml_jax import models, noise, settings
from nml_jax.runs.classes import PRETRAINING, write_counts
from nml_jax.runs.files import write_json
from nml_jax.runs.record import write_record
from nml_jax.runs.rows import Row, write_rows
from nml_jax.training import checkpoint
from nml_jax.training.state import TrainState

TINY = {
    "resnet": {"model.name": "resnet18", "model.blocks": (1, 1, 1, 1), "data.image_size": 48},
    "vit": {"model.name": "vit_ti", "model.dim": 24, "model.depth": 2, "model.heads": 2, "model.patch": 8,
            "data.image_size": 32, "augment.crop": "pad"},
    "vit_gap": {"model.name": "vit_s", "model.dim": 24, "model.depth": 1, "model.heads": 3, "model.patch": 8,
                "data.image_size": 32, "model.pool": "gap", "model.quick_gelu": True,
                "augment.interpolation": "bilinear", "model.mean": (0.5, 0.5, 0.5)},
    "convnext": {"model.name": "convnext_t", "model.blocks": (1, 1, 2, 1), "model.widths": (8, 16, 24, 32),
                 "data.image_size": 64},
    "swin": {"model.name": "swin_t", "model.width": 16, "model.blocks": (1, 1, 2, 1), "model.heads": 2,
             "model.window": 4, "data.image_size": 64, "augment.test_crop": 0.9},
    "dinov2": {"model.name": "vit_s14_dinov2", "model.dim": 24, "model.depth": 2, "model.heads": 2,
               "data.image_size": 56, "augment.crop": "pad"},
    "squashed": {"model.name": "vit_ti", "model.dim": 24, "model.depth": 1, "model.heads": 2, "model.patch": 16,
                 "data.image_size": 32, "augment.resize": "squash", "augment.test_crop": 1.0},
}  # fmt: skip
TEXT = {
    "model.text_context": 12, "model.text_width": 16, "model.text_depth": 1, "model.text_heads": 2,
    "model.embed_dim": 8, "augment.crop": "pad", "noise_kind": "caption_swap", "objective.name": "clip",
    "data.tokenizer": "bpe_simple_vocab_16e6.txt.gz",
}  # fmt: skip
CLIPS = {
    "clip_vit": TEXT | {"model.name": "clip_vitb16", "model.dim": 24, "model.depth": 1, "model.heads": 3,
                        "model.patch": 8, "data.image_size": 32, "model.quick_gelu": True, "model.logit_bias": -10.0},
    "clip_resnet": TEXT | {"model.name": "clip_rn50", "model.blocks": (1, 1, 1, 1), "model.width": 16,
                           "data.image_size": 64},
    "clip_bytes": TEXT | {"model.name": "clip_vitb16", "model.dim": 24, "model.depth": 1, "model.heads": 2,
                          "model.patch": 16, "data.image_size": 32, "data.tokenizer": "", "model.text_vocab": 258},
    "clip_timm": TEXT | {"model.name": "clip", "model.tower": "resnet18", "data.image_size": 48},
}  # fmt: skip
# Encoders that timm builds at their published sizes alone.
FULL = {
    "efficientnet": {"model.name": "tf_efficientnet_b0", "data.image_size": 75, "augment.crop": "random_resized",
                     "model.bn_momentum": 0.0},
    "efficientnet_lite0": {"model.name": "efficientnet_lite0", "data.image_size": 96, "model.mean": (0.5, 0.5, 0.5),
                           "model.std": (0.5, 0.5, 0.5), "model.bn_momentum": 0.0},
    "bit": {"model.name": "bit_50x1", "data.image_size": 65, "augment.interpolation": "bilinear"},
}  # fmt: skip
CLASSES = ("ant", "bee", "cat|dog")


def make_config(**overrides: Any):
    """A whole config with these values."""
    config = common.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(
            {"name": "leaving", "data.source": "directory", "data.path": "prepared/photos", "noise": 0.3} | overrides
        )
        config.noise_seed = config.seed
    return config.lock()


def make_weights(model: models.Model, seed: int = 0) -> tuple[Any, Any]:
    """Random weights in which every leaf matters: statistics and biases are drawn as well."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, like: Any) -> np.ndarray:
        name, z = jax.tree_util.keystr(path), rng.standard_normal(like.shape).astype(np.float32)
        if "'var'" in name:
            return np.exp(z / 4)
        if "'kernel'" in name:
            return z / np.sqrt(np.prod(like.shape[:-1], dtype=np.float32))
        return np.asarray(z / 8 + ("'scale'" in name), np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.shapes)


def take_statistics(model: models.Model, params: Any, state: Any, images: np.ndarray) -> Any:
    """Return the state with the statistics of BatchNorm of one batch, for a model with bn_momentum=0.

    With others, gates and SiLU extinguish the signal in a deep network of random weights.
    """
    apply = jax.jit(lambda p, s, x: model.apply(p, s, {"image": x}, train=True, key=None)[1])
    return jax.device_get(apply(params, state, images))


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    steps: tuple[int, ...] = (3,),
    images: np.ndarray | None = None,
    **overrides: Any,
) -> Path:
    """Write a finished run of random weights into `folder`; without `config.model.tower` it has a head for CLASSES.

    Args:
        images: where the statistics of BatchNorm are taken, uint8 [B, S, S, 3]; None: they are drawn.
    """
    config = make_config(**{"seed": seed, "noise_seed": seed} | overrides)
    captions = config.model.name.startswith("clip")
    num_classes = 0 if captions else len(CLASSES)
    model = models.build(config.model, num_classes=num_classes, image_size=config.data.image_size)
    ledger = noise.Ledger.from_labels([0, 1, 2, 0], [0, 1, 2, 1], num_classes=3, kind="symmetric", asked=0.3, seed=seed)
    if captions:
        ledger = dataclasses.replace(ledger, kind="caption_swap", transitions=None, corrupted=None)
    meta = {"config": settings.to_json(config), "ledger": ledger.to_dict(), "num_classes": num_classes}
    saver = checkpoint.Checkpoints(folder / "checkpoints", every=1, keep=len(steps), keep_every=0, meta=meta)
    for step in steps:
        params, state = make_weights(model, seed + step)
        state = state if images is None else take_statistics(model, params, state, images)
        ema = jax.tree.map(lambda x: x * np.float32(0.5), params) if config.train.ema else None
        placed = jax.tree.map(jax.numpy.asarray, (params, state, ema))
        state = TrainState(
            step=jax.numpy.asarray(step), params=placed[0], model_state=placed[1], ema=placed[2], opt_state={},
            key=jax.random.key(0), skipped=jax.numpy.zeros(2, jax.numpy.int32),
        )  # fmt: skip
        saver.save(state, must=True)
    saver.close()
    write_json(folder / "config.json", settings.to_json(config))
    write_json(folder / "noise.json", ledger.to_dict())
    if not captions:
        write_counts(folder / PRETRAINING, {"train": dict.fromkeys(CLASSES, 4)})
    write_record(folder, {"stages": {"pretrain": {"output": "x", "revision": "abc1234"}}, "environment": {}})
    write_rows(folder, "pretrain", [
        Row(run=folder.name, stage="pretrain", step=steps[-1], weights="raw", noise_kind=ledger.kind, noise_asked=0.3,
            noise_realised=0.25, noise_seed=seed, seed=seed, objective=config.objective.name, model=config.model.name,
            metric="accuracy", value=0.5 + seed / 10, task="pretrain", split="validation", domain="id")
    ])  # fmt: skip
    return folder
