"""Builders of the downstream sets that TFDS lacks, from what their distributors offer.

    python -m nml_jax.prepare KIND SRC OUT [--workers N]

SRC is the downloaded archive, which is read and not extracted, or the folder it was unpacked to. Records keep the order
of the archive, or of the sorted paths of the folder; keys are the distributor's paths.
"""

import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax.data.images import codec
from nml_jax.data.sources.source import digest
from nml_jax.errors import UserError
from nml_jax.prepare import archives
from nml_jax.prepare.records import MAX_PIXELS, Item, Listing, build, check_class, check_out
from nml_jax.tasks import catalogue, class_maps
from nml_jax.tasks.frames import Frames, write_frames

BORDER = 2  # pixels of red around every image of ObjectNet, which give it away as a test image

SPLITS = {"train": "train", "valid": "validation", "test": "test"}  # of OpenAI's archives

Chosen = dict[str, dict[str, tuple[str, str]]]  # split -> path in the archive -> (class, key)
Decode = Callable[[bytes], tuple[bytes, str]]


class Members(Listing):
    """Images that are files of an archive."""

    splits: Chosen

    def __init__(self, src: Path, chosen: Chosen, classes: list[str], prepare: Decode | None = None):
        super().__init__(src)
        self.splits, self.classes, self._prepare = chosen, classes, prepare

    def items(self, split: str) -> Iterator[Item]:
        chosen = self.splits[split]
        for name, content, reason in archives.read(self.src, chosen):
            yield Item(*chosen[name], functools.partial(self._load, content, reason))

    def _load(self, content: bytes, reason: str) -> tuple[bytes, str]:
        return (content, reason) if reason or self._prepare is None else self._prepare(content)


class VideoFrames(Members):
    """The same, of frames of videos; which surround which is written beside the records."""

    def __init__(self, src: Path, chosen: Chosen, labels: Mapping[str, list[int]], groups: Mapping[str, list[str]]):
        super().__init__(src, chosen, list(class_maps.load("imagenet_vid_robust")))
        self._labels, self._groups = labels, groups

    def about(self, folder: Path) -> dict[str, Any]:
        keys = json.loads((folder / "supervision" / "test.keys.json").read_text("utf-8"))
        number = {key: i for i, key in enumerate(keys)}
        kept = [[anchor, *around] for anchor, around in self._groups.items() if anchor in number]
        groups = tuple(tuple(number[key] for key in group if key in number) for group in kept)
        found = Frames(tuple(tuple(self._labels[key]) for key in keys), groups)
        write_frames(folder, "test", found)
        left_out = sum(map(len, kept)) - sum(map(len, groups))
        return {"anchors": len(groups), "left_out": left_out, "frames_sha256": digest(list(found))}


class CorruptedCifar(Listing):
    """CIFAR-100-C: for each corruption an array of five blocks of images, one for each severity."""

    def __init__(self, src: Path):
        super().__init__(src)
        self._files = {Path(name).stem: name for name in archives.list_names(src) if name.endswith(".npy")}
        if missing := {"labels", *map(_file_of, catalogue.CORRUPTIONS)} - set(self._files):
            raise _lacks(src, f"{sorted(missing)[0]}.npy", "cifar100_c")
        labels = self._array("labels")
        self.classes = [str(i) for i in range(100)]
        if labels.ndim != 1 or len(labels) % 5 or not set(labels.tolist()) <= set(range(100)):
            raise UserError(f"labels.npy in {src} are no labels of CIFAR-100 for five severities", "download it again")
        self._labels = labels.reshape(5, -1)
        self._last: tuple[str, np.ndarray] = "", labels
        self.splits = {f"{c}_{s}": range(len(labels) // 5) for c in catalogue.CORRUPTIONS for s in range(1, 6)}

    def items(self, split: str) -> Iterator[Item]:
        corruption, _, severity = split.rpartition("_")
        images, labels = self._images(corruption)[int(severity) - 1], self._labels[int(severity) - 1]
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield Item(str(label), f"{split}/{i}", functools.partial(_png, image))

    def _images(self, corruption: str) -> np.ndarray:
        if self._last[0] == corruption:  # its five severities are five splits, one after another
            return self._last[1]
        images = self._array(_file_of(corruption))
        if images.dtype != np.uint8 or images.shape != (self._labels.size, 32, 32, 3):
            raise UserError(f"{_file_of(corruption)}.npy in {self.src} is {images.dtype} {images.shape}", "get it anew")
        self._last = corruption, images.reshape(5, -1, 32, 32, 3)
        return self._last[1]

    def _array(self, name: str) -> np.ndarray:
        try:
            return np.load(io.BytesIO(archives.read_one(self.src, self._files[name])), allow_pickle=False)
        except (ValueError, EOFError) as e:
            raise UserError(f"{name}.npy in {self.src} is no array: {e}", "download it again") from e


def class_folders(kind: str, src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Rendered SST2 and Country211: <train|valid|test>/<class>/<image>. Returns the manifest, as all builders.

    Raises:
        UserError: as the others: SRC is not what is expected or cannot be read, OUT is taken or cannot be written.
    """
    chosen: Chosen = {split: {} for split in SPLITS.values()}
    for name in archives.list_names(src):
        parts = name.split("/")
        if len(parts) > 2 and parts[-3] in SPLITS:
            chosen[SPLITS[parts[-3]]][name] = (parts[-2], "/".join(parts[-3:]))
    for folder, split in SPLITS.items():
        if not chosen[split]:
            raise _lacks(src, f"{folder}/<class>/<image>", kind)
    classes = sorted({label for images in chosen.values() for label, _ in images.values()})
    for name in classes:
        check_class(name, "rename the folder")
    return _build(kind, Members(src, chosen, classes), out, workers)


def fgvc_aircraft(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """FGVC-Aircraft 2013b, by variant; images keep the line of copyright at their lower edge."""
    files = {name.split("/")[-1]: name for name in archives.list_names(src)}

    def lines(file: str) -> list[str]:
        if file not in files:
            raise _lacks(src, file, "aircraft")
        return archives.read_one(src, files[file]).decode("utf-8").splitlines()

    classes, chosen = lines("variants.txt"), {}
    for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        pairs = [line.partition(" ")[::2] for line in lines(f"images_variant_{file}.txt")]
        if wrong := [f"{image} {variant}" for image, variant in pairs if variant not in classes]:
            raise UserError(f"{src}: {wrong[0]!r} names no variant of variants.txt", "download it again")
        if missing := [image for image, _ in pairs if f"{image}.jpg" not in files]:
            raise _lacks(src, f"{missing[0]}.jpg", "aircraft")
        chosen[split] = {files[f"{image}.jpg"]: (variant, f"images/{image}.jpg") for image, variant in pairs}
    return _build("fgvc_aircraft", Members(src, chosen, classes), out, workers)


def objectnet(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """ObjectNet 1.0, the 113 of its 313 classes that overlap ImageNet's; the red border is cut off."""
    classes, chosen = sorted(class_maps.load("objectnet")), {}
    for name in archives.list_names(src):
        parts = name.split("/")
        if len(parts) > 1 and parts[-2] in classes and name.lower().endswith(".png"):
            chosen[name] = (parts[-2], "/".join(parts[-2:]))
    if not chosen:
        raise _lacks(src, "images/<class>/<image>.png", "objectnet")
    return _build("objectnet", Members(src, {"test": chosen}, classes, _without_border), out, workers)


def imagenet_vid_robust(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """ImageNet-Vid-Robust: frames with all classes in them, and the sets of frames around 1,109 anchors."""
    files = {}
    for name in archives.list_names(src):
        if "ytbb-robust" not in name.split("/"):  # the other set of the same archive
            files["/".join(name.split("/")[-3:])] = name

    def table(file: str) -> dict[str, Any]:
        path = next((path for short, path in files.items() if short.endswith(f"metadata/{file}")), None)
        if path is None:
            raise _lacks(src, f"metadata/{file}", "imagenet_vid_robust")
        try:
            return json.loads(archives.read_one(src, path))
        except ValueError as e:
            raise UserError(f"{file} in {src} is no JSON: {e}", "download it again") from e

    labels, groups = table("labels.json"), table("pmsets.json")
    classes = list(class_maps.load("imagenet_vid_robust"))
    if missing := [key for key in labels if key not in files]:
        raise _lacks(src, missing[0], "imagenet_vid_robust")
    if wrong := [key for key, of_frame in labels.items() if not _are_classes(of_frame)]:
        raise UserError(f"{src}: {wrong[0]} has the labels {labels[wrong[0]]}", "download it again")
    chosen = {"test": {files[key]: (classes[of_frame[0]], key) for key, of_frame in labels.items()}}
    return _build("imagenet_vid_robust", VideoFrames(src, chosen, labels, groups), out, workers)


def cifar100_corrupted(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """CIFAR-100-C as TFDS names CIFAR-10-C: for each of 19 corruptions and 5 severities a split, as PNG."""
    return _build("cifar100_corrupted", CorruptedCifar(src), out, workers)


BUILDERS: dict[str, tuple[Callable[..., dict[str, Any]], str]] = {
    "rendered_sst2": (functools.partial(class_folders, "rendered_sst2"), "Rendered SST2, from rendered-sst2.tgz"),
    "country211": (functools.partial(class_folders, "country211"), "Country211, from country211.tgz"),
    "fgvc_aircraft": (fgvc_aircraft, "FGVC-Aircraft, from fgvc-aircraft-2013b.tar.gz"),
    "objectnet": (objectnet, "ObjectNet, from the unpacked objectnet-1.0.zip"),
    "imagenet_vid_robust": (imagenet_vid_robust, "ImageNet-Vid-Robust, from imagenet_vid_ytbb_robust.tar.gz"),
    "cifar100_corrupted": (cifar100_corrupted, "CIFAR-100-C, from CIFAR-100-C.tar"),
}


def _build(kind: str, listing: Listing, out: Path, workers: int | None) -> dict[str, Any]:
    check_out(listing.src, out)
    return build(kind, listing, out, workers=workers)


def _lacks(src: Path, what: str, entry: str) -> UserError:
    return UserError(f"{src} holds no {what}", f"get it {(catalogue.TRAINED | catalogue.PARTNERS)[entry].obtain}")


def _are_classes(ids: Any) -> bool:
    return isinstance(ids, list) and bool(ids) and all(i in range(30) for i in ids)


def _file_of(corruption: str) -> str:
    """The distributor's name of a corruption that TFDS calls so."""
    return {"frosted_glass_blur": "glass_blur", "elastic": "elastic_transform"}.get(corruption, corruption)


def _png(image: np.ndarray) -> tuple[bytes, str]:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue(), ""


def _without_border(content: bytes) -> tuple[bytes, str]:
    try:
        codec.check(content, MAX_PIXELS)
        image = codec.decode(content)[BORDER:-BORDER, BORDER:-BORDER]
    except codec.ImageError as e:
        return b"", str(e)
    return _png(image) if image.size else (b"", "nothing within its border")
