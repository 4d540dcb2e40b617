"""Make tiny archives in the layouts of the distributed downstream sets."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax.tasks import catalogue
from tests.scenes.tiny_sets import image

VARIANTS = ["707-320", "F-16A/B", "MD-11"]
AIRCRAFT = {"train": ("0000003", "0000001"), "val": ("0000007",), "test": ("0000002", "0000009")}
VID = "imagenet_vid_ytbb_robust/imagenet-vid-robust"


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(array))
    return out.getvalue()


def text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def clip_set(top: str, classes: tuple[str, ...]) -> dict[str, bytes]:
    """Return files in the layout of OpenAI's archives, unsorted."""
    splits = ("valid", "train", "test")
    names = [f"{top}/{s}/{c}/{i}.png" for s in splits for c in reversed(classes) for i in (10, 9)]
    return {name: image(n) for n, name in enumerate(names)} | {f"{top}/._junk/train/x/y.png": b"", f"{top}/README": b""}


def aircraft() -> dict[str, bytes]:
    top = "fgvc-aircraft-2013b/data"
    files = {f"{top}/variants.txt": text(*VARIANTS)}
    for split, images in AIRCRAFT.items():
        files[f"{top}/images_variant_{split}.txt"] = text(*(f"{i} {VARIANTS[int(i) % 3]}" for i in images))
        files[f"{top}/images_family_{split}.txt"] = text("0000001 Boeing 707")
    images = sorted(i for of_split in AIRCRAFT.values() for i in of_split)
    return files | {f"{top}/images/{i}.jpg": image(int(i)) for i in (*images, "0000099")}


def objectnet() -> dict[str, bytes]:
    names = ("wok/b.png", "air_freshener/x.png", "alarm_clock/a.png", "wok/a.PNG")
    return {f"objectnet-1.0/images/{name}": image(n) for n, name in enumerate(names)} | {
        "objectnet-1.0/mappings/README.txt": b"",
    }


def vid() -> dict[str, bytes]:
    frames = [f"val/ILSVRC2015_val_0000000{v}/00000{f}.JPEG" for v in (1, 0) for f in range(4)]
    labels = {frame: [8] if "_00000000/" in frame else [9, 17] for frame in frames}
    groups = {frames[1]: [frames[0], frames[2]], frames[6]: []}
    return {
        **{f"{VID}/{frame}": image(n) for n, frame in enumerate(frames)},
        f"{VID}/metadata/labels.json": json.dumps(labels).encode(),
        f"{VID}/metadata/pmsets.json": json.dumps(groups).encode(),
        "imagenet_vid_ytbb_robust/ytbb-robust/metadata/labels.json": b"{}",
        "imagenet_vid_ytbb_robust/ytbb-robust/" + frames[0]: b"",
    }


def cifar(n: int = 2) -> dict[str, bytes]:
    names = {"frosted_glass_blur": "glass_blur", "elastic": "elastic_transform"}
    rng = np.random.default_rng(0)
    arrays = {
        f"CIFAR-100-C/{names.get(c, c)}.npy": npy(rng.integers(0, 256, (5 * n, 32, 32, 3), dtype=np.uint8))
        for c in catalogue.CORRUPTIONS
    }
    return arrays | {"CIFAR-100-C/labels.npy": npy(np.tile([99, 3], 5 * n // 2).astype(np.uint8))}


LAYOUTS = {
    "rendered_sst2": lambda: clip_set("rendered-sst2", ("negative", "positive")),
    "country211": lambda: clip_set("country211", tuple(f"C{i:03}" for i in range(211))[::70]),
    "fgvc_aircraft": aircraft,
    "objectnet": objectnet,
    "imagenet_vid_robust": vid,
    "cifar100_corrupted": cifar,
}


def pack(path: Path, files: dict[str, bytes], kind: str) -> Path:
    """Write files as a tar ("tar" or "tgz"), a zip, or a folder."""
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo("./" + name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path
