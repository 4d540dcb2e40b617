"""Builders: a folder of images becomes a prepared TFDS/ArrayRecord dataset, without TensorFlow.

    python -m nml_jax.data.builders image_folder SRC OUT [--workers N]

SRC/<split>/<class>/ holds the images of a class, also in folders of its own. OUT can be read by `sources.load` and by
`tfds.builder_from_directory`. Records keep the original bytes, the order of the sorted paths, and their path as key.
Beside them lie the supervision index (labels and keys of every split) and manifest.json: counts, a SHA-256 over the
records of each split, and every file that was refused, and why.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nml_jax import log
from nml_jax.errors import UserError

MAX_PIXELS = 50_000_000
RECORDS_PER_SHARD = 8192  # half a gigabyte of photos of 60 kB
CHUNK = 64  # files in memory at a time
SHOWN = 20  # refused files that are printed; the manifest has them all

STRAY = "not in a <split>/<class> folder"

Example = dict[str, Any]


class Scan:
    """What lies in SRC, by names alone. Hidden files and folders do not count.

    Attributes:
        splits: split -> its files, as (class, path), in the order of the sorted paths.
        classes: sorted union of the class folders of all splits.
        refused: {"file": path below SRC, "reason": why} of everything that cannot be taken.
    """

    def __init__(self, src: Path):
        self.src = src
        self.splits: dict[str, list[tuple[str, Path]]] = {}
        self.refused: list[dict[str, str]] = []
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


def image_folder(src: Path, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build the dataset `out` from the images in `src`; it appears under its name when it is complete.

    Files that are no whole image are left out. The same `src` gives the same records and the same manifest. Splits may
    lack classes of other splits. One build at a time may write to one `out`.

    Args:
        workers: threads that read and check files; None: one per core.

    Returns:
        The manifest.

    Raises:
        UserError: `src` is not SRC/<split>/<class>/<image>, a split has no usable image, or `out` holds something
            already or cannot be written.
    """
    src, target = src.resolve(), out.resolve()
    if not src.is_dir():
        raise UserError(f"{src} is no folder", "give a folder of the form SRC/<split>/<class>/<image>")
    if target.is_relative_to(src):
        raise UserError(f"{out} lies inside {src}", "choose an OUT outside SRC, where it is not taken for a split")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{out} exists already", "choose another OUT, or delete it first")
    scan = Scan(src)
    _check_folders(scan)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
        (partial / "supervision").mkdir(parents=True)
        about = _write(partial, scan, workers or os.cpu_count() or 1)
        manifest = {"builder": "image_folder", "schema": 1, "classes": scan.classes, "splits": about}
        manifest |= {"refused": scan.refused}
        log.write_json(partial / "manifest.json", manifest)
        partial.rename(target)
    except OSError as e:
        raise UserError(f"cannot write {out}: {e}", "free or remount the disk, or choose another OUT") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


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
        if not re.fullmatch(r"[\w-]+", split) or split == "all":
            raise UserError(f"{split!r} cannot name a split", "rename the folder: letters, digits, _ and -, not 'all'")
    for name in scan.classes:
        if name != name.strip() or not name.isprintable():
            raise UserError(f"{name!r} cannot name a class", "rename the folder: printable, without blanks around it")


def _no_image(scan: Scan, split: str) -> UserError:
    return UserError(
        f"split {split!r} has no usable image", f"put class folders with images into {scan.src / split}, or move it"
    )


def _write(folder: Path, scan: Scan, workers: int) -> dict[str, Any]:
    """Write records, TFDS's description and the supervision index. Returns what the manifest says of each split."""
    from PIL import Image
    from tqdm import tqdm

    writer, about = _writer(folder, scan), {}
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=sum(map(len, scan.splits.values())), desc="images", unit=" files", mininterval=0.5) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we refuse such images ourselves
        for split, files in scan.splits.items():
            about[split] = _write_split(folder, scan, writer, split, _checked(scan, files, pool, bar))
    with _full_disk():
        writer.close_all()
    return about


def _write_split(folder: Path, scan: Scan, writer: Any, split: str, chunks: Iterator[list[Example]]) -> dict[str, Any]:
    import numpy as np

    labels, keys, sha = [], [], hashlib.sha256()
    for chunk in chunks:
        for example in chunk:
            labels.append(example["label"])
            keys.append(example["key"])
            sha.update(f"{example['key']}\n{example['label']}\n{len(example['image'])}\n".encode())
            sha.update(example["image"])
        with _full_disk():
            writer.add_examples({split: chunk})
    if not labels:
        raise _no_image(scan, split)
    np.save(folder / "supervision" / f"{split}.npy", np.array(labels, np.int32))
    (folder / "supervision" / f"{split}.keys.json").write_text(json.dumps(keys), "utf-8")
    counts = np.bincount(labels, minlength=len(scan.classes)).tolist()
    per_class = dict(zip(scan.classes, counts, strict=True))
    return {"records": len(labels), "sha256": sha.hexdigest(), "per_class": per_class}


def _checked(scan: Scan, files: list[tuple[str, Path]], pool: ThreadPoolExecutor, bar: Any) -> Iterator[list[Example]]:
    """Chunks of examples of those files that are images; the others are refused."""
    number = {name: i for i, name in enumerate(scan.classes)}
    for start in range(0, len(files), CHUNK):
        chunk = files[start : start + CHUNK]
        examples = []
        for (name, path), (content, reason) in zip(chunk, pool.map(read, [p for _, p in chunk]), strict=True):
            if reason:
                scan.refuse(path, reason)
            else:
                examples.append({"image": content, "label": number[name], "key": scan.key(path)})
        yield examples
        bar.update(len(chunk))


def _writer(folder: Path, scan: Scan) -> Any:
    """Writes examples as they come: TFDS's builders would sort them by a hash, and need TensorFlow above a gigabyte."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    label = tfds.features.ClassLabel(names=scan.classes)
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label, "key": tfds.features.Text()})
    identity = DatasetIdentity(
        name="image_folder",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(folder),
        module_name="nml_jax.data.builders",
    )
    pair = ("image", "label")
    info = tfds.core.DatasetInfo(builder=identity, features=features, supervised_keys=pair, disable_shuffling=True)
    writer = tfds.core.SequentialWriter(info, RECORDS_PER_SHARD, file_format="array_record")
    writer.initialize_splits(list(scan.splits))
    return writer


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    """ArrayRecord says RuntimeError where Python would say OSError."""
    try:
        yield
    except RuntimeError as e:
        raise OSError(str(e)) from e


def read(path: Path) -> tuple[bytes, str]:
    """The bytes of an image file, and why it must be refused: "" if it is an image that can be decoded whole."""
    from nml_jax.data import codec

    try:
        path.name.encode("utf-8")
        if not stat.S_ISREG(path.stat().st_mode):
            return b"", "not a regular file"
        content = path.read_bytes()
        if not content:
            return b"", "empty"
        codec.check(content, MAX_PIXELS)
    except UnicodeEncodeError:
        return b"", "the file name is not UTF-8"
    except OSError as e:
        return b"", f"unreadable: {e.strerror}"
    except codec.ImageError as e:
        return b"", str(e)
    return content, ""


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nml_jax.data.builders", description=(__doc__ or "").split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    folder = kinds.add_parser("image_folder", help="from SRC/<split>/<class>/ with images of a class")
    folder.add_argument("src", metavar="SRC", type=Path)
    folder.add_argument("out", metavar="OUT", type=Path)
    folder.add_argument("--workers", type=int, help="threads that check images (default: one per core)")
    args = parser.parse_args(argv)
    try:
        manifest = image_folder(args.src, args.out, workers=args.workers)
    except UserError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    for split, about in manifest["splits"].items():
        print(f"{split}: {about['records']} images of {sum(n > 0 for n in about['per_class'].values())} classes")
    refused = manifest["refused"]
    print(f"refused files: {len(refused)}")
    for one in refused[:SHOWN]:
        print(f"  {one['file']}: {one['reason']}")
    if len(refused) > SHOWN:
        print(f"  ... and {len(refused) - SHOWN} more in {args.out / 'manifest.json'}")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
