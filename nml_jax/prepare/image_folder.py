"""Build a prepared TFDS/ArrayRecord dataset from a folder of images, without TensorFlow.

SRC/<split>/<class>/ contains the images of a class, also in subfolders. `sources.load` and
`tfds.builder_from_directory` read OUT. Records keep the original bytes and the order of the sorted paths. Their keys
are the paths. Beside them lie the supervision index (labels and keys of every split) and manifest.json, with counts, a
SHA-256 over the records of each split, and every file that was refused or left out, with the reason. Records, refused
files and files left out sum to the files seen. Classes and splits follow data/class_names.py. A class without a usable
image in the split "train", or in the only split, is dropped: its other images are left out.

With --resize, an image whose shorter side is larger than SIDE becomes an upright JPEG of that shorter side (`shrink` in
nml_jax/data/images/codec.py). The others keep their bytes. The manifest records side, quality and counts, so such a
dataset has a fingerprint of its own.
"""

import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nml_jax.data import class_names
from nml_jax.errors import UserError
from nml_jax.prepare import clutter, image_files, records
from nml_jax.prepare.listing import Item, Listing, find_training_split, make_no_image_error
from nml_jax.prepare.out_folder import check_out

STRAY = "not in a <split>/<class> folder"
IMAGE_FOLDER = "from a folder SRC/<split>/<class>/<image>"


class Scan(Listing):
    """The listing of SRC, by file names alone. Hidden files and folders, and those of systems, are left out.

    A split is a list of (class, path) in the order of the sorted paths. The classes are the sorted union of the class
    folders of all splits. Keys are paths below SRC.
    """

    splits: dict[str, list[tuple[str, Path]]]

    def __init__(self, src: Path):
        super().__init__(src)
        self.splits = {}
        classes = set()
        for split in self._list_entries(src):
            if not _is_folder(split):
                self.refuse(split.path, STRAY)
                continue
            files = self.splits.setdefault(class_names.read_name(split.name), [])
            for folder in self._list_entries(split.path):
                if not _is_folder(folder):
                    self.refuse(folder.path, STRAY)
                else:
                    name = class_names.read_name(folder.name)
                    classes.add(name)
                    files += [(name, path) for path in self._list_files(folder.path)]
        self.classes = sorted(classes)
        self.seen = sum(map(len, self.splits.values())) + len(self.refused) + sum(self.count_left_out().values())

    def drop_phantoms(self) -> None:
        """Drop the classes without a usable image in the training split. Leave out their images in other splits."""
        train = find_training_split(self.splits)
        if train is None:
            return
        by_class: dict[str, list[Path]] = {name: [] for name in self.classes}
        for name, path in self.splits[train]:
            by_class[name].append(path)
        for name, paths in by_class.items():
            reasons = list(itertools.takewhile(bool, (_find_fault(path) for path in paths)))
            if len(reasons) == len(paths):
                self.dropped.append(name)
                for path, reason in zip(paths, reasons, strict=True):
                    self.refuse(path, reason)
        self.classes = [name for name in self.classes if name not in self.dropped]
        for split, files in self.splits.items():
            for name, path in files:
                if name in self.dropped and split != train:
                    self.leave_out(path, f"class {name!r} has no usable image in split {train!r}")
            self.splits[split] = [(name, path) for name, path in files if name not in self.dropped]

    def iterate_items(self, split: str) -> Iterator[Item]:
        for name, path in self.splits[split]:
            yield Item(name, self._make_key(path), functools.partial(_read_image, path))

    def advise(self, split: str) -> str:
        return f"put class folders with images into {self.src / split}, or move that folder away"

    def _make_key(self, path: str | Path) -> str:
        """Return the path below SRC. Bytes that are not UTF-8 are escaped."""
        return os.fsencode(Path(path).relative_to(self.src).as_posix()).decode("utf-8", "backslashreplace")

    def refuse(self, path: str | Path, reason: str) -> None:
        self.refused.append({"file": self._make_key(path), "reason": reason})

    def leave_out(self, path: str | Path, reason: str) -> None:
        self.left_out.append({"file": self._make_key(path), "reason": reason, "files": clutter.count_files(path)})

    def _list_entries(self, folder: str | Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda e: e.name)
        except OSError as e:
            self.refuse(folder, f"unreadable: {e.strerror}")
            return []
        kept = []
        for entry in entries:
            if reason := clutter.find_clutter(entry.name, is_folder=_is_folder(entry)):
                self.leave_out(entry.path, reason)
            else:
                kept.append(entry)
        return kept

    def _list_files(self, folder: str) -> Iterator[Path]:
        for entry in self._list_entries(folder):
            if not _is_folder(entry):
                yield Path(entry.path)
            elif entry.is_symlink():
                self.refuse(entry.path, "symbolic link to a folder")
            else:
                yield from self._list_files(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # is_dir raises on a link to itself


def build_image_folder(
    src: Path, out: Path, *, workers: int | None = None, resize: int | None = None
) -> dict[str, Any]:
    """Build the dataset `out` from the images in `src`. `out` appears once it is complete.

    Files that are not whole images are left out and listed. The same `src` gives the same records and the same
    manifest. A split may lack classes of the training split. Run only one build at a time for one `out`.

    Args:
        workers: number of threads that read and check files; None: one per core.
        resize: shorter side in pixels; larger images are shrunk to it. None: keep all images as they are.

    Returns:
        The manifest.

    Raises:
        UserError: `src` is not of the form SRC/<split>/<class>/<image>, a split has no usable image, `resize` is below
            1, or `out` exists already or cannot be written.
    """
    image_files.check_resize(resize)
    src = src.resolve()
    if not src.is_dir():
        raise UserError(f"{src} is not a folder", "give a folder of the form SRC/<split>/<class>/<image>")
    check_out(src, out)
    scan = Scan(src)
    scan.resize = resize
    _check_folders(scan)
    class_names.warn_alike(scan.splits, f"{src}, splits")
    class_names.warn_alike(scan.classes, f"{src}, classes")
    scan.drop_phantoms()
    return records.build("image_folder", scan, out, workers=workers)


def _check_folders(scan: Scan) -> None:
    """Raise UserError unless the folders are splits and classes with names that TFDS accepts."""
    if not scan.classes:
        inside = next((Path(r["file"]).parts[0] for r in scan.refused if "/" in r["file"]), None)
        raise UserError(
            f"{scan.src} has no <split>/<class> folders" + (f": files lie directly in {inside}/" if inside else ""),
            "move the class folders into a folder named after the split, as in SRC/train/cat/1.jpg",
        )
    for split, files in scan.splits.items():
        if not files:
            raise make_no_image_error(scan, split)
        records.check_split(split, "rename the folder")
    for name in scan.classes:
        records.check_class(name, "rename the folder")


def _find_fault(path: Path) -> str:
    """Return the reason why the image at a path must be refused, or ""."""
    content, reason = _read_image(path)
    return reason or image_files.check_image(content)[2]


def _read_image(path: Path) -> tuple[bytes, str]:
    try:
        os.fsencode(path.name).decode("utf-8")
    except UnicodeDecodeError:
        return b"", "the file name is not UTF-8"
    return image_files.read_file(path)
