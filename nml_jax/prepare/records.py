"""Images -> records of a prepared TFDS/ArrayRecord dataset: what all builders do alike. builders.py is the command."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax.errors import UserError
from nml_jax.runs.files import write_json

MAX_PIXELS = 50_000_000
MAX_BYTES = 1 << 29  # of a file; a record ends at twice that
TOO_LARGE = f"more than {MAX_BYTES >> 20} MiB"
RECORDS_PER_SHARD = 8192  # half a gigabyte of photos of 60 kB
CHUNK = 64  # files in memory at a time

RESIZE = (
    "shrink images whose shorter side is larger, to JPEG of quality 95 with that shorter side, such as 256. Gains: of "
    "500 x 375 little more than half of the bytes and of the time to decode them. Costs: random crops come from fewer "
    "pixels and are enlarged more (8 %% of 500 x 375 is 122 pixels wide, of 341 x 256 it is 84, before either becomes "
    "224), and pixels are compressed twice. Leave test sets as they are: scores on shrunken images are other scores"
)

Example = dict[str, Any]


class Item(NamedTuple):
    """An image that is to become a record, or to be refused."""

    label: str  # name of the class
    key: str
    load: Callable[[], tuple[bytes, str]]  # its bytes, and why there are none, or ""; called in any thread


class Listing:
    """What is to be built.

    Attributes:
        src: where it comes from.
        splits: split -> something as long as it has images.
        classes: their names, in the order of the labels.
        refused: {"file": key, "reason": why} of everything that cannot be taken.
        resize: shorter side that images may have, or None.
        resized: split -> number of its images that were larger.
    """

    resize: int | None = None

    def __init__(self, src: Path):
        self.src = src
        self.splits: Mapping[str, Sized] = {}
        self.classes: list[str] = []
        self.refused: list[dict[str, str]] = []
        self.resized: Counter[str] = Counter()

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split, in the order of its records."""
        raise NotImplementedError

    def cure(self, split: str) -> str:
        """What to do about a split without a usable image."""
        return f"get {self.src} anew"

    def about(self, folder: Path) -> dict[str, Any]:
        """What else belongs into the manifest; `folder` holds all records, and more may be written beside them."""
        return {}


def build(name: str, listing: Listing, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build the dataset `out` from a listing; it appears under its name when it is complete.

    Args:
        name: of the builder, for the manifest and TFDS.
        out: does not exist, or is an empty folder (`check_out`).
        workers: threads that read and check files; None: one per core.

    Returns:
        The manifest.

    Raises:
        UserError: a split has no usable image, or `out` cannot be written.
    """
    partial = partial_folder(out)
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
        (partial / "supervision").mkdir(parents=True)
        splits = _write(partial, name, listing, workers or os.cpu_count() or 1)
        manifest = {"builder": name, "schema": 1, "classes": listing.classes, "splits": splits}
        if listing.resize:
            manifest["resized"] = describe_resized(listing.resize, {split: listing.resized[split] for split in splits})
        manifest |= {"refused": listing.refused, **listing.about(partial)}
        write_json(partial / "manifest.json", manifest)
        partial.rename(out.resolve())
    except OSError as e:
        raise UserError(f"cannot write {out}: {e}", "free or remount the disk, or choose another OUT") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def check_out(src: Path, out: Path) -> None:
    """Raises UserError where `out` is taken, or lies inside the folder `src`."""
    target = out.resolve()
    if target.is_relative_to(src.resolve()):
        raise UserError(f"{out} lies inside {src}", "choose an OUT outside SRC, where it is not taken for a split")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{out} exists already", "choose another OUT, or delete it first")


def check_resize(side: int | None) -> None:
    """Raises UserError where images cannot have this shorter side."""
    if side is not None and side < 1:
        raise UserError(f"--resize={side} leaves no image", "give the shorter side in pixels, as in --resize=256")


def describe_resized(side: int, images: Mapping[str, int]) -> dict[str, Any]:
    """What the manifest says of shrunken images, of which every split has so many."""
    from nml_jax.data.images import codec

    return {"shorter_side": side, **codec.SHRUNK, "images": dict(images)}


def partial_folder(out: Path) -> Path:
    """Where `out` is built, on the same disk."""
    return out.resolve().with_name(f".{out.resolve().name}.partial")


def check_split(name: str, cure: str) -> None:
    """Raises UserError where TFDS cannot carry the name of a split."""
    if not re.fullmatch(r"[\w-]*\w[\w-]*", name) or name == "all":
        raise UserError(f"{name!r} cannot name a split", f"{cure}: letters, digits, _ and -, not 'all'")


def check_class(name: str, cure: str) -> None:
    """Raises UserError where TFDS cannot carry the name of a class: it keeps them in a file, one in a line."""
    if not name or name != name.strip() or not name.isprintable():
        raise UserError(f"{name!r} cannot name a class", f"{cure}: printable, without blanks around it")


def no_image(listing: Listing, split: str) -> UserError:
    return UserError(f"split {split!r} has no usable image", listing.cure(split))


def _write(folder: Path, name: str, listing: Listing, workers: int) -> dict[str, Any]:
    """Write records, TFDS's description and the supervision index. Returns what the manifest says of each split."""
    from PIL import Image
    from tqdm import tqdm

    writer, about = _writer(folder, name, listing), {}
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=sum(map(len, listing.splits.values())), desc="images", unit=" files", mininterval=0.5) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we refuse such images ourselves
        for split in listing.splits:
            about[split] = _write_split(folder, listing, writer, split, _checked(listing, split, pool, bar))
    with raise_full_disk():
        writer.close_all()
    return about


def _write_split(
    folder: Path, listing: Listing, writer: Any, split: str, chunks: Iterator[list[Example]]
) -> dict[str, Any]:
    import numpy as np

    labels, keys, sha = [], [], hashlib.sha256()
    for chunk in chunks:
        for example in chunk:
            labels.append(example["label"])
            keys.append(example["key"])
            sha.update(f"{example['key']}\n{example['label']}\n{len(example['image'])}\n".encode())
            sha.update(example["image"])
        with raise_full_disk():
            writer.add_examples({split: chunk})
    if not labels:
        raise no_image(listing, split)
    np.save(folder / "supervision" / f"{split}.npy", np.array(labels, np.int32))
    (folder / "supervision" / f"{split}.keys.json").write_text(json.dumps(keys), "utf-8")
    counts = np.bincount(labels, minlength=len(listing.classes)).tolist()
    per_class = dict(zip(listing.classes, counts, strict=True))
    return {"records": len(labels), "sha256": sha.hexdigest(), "per_class": per_class}


def _checked(listing: Listing, split: str, pool: ThreadPoolExecutor, bar: Any) -> Iterator[list[Example]]:
    """Chunks of examples of those files that are images; the others are refused."""
    number, items = {name: i for i, name in enumerate(listing.classes)}, listing.items(split)
    while chunk := list(itertools.islice(items, CHUNK)):
        examples = []
        loaded = pool.map(functools.partial(_load, listing.resize), chunk)
        for item, (content, resized, reason) in zip(chunk, loaded, strict=True):
            if reason:
                listing.refused.append({"file": item.key, "reason": reason})
            else:
                examples.append({"image": content, "label": number[item.label], "key": item.key})
                listing.resized[split] += resized
        yield examples
        bar.update(len(chunk))


def _load(resize: int | None, item: Item) -> tuple[bytes, bool, str]:
    """As `usable`."""
    content, reason = item.load()
    return (b"", False, reason) if reason else read_usable(content, resize)


def _writer(folder: Path, name: str, listing: Listing) -> Any:
    """Writes examples as they come: TFDS's builders would sort them by a hash, and need TensorFlow above a gigabyte."""
    import tensorflow_datasets as tfds

    info = describe(folder, name, listing.classes)
    writer = tfds.core.SequentialWriter(info, RECORDS_PER_SHARD, file_format="array_record")
    writer.initialize_splits(list(listing.splits))
    return writer


def describe(folder: Path, name: str, classes: list[str] | None) -> Any:
    """TFDS's description of what the builder `name` writes: image, key, and label where there are classes."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    features = {"image": tfds.features.Image(), "key": tfds.features.Text()}
    if classes is not None:
        features["label"] = tfds.features.ClassLabel(names=classes)
    identity = DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="nml_jax.data.builders"
    )
    return tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=None if classes is None else ("image", "label"),
        disable_shuffling=True,
    )


@contextlib.contextmanager
def raise_full_disk() -> Iterator[None]:
    """ArrayRecord says RuntimeError where Python would say OSError."""
    try:
        yield
    except RuntimeError as e:
        raise OSError(str(e)) from e


def read_file(path: Path) -> tuple[bytes, str]:
    """The bytes of a file, and why there are none, or ""."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            return b"", "not a regular file"
        if about.st_size > MAX_BYTES:
            return b"", TOO_LARGE
        return path.read_bytes(), ""
    except OSError as e:
        return b"", f"unreadable: {e.strerror}"


def read_usable(content: bytes, resize: int | None = None) -> tuple[bytes, bool, str]:
    """The bytes of an image as they are stored, whether it was shrunk, and why it must be refused, or ""."""
    from nml_jax.data.images import codec

    if not content:
        return b"", False, "empty"
    try:
        pixels = codec.check(content, MAX_PIXELS)
    except codec.ImageError as e:
        return b"", False, str(e)
    small = codec.shrink(pixels, resize) if resize else b""
    return small or content, bool(small), ""
