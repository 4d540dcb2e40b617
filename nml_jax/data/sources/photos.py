"""Images in a folder that nobody prepared, as a source without labels."""

import os
import stat
from pathlib import Path

import numpy as np

from nml_jax import console
from nml_jax.data.images.codec import Undecodable
from nml_jax.data.sources.source import Source, digest
from nml_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jp2", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")


class Photos(Source):
    """The images of a folder, at any depth, in the order of their names.

    Attributes:
        paths: of the images below the folder, with "/".
    """

    def __init__(self, folder: Path, paths: list[str]):
        super().__init__(np.zeros(len(paths), np.int32), num_classes=1, fingerprint=digest("photos", paths))
        self.folder, self.paths = folder, paths

    @property
    def keys(self) -> list[str]:
        return self.paths

    @property
    def files(self) -> list[Path]:
        """The paths of the images."""
        return [self.folder / path for path in self.paths]

    def image(self, i: int) -> bytes:
        path = self.folder / self.paths[i]
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
                raise Undecodable("it is not a regular file")
            return path.read_bytes()
        except OSError as e:
            raise Undecodable(f"it cannot be read: {e.strerror or e}") from e


def open_photos(folder: Path) -> Photos:
    """List the images below a folder, by their suffixes. Hidden files and folders are left out.

    Prints how many other files there are.

    Raises:
        UserError: it is not a folder, or holds no image.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}", "give a folder of images, as in photos/")
    images, others = [], []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (name for name in names if not name.startswith(".")):
            path = Path(parent, name).relative_to(folder).as_posix()
            (images if name.lower().endswith(SUFFIXES) else others).append(path)
    if not images:
        raise UserError(f"{folder} holds no image", f"give a folder with files such as {', '.join(SUFFIXES[:5])}")
    if others:
        console.notice(f"{folder}: {len(others):,} files are left out, which are no images by their suffix, such as "
                       f"{min(others)}")  # fmt: skip
    return Photos(folder, sorted(images))
