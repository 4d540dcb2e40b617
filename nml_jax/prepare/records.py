"""Write images as records of a prepared TFDS/ArrayRecord dataset. All builders share this module."""

import contextlib
import functools
import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax import console
from nml_jax.data.class_names import list_names
from nml_jax.errors import UserError
from nml_jax.runs import owner
from nml_jax.runs.files import write_json

MAX_PIXELS = 50_000_000
MAX_BYTES = 1 << 29  # of a file; a record may hold twice that
TOO_LARGE = f"more than {MAX_BYTES >> 20} MiB"
RECORDS_PER_SHARD = 8192  # half a gigabyte of photos of 60 kB
CHUNK = 64  # files in memory at a time

RESIZE = (
    "shrink images whose shorter side is larger than SIDE, such as 256, to JPEG of quality 95 with that shorter side. "
    "Gains: images of 500 x 375 pixels need little more than half of the bytes and of the decoding time. Costs: random "
    "crops come from fewer pixels and are enlarged more (a crop of 8 %% of 500 x 375 is 122 pixels wide, of 341 x 256 "
    "84, before either becomes 224), and pixels are compressed twice. Do not shrink test sets: scores would differ"
)

Example = dict[str, Any]


class Item(NamedTuple):
    """An image that becomes a record or is refused."""

    label: str  # name of the class, or the annotations of an image with objects
    key: str
    load: Callable[[], tuple[bytes, str]]  # returns (bytes, "") or (b"", reason); any thread may call it
    size: tuple[int, int] | None = None  # the height and width that it must have; None: any


class Listing:
    """The images to build a dataset from.

    Attributes:
        src: folder or archive of the images.
        splits: split -> its images; the length is their number.
        classes: names of the classes in the order of the labels.
        refused: {"file": key, "reason": reason} of every refused file.
        left_out: {"file": key, "reason": reason, "files": number of files} of what is not an image of the dataset.
        dropped: names of classes without a usable image in the training split.
        seen: number of files, whether used or not: those accepted, refused and left out. None if it is not known.
        resize: largest shorter side of an image in pixels, or None.
        resized: split -> number of images that were shrunk.
        annotated: whether images have annotations, a text, in place of a class.
    """

    resize: int | None = None
    annotated = False

    def __init__(self, src: Path):
        self.src = src
        self.splits: Mapping[str, Sized] = {}
        self.classes: list[str] = []
        self.refused: list[dict[str, str]] = []
        self.left_out: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self.seen: int | None = None
        self.resized: Counter[str] = Counter()

    def items(self, split: str) -> Iterator[Item]:
        """Yield the images of a split in the order of its records."""
        raise NotImplementedError

    def count_left_out(self) -> Counter[str]:
        """Count the files that are left out, by reason without its details."""
        counts: Counter[str] = Counter()
        for entry in self.left_out:
            counts[entry["reason"]] += entry["files"]
        return counts

    def cure(self, split: str) -> str:
        """Return the advice for a split without a usable image."""
        return f"get {self.src} again"

    def count_classes(self, split: str, values: list[Any]) -> dict[str, int]:
        """Return how often each class comes in a split, of the labels of its records, or of their annotations."""
        counts = Counter(values)
        return {name: counts[i] for i, name in enumerate(self.classes)}

    def about(self, folder: Path) -> dict[str, Any]:
        """Return further entries for the manifest. Called when all records are in `folder`; may write files there."""
        return {}


def build(name: str, listing: Listing, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build the dataset `out` from a listing. `out` appears once it is complete.

    Args:
        name: name of the builder for the manifest and TFDS.
        out: a path that does not exist, or an empty folder (`check_out`).
        workers: number of threads that read and check files; None: one per core.

    Returns:
        The manifest.

    Raises:
        UserError: a split has no usable image, or `out` cannot be written.
    """
    with own_out(out), _make_partial(out) as partial:
        check_out(listing.src, out)  # another build may have ended meanwhile
        (partial / "supervision").mkdir()
        splits = _write_splits(partial, name, listing, workers or os.cpu_count() or 1)
        manifest = {"builder": name, "schema": 1, "classes": listing.classes, "splits": splits}
        if listing.resize:
            manifest["resized"] = describe_resized(listing.resize, {split: listing.resized[split] for split in splits})
        manifest |= {"missing_classes": list_missing(splits), "dropped_classes": listing.dropped}
        manifest |= {"refused": listing.refused, "files_left_out": listing.left_out}
        if listing.seen is not None:
            manifest["seen"] = listing.seen
        manifest |= listing.about(partial)
        write_json(partial / "manifest.json", manifest)
        partial.rename(out.resolve())
    return manifest


@contextlib.contextmanager
def own_out(out: Path) -> Iterator[None]:
    """Own `out`, so that no other build writes it at the same time. The folder around it is created.

    Raises:
        UserError: another build owns it, or it cannot be written.
    """
    target = out.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:
        raise UserError(
            f"cannot write {out}: Not a directory: {e.filename}", "choose an OUT in a writable folder"
        ) from e
    except OSError as e:
        raise UserError(f"cannot write {out}: {e}", "choose an OUT in a writable folder") from e
    with owner.hold(target.with_name(f".{target.name}.owner"), str(out), "wait until it ends, or choose another OUT"):
        yield


@contextlib.contextmanager
def _make_partial(out: Path) -> Iterator[Path]:
    """Make a folder to build `out` in, on the same disk, and remove it at the end. Its name cannot be foreseen.

    Raises:
        UserError: the disk fails.
    """
    target = out.resolve()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):  # by a killed build
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
        yield partial
    except OSError as e:
        raise UserError(f"cannot write {out}: {e}", "free or remount the disk, or choose another OUT") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_training_split(splits: Collection[str]) -> str | None:
    """Return the split that classes must have images in: "train", or the only one; None if it is not clear."""
    return "train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None


def list_missing(splits: Mapping[str, Any]) -> dict[str, list[str]]:
    """List the classes without an image in each split, from the entries of the manifest. Leave out complete splits."""
    missing = {split: [c for c, n in entry.get("per_class", {}).items() if not n] for split, entry in splits.items()}
    return {split: names for split, names in missing.items() if names}


def print_classes(manifest: Mapping[str, Any]) -> None:
    """Print the classes that were dropped, and those that a split lacks."""
    if dropped := manifest.get("dropped_classes"):
        console.show(f"dropped, without a usable image in the training split: {list_names(dropped)}")
    for split, names in manifest.get("missing_classes", {}).items():
        console.show(f"{split}: no image of {list_names(names)}")


def check_out(src: Path, out: Path) -> None:
    """Raise UserError if `out` exists already or lies inside the folder `src`."""
    target = out.resolve()
    if target.is_relative_to(src.resolve()):
        raise UserError(f"{out} lies inside {src}", "choose an OUT outside SRC, or it would look like a split")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{out} exists already", "choose another OUT, or delete it first")


def check_resize(side: int | None) -> None:
    """Raise UserError if images cannot have this shorter side."""
    if side is not None and side < 1:
        raise UserError(
            f"--resize must be at least 1, got {side}", "give the shorter side in pixels, as in --resize=256"
        )


def describe_resized(side: int, images: Mapping[str, int]) -> dict[str, Any]:
    """Return the manifest's entry about shrunk images. `images` maps each split to the number of its shrunk images."""
    from nml_jax.data.images import codec

    return {"shorter_side": side, **codec.SHRUNK, "images": dict(images)}


def find_partial(out: Path) -> Path:
    """Return the folder where a build of `out` that can be continued keeps its parts. It is on the same disk.

    Raises:
        UserError: something else has its name, such as a link to another folder.
    """
    partial = out.resolve().with_name(f".{out.resolve().name}.partial")
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise UserError(f"{partial} is a link or a file, not the folder of a build", "remove it, or choose another OUT")
    return partial


def check_split(name: str, cure: str) -> None:
    """Raise UserError if TFDS does not accept the name of a split."""
    if not re.fullmatch(r"[\w-]*\w[\w-]*", name) or name == "all":
        raise UserError(f"{name!r} cannot name a split", f"{cure}: letters, digits, _ and -, not 'all'")


def check_class(name: str, cure: str) -> None:
    """Raise UserError if TFDS cannot store the name of a class. It writes them to a file, one per line."""
    if not name or name != name.strip() or not name.isprintable():
        raise UserError(f"{name!r} cannot name a class", f"{cure}: printable, without spaces around it")


def make_no_image_error(listing: Listing, split: str) -> UserError:
    why = f" but of classes without one in the training split: {list_names(listing.dropped)}" if listing.dropped else ""
    return UserError(f"split {split!r} has no usable image{why}", listing.cure(split))


def _write_splits(folder: Path, name: str, listing: Listing, workers: int) -> dict[str, Any]:
    """Write records, TFDS's description and the supervision index. Return each split's entry in the manifest."""
    from PIL import Image
    from tqdm import tqdm

    writer, entries = _open_writer(folder, name, listing), {}
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=sum(map(len, listing.splits.values())), desc="images", unit=" files", mininterval=0.5) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we refuse such images ourselves
        for split in listing.splits:
            entries[split] = _write_split(folder, listing, writer, split, _load_examples(listing, split, pool, bar))
    with raise_full_disk():
        writer.close_all()
    return entries


def _write_split(
    folder: Path, listing: Listing, writer: Any, split: str, chunks: Iterator[list[Example]]
) -> dict[str, Any]:
    values, keys, sha = [], [], hashlib.sha256()
    field = "annotations" if listing.annotated else "label"
    for chunk in chunks:
        for example in chunk:
            values.append(example[field])
            keys.append(example["key"])
            sha.update(f"{example['key']}\n{example[field]}\n{len(example['image'])}\n".encode())
            sha.update(example["image"])
        with raise_full_disk():
            writer.add_examples({split: chunk})
    if not values:
        raise make_no_image_error(listing, split)
    _write_index(folder / "supervision", split, values, annotated=listing.annotated)
    (folder / "supervision" / f"{split}.keys.json").write_text(json.dumps(keys), "utf-8")
    return {"records": len(values), "sha256": sha.hexdigest(), "per_class": listing.count_classes(split, values)}


def _write_index(folder: Path, split: str, values: list[Any], *, annotated: bool) -> None:
    """Write the labels of a split, or its annotations, and for each image height, width, objects, those with masks."""
    import numpy as np

    if not annotated:
        np.save(folder / f"{split}.npy", np.array(values, np.int32))
        return
    from nml_jax.data.sources import texts

    about = []
    for image in map(json.loads, values):
        alone = [one["segmentation"] is not None for one in image["annotations"] if not one["iscrowd"]]
        about.append([image["height"], image["width"], len(alone), sum(alone)])
    np.save(folder / f"{split}.sizes.npy", np.array(about, np.int32))
    texts.write(folder / f"{split}.annotations", values)


def _load_examples(listing: Listing, split: str, pool: ThreadPoolExecutor, bar: Any) -> Iterator[list[Example]]:
    """Yield the usable images of a split in chunks of examples. List the others in `listing.refused`."""
    class_ids, items = {name: i for i, name in enumerate(listing.classes)}, listing.items(split)
    while chunk := list(itertools.islice(items, CHUNK)):
        examples = []
        loaded = pool.map(functools.partial(_load_item, listing.resize), chunk)
        for item, (content, resized, reason) in zip(chunk, loaded, strict=True):
            if reason:
                listing.refused.append({"file": item.key, "reason": reason})
            else:
                what = {"annotations": item.label} if listing.annotated else {"label": class_ids[item.label]}
                examples.append({"image": content, **what, "key": item.key})
                listing.resized[split] += resized
        yield examples
        bar.update(len(chunk))


def _load_item(resize: int | None, item: Item) -> tuple[bytes, bool, str]:
    """Load an image and check it. Return what `check_image` returns."""
    content, reason = item.load()
    return (b"", False, reason) if reason else check_image(content, resize, item.size)


def _open_writer(folder: Path, name: str, listing: Listing) -> Any:
    """Open a writer that keeps the order of the examples.

    TFDS's builders would sort them by a hash, and need TensorFlow above a gigabyte.
    """
    import tensorflow_datasets as tfds

    info = describe(folder, name, None if listing.annotated else listing.classes, annotated=listing.annotated)
    writer = tfds.core.SequentialWriter(info, RECORDS_PER_SHARD, file_format="array_record")
    writer.initialize_splits(list(listing.splits))
    return writer


def describe(folder: Path, name: str, classes: list[str] | None, *, annotated: bool = False) -> Any:
    """Return TFDS's description of the dataset: image, key, label if there are classes, annotations if it has them."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    features = {"image": tfds.features.Image(), "key": tfds.features.Text()}
    if annotated:
        features["annotations"] = tfds.features.Text()
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
    """Convert the RuntimeError that ArrayRecord raises on a full disk into an OSError."""
    try:
        yield
    except RuntimeError as e:
        raise OSError(str(e)) from e


def read_file(path: Path) -> tuple[bytes, str]:
    """Read a file. Return (bytes, "") or (b"", the reason why it cannot be read)."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return b"", "not a regular file"
        if status.st_size > MAX_BYTES:
            return b"", TOO_LARGE
        return path.read_bytes(), ""
    except OSError as e:
        return b"", f"unreadable: {e.strerror}"


def check_image(
    content: bytes, resize: int | None = None, size: tuple[int, int] | None = None
) -> tuple[bytes, bool, str]:
    """Check an encoded image and shrink it if it is too large.

    Args:
        size: the height and width that the upright image must have; None: any.

    Returns:
        The bytes to store, True if it was shrunk, and the reason why it must be refused, or "".
    """
    from nml_jax.data.images import codec

    if not content:
        return b"", False, "empty"
    try:
        pixels = codec.check(content, MAX_PIXELS)
    except codec.ImageError as e:
        return b"", False, str(e)
    if size and pixels.shape[:2] != size:
        height, width = pixels.shape[:2]
        turned = (
            " (turned as its EXIF orientation says)" if (width, height) == size and codec.is_turned(content) else ""
        )
        return b"", False, f"it is {width} x {height} pixels{turned}, and its annotations are for {size[1]} x {size[0]}"
    small = codec.shrink(pixels, resize) if resize else b""
    return small or content, bool(small), ""
