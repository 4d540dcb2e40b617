"""CLIP in miniature: coloured shapes with captions, prepared by the builder, and the clip_pairs config made tiny."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs import clip_pairs
from nml_jax import main
from nml_jax.prepare.pairs import build

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 30)}
SHAPES = ("square", "stripe", "frame")
PINNED = {"noise": 0.5, "seed": 0}
TINY = {
    # A ViT, as its gradients compile in a fraction of a ResNet's time.
    "data.image_size": 8, "model.tower": "vit_ti", "model.patch": 4, "model.dim": 16, "model.depth": 1,
    "model.heads": 2, "model.width": None, "model.blocks": None, "model.embed_dim": 8,
    "model.text_context": 16, "model.text_width": 16, "model.text_depth": 1, "model.text_heads": 2,
    "train.batch": 16, "train.epochs": 3.0, "runtime.log_every": 2, "runtime.eval_every": 1.0,
    "runtime.save_every": 1.0, "runtime.threads": 0, "runtime.evaluators": ("spectrum", "zeroshot"),
    "data.validation_split": "val", "downstream.test": ("val",), "extract.batch": 16,
    "zeroshot.retrieval": ("val",), "tune.epochs": 2, "tune.lrs": (0.01,), "tune.weight_decays": (0.0,),
    "tune.methods": ("linear",), "stages": ("pretrain", "extract", "zeroshot", "tune", "report"),
}  # fmt: skip


def image(colour: str, shape: str, rng: np.random.Generator) -> bytes:
    """An 8-pixel PNG of a shape, on noise."""
    pixels = rng.integers(0, 60, (8, 8, 3), dtype=np.uint8)
    inside = np.zeros((8, 8), bool)
    inside[1:7, 1:7] = True
    if shape == "stripe":
        inside[:3] = inside[5:] = False
    elif shape == "frame":
        inside[3:5, 3:5] = False
    pixels[inside] = COLOURS[colour]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> None:
    """A tar as img2dataset writes it: of each sample one member per suffix, named after its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, sample in enumerate(samples):
            for suffix, content in sample.items():
                member = tarfile.TarInfo(f"{i:06}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def prepare(folder: Path, *, train: int = 60, val: int = 24) -> Path:
    """A prepared dataset with splits train and val, two captions an image, labelled by colour."""
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("val", val)):
        samples = []
        for i in range(n):
            colour, shape = list(COLOURS)[i % 4], SHAPES[i // 4 % 3]
            captions = [f"a {colour} {shape}", f"{shape} {i}"]
            samples.append({
                "png": image(colour, shape, rng),
                "txt": captions[0].encode(),
                "json": json.dumps({"captions": captions, "colour": colour}).encode(),
            })  # fmt: skip
        write_tar(folder / "tars" / split / "00000.tar", samples)
    build.build_image_text([folder / "tars"], folder / "shapes", workers=1, label="colour")
    return folder / "shapes"


def config(data: Path, **overrides: Any):
    out = clip_pairs.get_config()
    values = {"data.path": str(data)} | TINY | PINNED | overrides
    with out.unlocked():
        out.update_from_flattened_dict(values)
    return out


def launch(workdir: Path, data: Path, *, pinned: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Run it in this process; `force` and `dry_run` are those of `main.launch`, the rest overrides the config."""
    how = {key: options.pop(key) for key in ("force", "dry_run") if key in options}
    main.launch(config(data, **options), workdir, pinned=PINNED if pinned is None else pinned, **how)


def flags(workdir: Path, data: Path, **overrides: Any) -> list[str]:
    """The same as arguments of the command line."""
    values = {"data.path": data} | TINY | PINNED | overrides
    return [
        "--config=configs/clip_pairs.py",
        f"--workdir={workdir}",
        *(f"--config.{k}={v}" for k, v in values.items() if v is not None),
    ]
