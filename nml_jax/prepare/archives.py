"""The files of a folder, a tar (compressed or not) or a zip, read one after another. Nothing is extracted."""

import contextlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from nml_jax.errors import UserError
from nml_jax.prepare.records import MAX_BYTES, TOO_LARGE, read_file


def list_names(path: Path) -> list[str]:
    """Paths of the regular files: of a folder sorted, of an archive in its order. Hidden files do not count.

    Raises:
        UserError: there is nothing at `path`, or it is no folder, tar or zip.
    """
    return [name for name, _ in _members(path)]


def read(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes, str]]:
    """The wanted files in the order of `names`: name, content, and why there is none, or "".

    Raises:
        UserError: the archive is damaged, cut or encrypted.
    """
    with _readable(path):
        for name, content in _members(path):
            if name in wanted:
                yield name, *content()


def read_one(path: Path, name: str) -> bytes:
    """The content of one file.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    for _, content, reason in read(path, (name,)):
        if reason:
            raise UserError(f"{name} in {path} cannot be read: {reason}", "download it again")
        return content
    raise UserError(f"{path} holds no {name}", "download it again")


def _members(path: Path) -> Iterator[tuple[str, Any]]:
    """Name of every file, and what reads it while it is the current one; of files of one name only the first."""
    seen: set[str] = set()
    with _readable(path):
        for raw, content in (_folder if path.is_dir() else _zip if zipfile.is_zipfile(path) else _tar)(path):
            name = raw.removeprefix("./").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if name not in seen and not any(part.startswith(".") for part in name.split("/")):
                seen.add(name)
                yield name, content


def _folder(path: Path) -> Iterator[tuple[str, Any]]:
    found = sorted(Path(folder, file) for folder, _, files in os.walk(path) for file in files)
    for file in found:
        yield file.relative_to(path).as_posix(), lambda file=file: read_file(file)


def _tar(path: Path) -> Iterator[tuple[str, Any]]:
    def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[bytes, str]:
        file = None if member.size > MAX_BYTES else tar.extractfile(member)
        return (file.read(), "") if file else (b"", TOO_LARGE)

    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg():
                yield member.name, lambda member=member: content(tar, member)


def _zip(path: Path) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1:
                raise UserError(f"{path} is encrypted", "unpack it, and give the folder")
            if not member.is_dir():
                large = member.file_size > MAX_BYTES
                yield (
                    member.filename,
                    lambda m=member, large=large: (b"", TOO_LARGE) if large else (archive.read(m), ""),
                )


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the many kinds of archives raise, as a UserError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, ValueError) as e:
        cure = "download it again" if path.exists() else "give the downloaded archive, or the folder it was unpacked to"
        raise UserError(f"{path} cannot be read: {str(e).splitlines()[0] if str(e) else type(e).__name__}", cure) from e
