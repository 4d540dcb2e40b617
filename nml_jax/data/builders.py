"""Builders: images become a prepared TFDS/ArrayRecord dataset, without TensorFlow.

    python -m nml_jax.data.builders image_folder SRC OUT [--workers N] [--resize SIDE]
    python -m nml_jax.data.builders image_text SRC... OUT [--workers N] [...], see nml_jax/data/image_text.py
    python -m nml_jax.data.builders rendered_sst2 SRC OUT [--workers N], and more, see nml_jax/data/task_builders.py

SRC/<split>/<class>/ holds the images of a class, also in folders of its own. OUT can be read by `sources.load` and by
`tfds.builder_from_directory`. Records keep the original bytes, the order of the sorted paths, and their path as key.
Beside them lie the supervision index (labels and keys of every split) and manifest.json: counts, a SHA-256 over the
records of each split, and every file that was refused, and why.

With --resize an image whose shorter side is larger than SIDE becomes an upright JPEG of that shorter side (`shrink` in
nml_jax/data/codec.py); the others keep their bytes. The manifest has side, quality and counts, so that such a dataset
has a fingerprint of its own.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax import log
from nml_jax.errors import UserError

MAX_PIXELS = 50_000_000
MAX_BYTES = 1 << 29  # of a file; a record ends at twice that
TOO_LARGE = f"more than {MAX_BYTES >> 20} MiB"
RECORDS_PER_SHARD = 8192  # half a gigabyte of photos of 60 kB
CHUNK = 64  # files in memory at a time
SHOWN = 20  # refused files that are printed; the manifest has them all

STRAY = "not in a <split>/<class> folder"
IMAGE_FOLDER = "from SRC/<split>/<class>/ with images of a class"
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

    def about(self, folder: Path) -> dict[str, Any]:
        """What else belongs into the manifest; `folder` holds all records, and more may be written beside them."""
        return {}


class Scan(Listing):
    """What lies in SRC, by names alone. Hidden files and folders do not count.

    The files of a split are (class, path), in the order of the sorted paths; the classes are the sorted union of the
    class folders of all splits; keys are paths below SRC.
    """

    def __init__(self, src: Path):
        super().__init__(src)
        self.splits: dict[str, list[tuple[str, Path]]] = {}
        classes = set()
        for split in self._entries(src):
            if not _is_folder(split):
                self.refuse(split.path, STRAY)
                continue
            self.splits[split.name] = []
            for folder in self._entries(split.path):
                if not _is_folder(folder):
                    self.refuse(folder.path, STRAY)
                elif Path(split.path).resolve().is_relative_to(Path(folder.path).resolve()):
                    self.refuse(folder.path, "symbolic link loop")
                else:
                    classes.add(folder.name)
                    self.splits[split.name] += [(folder.name, path) for path in self._files(folder.path)]
        self.classes = sorted(classes)

    def items(self, split: str) -> Iterator[Item]:
        for name, path in self.splits[split]:
            yield Item(name, self.key(path), functools.partial(_read_named, path))

    def key(self, path: str | Path) -> str:
        """Path below SRC, in a form that can be printed."""
        return os.fsencode(Path(path).relative_to(self.src).as_posix()).decode("utf-8", "backslashreplace")

    def refuse(self, path: str | Path, reason: str) -> None:
        self.refused.append({"file": self.key(path), "reason": reason})

    def _entries(self, folder: str | Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as e:
            self.refuse(folder, f"unreadable: {e.strerror}")
            return []

    def _files(self, folder: str) -> Iterator[Path]:
        for entry in self._entries(folder):
            if not _is_folder(entry):
                yield Path(entry.path)
            elif entry.is_symlink():
                self.refuse(entry.path, "symbolic link to a folder")
            else:
                yield from self._files(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # a link to itself is none, not an error


def image_folder(src: Path, out: Path, *, workers: int | None = None, resize: int | None = None) -> dict[str, Any]:
    """Build the dataset `out` from the images in `src`; it appears under its name when it is complete.

    Files that are no whole image are left out. The same `src` gives the same records and the same manifest. Splits may
    lack classes of other splits. One build at a time may write to one `out`.

    Args:
        workers: threads that read and check files; None: one per core.
        resize: shorter side in pixels to which larger images are shrunk; None: they stay as they are.

    Returns:
        The manifest.

    Raises:
        UserError: `src` is not SRC/<split>/<class>/<image>, a split has no usable image, `resize` is no size, or `out`
            holds something already or cannot be written.
    """
    check_resize(resize)
    src = src.resolve()
    if not src.is_dir():
        raise UserError(f"{src} is no folder", "give a folder of the form SRC/<split>/<class>/<image>")
    check_out(src, out)
    scan = Scan(src)
    scan.resize = resize
    _check_folders(scan)
    return build("image_folder", scan, out, workers=workers)


def build(name: str, listing: Listing, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build the dataset `out`, which is free, from a listing, as the builder `name`; see `image_folder`."""
    partial = partial_folder(out)
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
        (partial / "supervision").mkdir(parents=True)
        splits = _write(partial, name, listing, workers or os.cpu_count() or 1)
        manifest = {"builder": name, "schema": 1, "classes": listing.classes, "splits": splits}
        if listing.resize:
            manifest["resized"] = about_resized(listing.resize, {split: listing.resized[split] for split in splits})
        manifest |= {"refused": listing.refused, **listing.about(partial)}
        log.write_json(partial / "manifest.json", manifest)
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


def about_resized(side: int, images: Mapping[str, int]) -> dict[str, Any]:
    """What the manifest says of shrunken images, of which every split has so many."""
    from nml_jax.data import codec

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


def _check_folders(scan: Scan) -> None:
    """Raises UserError where the folders do not make splits and classes with names that TFDS can carry."""
    if not scan.classes:
        inside = next((Path(r["file"]).parts[0] for r in scan.refused if "/" in r["file"]), None)
        raise UserError(
            f"{scan.src} has no <split>/<class> folders" + (f": files lie directly in {inside}/" if inside else ""),
            "move the class folders into a folder named after the split, as in SRC/train/cat/1.jpg",
        )
    for split, files in scan.splits.items():
        if not files:
            raise _no_image(scan, split)
        check_split(split, "rename the folder")
    for name in scan.classes:
        check_class(name, "rename the folder")


def _no_image(listing: Listing, split: str) -> UserError:
    cure = f"put class folders with images into {listing.src / split}, or move it"
    return UserError(
        f"split {split!r} has no usable image", cure if isinstance(listing, Scan) else f"get {listing.src} anew"
    )


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
    with full_disk():
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
        with full_disk():
            writer.add_examples({split: chunk})
    if not labels:
        raise _no_image(listing, split)
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
    return (b"", False, reason) if reason else usable(content, resize)


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
def full_disk() -> Iterator[None]:
    """ArrayRecord says RuntimeError where Python would say OSError."""
    try:
        yield
    except RuntimeError as e:
        raise OSError(str(e)) from e


def _read_named(path: Path) -> tuple[bytes, str]:
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return b"", "the file name is not UTF-8"
    return read_file(path)


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


def usable(content: bytes, resize: int | None = None) -> tuple[bytes, bool, str]:
    """The bytes of an image as they are stored, whether it was shrunk, and why it must be refused, or ""."""
    from nml_jax.data import codec

    if not content:
        return b"", False, "empty"
    try:
        pixels = codec.check(content, MAX_PIXELS)
    except codec.ImageError as e:
        return b"", False, str(e)
    small = codec.shrink(pixels, resize) if resize else b""
    return small or content, bool(small), ""


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    from nml_jax.data import image_text, task_builders

    parser = argparse.ArgumentParser(prog="python -m nml_jax.data.builders", description=(__doc__ or "").split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    builders = {"image_folder": (image_folder, IMAGE_FOLDER), **task_builders.BUILDERS}
    for kind, (_, about) in builders.items():
        command = kinds.add_parser(kind, help=about)
        command.add_argument("src", metavar="SRC", type=Path)
        command.add_argument("out", metavar="OUT", type=Path)
        command.add_argument("--workers", type=int, help="threads that check images (default: one per core)")
    kinds.choices["image_folder"].add_argument("--resize", metavar="SIDE", type=int, help=RESIZE)
    image_text.add_arguments(kinds.add_parser("image_text", help="from WebDataset tars, Parquet, CSV and TSV"))
    args = parser.parse_args(argv)
    try:
        if args.kind == "image_text":
            return image_text.main(args)
        how = {"resize": args.resize} if args.kind == "image_folder" else {}
        return _report(builders[args.kind][0](args.src, args.out, workers=args.workers, **how), args.out)
    except UserError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        log.say(
            "\nstopped by the keyboard; the same command " + ("goes on" if args.kind == "image_text" else "starts over")
        )
        return 130  # as a shell has it for SIGINT


def _report(manifest: dict[str, Any], out: Path) -> int:
    for split, about in manifest["splits"].items():
        print(f"{split}: {about['records']} images of {sum(n > 0 for n in about['per_class'].values())} classes")
    refused = manifest["refused"]
    print(f"refused files: {len(refused)}")
    for one in refused[:SHOWN]:
        print(f"  {one['file']}: {one['reason']}")
    if len(refused) > SHOWN:
        print(f"  ... and {len(refused) - SHOWN} more in {out / 'manifest.json'}")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
