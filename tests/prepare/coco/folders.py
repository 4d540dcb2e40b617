"""Write small data sets in COCO's format, and build them."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from nml_jax.data.sources import annotated
from nml_jax.prepare.coco.build import build_coco_folder

SQUARE = [[2, 3, 8, 3, 8, 9, 2, 9]]


def encode(mode="RGB", size=(20, 12), form="JPEG", **how) -> bytes:
    """A picture of width 20 and height 12."""
    if mode == "I;16":
        image = Image.fromarray(np.full(size[::-1], 40_000, np.uint16))
    else:
        image = Image.new(mode, size)
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


def image(i, name=None, **more):
    return {"id": i, "file_name": name or f"{i}.jpg", "height": 12, "width": 20, **more}


def note(i, image_id=1, **more):
    return {"id": i, "image_id": image_id, "category_id": 3, "bbox": [2, 3, 6, 6], "area": 36.0, "iscrowd": 0,
            "segmentation": SQUARE, **more}  # fmt: skip


CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def write(folder: Path, annotations, images=None, categories=None, name="instances.json", files=None) -> Path:
    """Write a data set of two images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [image(1), image(2)] if images is None else images
    tree = {"images": images, "annotations": annotations, "categories": categories or CATEGORIES}
    (folder / name).write_text(json.dumps(tree))
    for file, content in ({"1.jpg": encode(), "2.jpg": encode()} if files is None else files).items():
        path = folder / "images" / file
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content)
    return folder


def build(tmp_path, annotations, **about):
    manifest = build_coco_folder(write(tmp_path / "src", annotations, **about), tmp_path / "out", workers=1)
    return manifest, annotated.load(str(tmp_path / "out"), "train")
