"""Build a prepared TFDS/ArrayRecord dataset from a folder of images, without TensorFlow.

SRC/<split>/<class>/ contains the images of a class, also in subfolders. `sources.load` and
`tfds.builder_from_directory` read OUT. Records keep the original bytes and the order of the sorted paths. Their keys
are the paths. Beside them lie the supervision index (labels and keys of every split) and manifest.json, with counts, a
SHA-256 over the records of each split, and every refused file with the reason.

With --resize, an image whose shorter side is larger than SIDE becomes an upright JPEG of that shorter side (`shrink` in
nml_jax/data/images/codec.py). The others keep their bytes. The manifest records side, quality and counts, so such a
dataset has a fingerprint of its own.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError
from nml_jax.prepare import records
from nml_jax.prepare.records import Item, Listing

STRAY = "not in a <split>/<class> folder"
IMAGE_FOLDER = "from a folder SRC/<split>/<class>/<image>"


class Scan(Listing):
    """The listing of SRC, by file names alone. Hidden files and folders do not count.

    A split is a list of (class, path) in the order of the sorted paths. The classes are the sorted union of the class
    folders of all splits. Keys are paths below SRC.
    """

    def __init__(self, src: Path):
        super().__init__(src)
        self.splits: dict[str, list[tuple[str, Path]]] = {}
        classes = set()
        for split in self._list_entries(src):
            if not _is_folder(split):
                self.refuse(split.path, STRAY)
                continue
            self.splits[split.name] = []
            for folder in self._list_entries(split.path):
                if not _is_folder(folder):
                    self.refuse(folder.path, STRAY)
                else:
                    classes.add(folder.name)
                    self.splits[split.name] += [(folder.name, path) for path in self._list_files(folder.path)]
        self.classes = sorted(classes)

    def items(self, split: str) -> Iterator[Item]:
        for name, path in self.splits[split]:
            yield Item(name, self.key(path), functools.partial(_read_image, path))

    def cure(self, split: str) -> str:
        return f"put class folders with images into {self.src / split}, or move that folder away"

    def key(self, path: str | Path) -> str:
        """Return the path below SRC. Bytes that are not UTF-8 are escaped."""
        return os.fsencode(Path(path).relative_to(self.src).as_posix()).decode("utf-8", "backslashreplace")

    def refuse(self, path: str | Path, reason: str) -> None:
        self.refused.append({"file": self.key(path), "reason": reason})

    def _list_entries(self, folder: str | Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as e:
            self.refuse(folder, f"unreadable: {e.strerror}")
            return []

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
    manifest. A split may lack classes of other splits. Run only one build at a time for one `out`.

    Args:
        workers: number of threads that read and check files; None: one per core.
        resize: shorter side in pixels; larger images are shrunk to it. None: keep all images as they are.

    Returns:
        The manifest.

    Raises:
        UserError: `src` is not of the form SRC/<split>/<class>/<image>, a split has no usable image, `resize` is below
            1, or `out` exists already or cannot be written.
    """
    records.check_resize(resize)
    src = src.resolve()
    if not src.is_dir():
        raise UserError(f"{src} is not a folder", "give a folder of the form SRC/<split>/<class>/<image>")
    records.check_out(src, out)
    scan = Scan(src)
    scan.resize = resize
    _check_folders(scan)
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
            raise records.make_no_image_error(scan, split)
        records.check_split(split, "rename the folder")
    for name in scan.classes:
        records.check_class(name, "rename the folder")


def _read_image(path: Path) -> tuple[bytes, str]:
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return b"", "the file name is not UTF-8"
    return records.read_file(path)
