"""Read the files of a folder, a tar (compressed or not) or a zip, one after another. Nothing is extracted."""

import contextlib
import functools
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from nml_jax.data.class_names import escape_name
from nml_jax.errors import UserError
from nml_jax.prepare.clutter import find_clutter_in_path
from nml_jax.prepare.image_files import MAX_BYTES, TOO_LARGE, read_file

TWICE = "another file with this name came before"


def list_names(path: Path) -> list[str]:
    """Return the paths of the regular files: sorted in a folder, in stored order in an archive.

    Skip hidden files and those of systems (nml_jax/prepare/clutter.py).

    Raises:
        UserError: `path` does not exist, or is not a folder, tar or zip.
    """
    return [name for name, _ in _iterate_members(path)]


def read(path: Path, wanted: Collection[str], counts: Counter[str] | None = None) -> Iterator[tuple[str, bytes, str]]:
    """Yield (name, content, "") of the wanted files in the order of `list_names`.

    A file that cannot be read yields (name, b"", reason). At the end `counts`, if given, holds the number of names in
    `list_names` as "", and of all other files by the reason why they are left out.

    Raises:
        UserError: the archive is damaged, truncated or encrypted.
    """
    with _raise_user_error(path):
        for name, read_content in _iterate_members(path, counts):
            if name in wanted:
                yield name, *read_content()


def read_one(path: Path, name: str) -> bytes:
    """Return the content of one file.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    for _, content, reason in read(path, (name,)):
        if reason:
            raise UserError(f"{name} in {path} cannot be read: {reason}", "download it again")
        return content
    raise UserError(f"{path} does not contain {name}", "download it again")


def index_files(path: Path) -> tuple[dict[str, Callable[[], tuple[bytes, str]]], Counter[str]]:
    """Index the files of a folder, with those inside its zips, or of a zip, to be read in any order and any thread.

    Returns:
        Path below `path`, as "photos.zip/1.jpg" inside a zip -> function that returns (content, "") or (b"", reason);
        and how many files are left out, by reason. Names are escaped, and the first file of a name counts, as in
        `list_names`.

    Raises:
        UserError: `path` does not exist or is neither, or a zip is damaged or encrypted.
    """
    found: dict[str, Callable[[], tuple[bytes, str]]] = {}
    left_out: Counter[str] = Counter()

    def add(raw: str, read_content: Callable[[], tuple[bytes, str]]) -> None:
        name = escape_name(raw)
        if reason := TWICE if name in found else find_clutter_in_path(name):
            left_out[reason] += 1
        else:
            found[name] = read_content

    with _raise_user_error(path):
        if path.is_dir():
            names = [(name, read_content) for name, read_content in _iterate_folder(path)]
        elif zipfile.is_zipfile(path):
            names = _index_zip(path)
        else:
            raise UserError(f"{path} is neither a folder nor a zip", "give the folder or zip of a data set")
    for name, read_content in names:
        if path.is_dir() and name.lower().endswith(".zip") and not find_clutter_in_path(name):
            with _raise_user_error(path / name):
                for inner, read_inner in _index_zip(path / name):
                    add(f"{name}/{inner}", read_inner)
        else:
            add(name, read_content)
    return found, left_out


def _index_zip(path: Path) -> list[tuple[str, Callable[[], tuple[bytes, str]]]]:
    """List (name, function that reads it) of the files of a zip, which stays open."""
    archive = zipfile.ZipFile(path)
    members = [member for member in archive.infolist() if not member.is_dir()]
    if any(member.flag_bits & 1 for member in members):
        raise UserError(f"{path} is encrypted", "unpack it and give the folder")

    def read_member(member: zipfile.ZipInfo) -> tuple[bytes, str]:
        if member.file_size > MAX_BYTES:
            return b"", TOO_LARGE
        try:
            return archive.read(member), ""
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as e:
            return b"", f"damaged in its zip: {e}"

    return [(_read_name(member).removeprefix("./"), functools.partial(read_member, member)) for member in members]


def _read_name(member: zipfile.ZipInfo) -> str:
    """Return the name of a member: UTF-8 if it can be. macOS writes that without the flag that says so."""
    if not member.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            return member.filename.encode("cp437").decode("utf-8")
    return member.filename


def _iterate_members(path: Path, counts: Counter[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the name of every file and a function that reads it. Call the function before the next iteration.

    If several files have the same name, the first one counts. Count all in `counts`: those that are yielded as "", the
    others by the reason.
    """
    seen: set[str] = set()
    counts = Counter() if counts is None else counts
    with _raise_user_error(path):
        iterate = _iterate_folder if path.is_dir() else _iterate_zip if zipfile.is_zipfile(path) else _iterate_tar
        for raw, read_content in iterate(path):
            name = escape_name(raw.removeprefix("./"))
            reason = TWICE if name in seen else find_clutter_in_path(name)
            counts[reason] += 1
            if not reason:
                seen.add(name)
                yield name, read_content


def _iterate_folder(path: Path) -> Iterator[tuple[str, Any]]:
    for file in sorted(Path(folder, file) for folder, _, files in os.walk(path) for file in files):
        yield file.relative_to(path).as_posix(), lambda file=file: read_file(file)


def _iterate_tar(path: Path) -> Iterator[tuple[str, Any]]:
    def read_content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[bytes, str]:
        file = None if member.size > MAX_BYTES else tar.extractfile(member)
        return (file.read(), "") if file else (b"", TOO_LARGE)

    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg():
                yield member.name, lambda member=member: read_content(tar, member)


def _iterate_zip(path: Path) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1:
                raise UserError(f"{path} is encrypted", "unpack it and give the folder")
            if not member.is_dir():
                large = member.file_size > MAX_BYTES
                yield (
                    _read_name(member),
                    lambda m=member, large=large: (b"", TOO_LARGE) if large else (archive.read(m), ""),
                )


@contextlib.contextmanager
def _raise_user_error(path: Path) -> Iterator[None]:
    """Convert the errors of all kinds of archives into a UserError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, ValueError) as e:
        cure = "download it again" if path.exists() else "give the downloaded archive, or the folder it was unpacked to"
        raise UserError(f"{path} cannot be read: {str(e).splitlines()[0] if str(e) else type(e).__name__}", cure) from e
