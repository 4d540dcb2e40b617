"""Builders of the downstream sets that TFDS lacks, from their distributors' archives.

    python -m nml_jax.prepare KIND SRC OUT [--workers N]

SRC is the downloaded archive, or the folder it was unpacked to. The archive is read without extracting it. Records keep
the order of the archive, or of the sorted paths of the folder. Keys are the distributor's paths.
"""

import functools
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax.data import npy
from nml_jax.data.class_names import compose, escape_name, warn_alike
from nml_jax.data.images import codec
from nml_jax.data.sources.source import digest
from nml_jax.errors import UserError
from nml_jax.prepare import archives
from nml_jax.prepare.image_files import MAX_PIXELS
from nml_jax.prepare.listing import Item, Listing
from nml_jax.prepare.out_folder import check_out
from nml_jax.prepare.records import build, check_class
from nml_jax.tasks import catalogue, class_maps
from nml_jax.tasks.frames import Frames, write_frames

OTHER = "no image of the dataset"  # why other files of an archive are left out
BORDER = 2  # width in pixels of the red border that marks every ObjectNet image as a test image

SPLITS = {"train": "train", "valid": "validation", "test": "test"}  # folder in OpenAI's archives -> split

Chosen = dict[str, dict[str, tuple[str, str]]]  # split -> path in the archive -> (class, key)
Decode = Callable[[bytes], tuple[bytes, str]]


class Members(Listing):
    """A listing of images that are files of an archive."""

    splits: Chosen

    def __init__(self, src: Path, chosen: Chosen, classes: list[str], prepare: Decode | None = None):
        super().__init__(src)
        self.splits, self.classes, self._prepare = chosen, classes, prepare

    def iterate_items(self, split: str) -> Iterator[Item]:
        chosen, counts = self.splits[split], Counter[str]()
        for name, content, reason in archives.read(self.src, chosen, counts):
            yield Item(*chosen[name], functools.partial(self._load_image, content, reason))
        self.seen = counts.total()
        counts[OTHER] = counts.pop("", 0) - sum(map(len, self.splits.values()))
        file = escape_name(self.src.name)
        self.left_out = [{"file": file, "reason": reason, "files": n} for reason, n in (+counts).items()]

    def _load_image(self, content: bytes, reason: str) -> tuple[bytes, str]:
        return (content, reason) if reason or self._prepare is None else self._prepare(content)


class VideoFrames(Members):
    """A listing of video frames. It writes beside the records which frames surround which anchor frame."""

    def __init__(self, src: Path, chosen: Chosen, labels: Mapping[str, list[int]], groups: Mapping[str, list[str]]):
        super().__init__(src, chosen, list(class_maps.load("imagenet_vid_robust")))
        self._labels, self._groups = labels, groups

    def complete_manifest(self, folder: Path) -> dict[str, Any]:
        keys = json.loads((folder / "supervision" / "test.keys.json").read_text("utf-8"))
        number = {key: i for i, key in enumerate(keys)}
        kept = [[anchor, *around] for anchor, around in self._groups.items() if anchor in number]
        groups = tuple(tuple(number[key] for key in group if key in number) for group in kept)
        frames = Frames(tuple(tuple(self._labels[key]) for key in keys), groups)
        write_frames(folder, "test", frames)
        left_out = sum(map(len, kept)) - sum(map(len, groups))
        return {"anchors": len(groups), "left_out": left_out, "frames_sha256": digest(list(frames))}


class CorruptedCifar(Listing):
    """The listing of CIFAR-100-C. Each corruption is one array with a block of images for each of five severities."""

    def __init__(self, src: Path):
        super().__init__(src)
        self._files = {Path(name).stem: name for name in archives.list_names(src) if name.endswith(".npy")}
        if missing := {"labels", *map(_translate_corruption, catalogue.CORRUPTIONS)} - set(self._files):
            raise _make_missing_error(src, f"{sorted(missing)[0]}.npy", "cifar100_c")
        labels = self._read_array("labels")
        self.classes = [str(i) for i in range(100)]
        if labels.ndim != 1 or len(labels) % 5 or not set(labels.tolist()) <= set(range(100)):
            raise UserError(f"labels.npy in {src} does not label five severities of CIFAR-100", "download it again")
        self._labels = labels.reshape(5, -1)
        self._last: tuple[str, np.ndarray] = "", labels
        self.splits = {f"{c}_{s}": range(len(labels) // 5) for c in catalogue.CORRUPTIONS for s in range(1, 6)}
        self.seen = sum(map(len, self.splits.values()))  # images, which lie in arrays

    def iterate_items(self, split: str) -> Iterator[Item]:
        corruption, _, severity = split.rpartition("_")
        images, labels = self._read_images(corruption)[int(severity) - 1], self._labels[int(severity) - 1]
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield Item(str(label), f"{split}/{i}", functools.partial(_encode_png, image))

    def _read_images(self, corruption: str) -> np.ndarray:
        """Return the images of a corruption, uint8 [5, N, 32, 32, 3]. Keep the last ones for the next severity."""
        if self._last[0] != corruption:
            name = _translate_corruption(corruption)
            images = self._read_array(name)
            if images.dtype != np.uint8 or images.shape != (self._labels.size, 32, 32, 3):
                raise UserError(f"{name}.npy in {self.src} is {images.dtype} {images.shape}", "download it again")
            self._last = corruption, images.reshape(5, -1, 32, 32, 3)
        return self._last[1]

    def _read_array(self, name: str) -> np.ndarray:
        try:
            return npy.load(archives.read_one(self.src, self._files[name]))
        except (ValueError, EOFError) as e:
            raise UserError(f"{name}.npy in {self.src} is not an array: {e}", "download it again") from e


def build_class_folders(kind: str, src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build Rendered SST2 or Country211 from <train|valid|test>/<class>/<image>. Return the manifest.

    Raises:
        UserError: `src` lacks a file or cannot be read, or `out` exists already or cannot be written. The other
            builders raise the same.
    """
    chosen: Chosen = {split: {} for split in SPLITS.values()}
    for name in archives.list_names(src):
        parts = name.split("/")
        if len(parts) > 2 and parts[-3] in SPLITS:
            chosen[SPLITS[parts[-3]]][name] = (compose(parts[-2]), "/".join(parts[-3:]))
    for folder, split in SPLITS.items():
        if not chosen[split]:
            raise _make_missing_error(src, f"{folder}/<class>/<image>", kind)
    classes = sorted({label for images in chosen.values() for label, _ in images.values()})
    for name in classes:
        check_class(name, "rename the folder")
    warn_alike(classes, f"{src}, classes")
    return _build(kind, Members(src, chosen, classes), out, workers)


def build_fgvc_aircraft(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build FGVC-Aircraft 2013b with variants as classes. Images keep the copyright line at their lower edge."""
    files = {name.split("/")[-1]: name for name in archives.list_names(src)}

    def read_lines(file: str) -> list[str]:
        if file not in files:
            raise _make_missing_error(src, file, "aircraft")
        return archives.read_one(src, files[file]).decode("utf-8").splitlines()

    classes, chosen = read_lines("variants.txt"), {}
    for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        pairs = [line.partition(" ")[::2] for line in read_lines(f"images_variant_{file}.txt")]
        if wrong := [f"{image} {variant}" for image, variant in pairs if variant not in classes]:
            raise UserError(f"{src}: {wrong[0]!r} names a variant that variants.txt lacks", "download it again")
        if missing := [image for image, _ in pairs if f"{image}.jpg" not in files]:
            raise _make_missing_error(src, f"{missing[0]}.jpg", "aircraft")
        chosen[split] = {files[f"{image}.jpg"]: (variant, f"images/{image}.jpg") for image, variant in pairs}
    return _build("fgvc_aircraft", Members(src, chosen, classes), out, workers)


def build_objectnet(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build ObjectNet 1.0 with those 113 of its 313 classes that overlap ImageNet's. Cut off the red border."""
    classes, chosen = sorted(class_maps.load("objectnet")), {}
    for name in archives.list_names(src):
        parts = name.split("/")
        if len(parts) > 1 and parts[-2] in classes and name.lower().endswith(".png"):
            chosen[name] = (parts[-2], "/".join(parts[-2:]))
    if not chosen:
        raise _make_missing_error(src, "images/<class>/<image>.png", "objectnet")
    return _build("objectnet", Members(src, {"test": chosen}, classes, _cut_border), out, workers)


def build_imagenet_vid_robust(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build ImageNet-Vid-Robust: frames, all classes in each, and the sets of frames around 1,109 anchor frames."""
    files = {}
    for name in archives.list_names(src):
        if "ytbb-robust" not in name.split("/"):  # the other set of the same archive
            files["/".join(name.split("/")[-3:])] = name

    def read_table(file: str) -> dict[str, Any]:
        path = next((path for short, path in files.items() if short.endswith(f"metadata/{file}")), None)
        if path is None:
            raise _make_missing_error(src, f"metadata/{file}", "imagenet_vid_robust")
        try:
            return json.loads(archives.read_one(src, path))
        except ValueError as e:
            raise UserError(f"{file} in {src} is not JSON: {e}", "download it again") from e

    labels, groups = read_table("labels.json"), read_table("pmsets.json")
    classes = list(class_maps.load("imagenet_vid_robust"))
    if missing := [key for key in labels if key not in files]:
        raise _make_missing_error(src, missing[0], "imagenet_vid_robust")
    known = range(len(classes))
    if wrong := [key for key, ids in labels.items() if not (isinstance(ids, list) and ids and set(ids) <= {*known})]:
        raise UserError(f"{src}: {wrong[0]} has the labels {labels[wrong[0]]}", "download it again")
    chosen = {"test": {files[key]: (classes[ids[0]], key) for key, ids in labels.items()}}
    return _build("imagenet_vid_robust", VideoFrames(src, chosen, labels, groups), out, workers)


def build_cifar100_corrupted(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build CIFAR-100-C as PNG, one split for each of 19 corruptions and 5 severities, named as TFDS's CIFAR-10-C."""
    return _build("cifar100_corrupted", CorruptedCifar(src), out, workers)


BUILDERS: dict[str, tuple[Callable[..., dict[str, Any]], str]] = {
    "rendered_sst2": (functools.partial(build_class_folders, "rendered_sst2"), "Rendered SST2, from rendered-sst2.tgz"),
    "country211": (functools.partial(build_class_folders, "country211"), "Country211, from country211.tgz"),
    "fgvc_aircraft": (build_fgvc_aircraft, "FGVC-Aircraft, from fgvc-aircraft-2013b.tar.gz"),
    "objectnet": (build_objectnet, "ObjectNet, from the unpacked objectnet-1.0.zip"),
    "imagenet_vid_robust": (build_imagenet_vid_robust, "ImageNet-Vid-Robust, from imagenet_vid_ytbb_robust.tar.gz"),
    "cifar100_corrupted": (build_cifar100_corrupted, "CIFAR-100-C, from CIFAR-100-C.tar"),
}


def _build(kind: str, listing: Listing, out: Path, workers: int | None) -> dict[str, Any]:
    check_out(listing.src, out)
    return build(kind, listing, out, workers=workers)


def _make_missing_error(src: Path, what: str, entry: str) -> UserError:
    return UserError(
        f"{src} does not contain {what}", f"get it {(catalogue.TRAINED | catalogue.PARTNERS)[entry].obtain}"
    )


def _translate_corruption(corruption: str) -> str:
    """Translate TFDS's name of a corruption into the distributor's."""
    return {"frosted_glass_blur": "glass_blur", "elastic": "elastic_transform"}.get(corruption, corruption)


def _encode_png(image: np.ndarray) -> tuple[bytes, str]:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue(), ""


def _cut_border(content: bytes) -> tuple[bytes, str]:
    """Cut the red border off an ObjectNet image. Return a PNG and "", or b"" and the reason why there is none."""
    try:
        codec.check(content, MAX_PIXELS)
        image = codec.decode(content)[BORDER:-BORDER, BORDER:-BORDER]
    except codec.ImageError as e:
        return b"", str(e)
    return _encode_png(image) if image.size else (b"", "nothing within its border")
