"""Finding the files of image-text pairs, and their splits."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nml_jax import console
from nml_jax.errors import UserError
from nml_jax.prepare.pairs.types import SUFFIXES, suffix_of

PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
BESIDE_TAR = (".json",)  # img2dataset's statistics
BESIDE_TABLE = (".json", ".txt", ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
STRAY = "neither a tar nor a table"


def find(sources: Sequence[Path]) -> tuple[list[tuple[str, Path, str]], list[tuple[str, str]]]:
    """What is in the files and folders that are given; see `image_text`.

    Returns:
        (split, path, name) of every source file, and (name, reason) of everything in the folders that is no source
        and has no place beside one. Names are paths below the folder that all sources share.

    Raises:
        UserError: a source is not there, holds nothing, or it is not clear what its splits are.
        OSError: a folder cannot be read.
    """
    found: list[tuple[str, Path]] = []
    strays: list[Path] = []
    plain: dict[str, None] = {}  # names of the folders that hold files
    for source in sources:
        if source.is_file():
            if suffix_of(source) not in SUFFIXES:
                raise UserError(f"{source} is none of {', '.join(SUFFIXES)}", "convert or decompress it first")
            found.append(("train", source))
            continue
        if not source.is_dir():
            raise UserError(f"{source} does not exist", "give files or folders with image-text pairs")
        direct, folders, other = _look(source)
        inside = {folder: _look(folder) for folder in folders}
        nested = [path for files, _, _ in inside.values() for path in files]
        if direct and nested:
            raise UserError(
                f"{source} holds {direct[0].name} and also {nested[0].relative_to(source)}",
                "keep either files, or one folder for each split; or name the files as sources",
            )
        strays += other
        if direct:
            name = Path(os.path.abspath(source)).name
            plain[name] = None
            found += [(f"/{name}", path) for path in direct]  # "/": not yet known to be a split
            continue
        for folder in folders if nested else [source]:
            files, _, other = inside.get(folder, ([], [], []))
            if not files:
                cure = "decompress archives first, and move away what is no split"
                raise UserError(f"{folder} holds none of {', '.join(SUFFIXES)}", cure)
            found += [(folder.name, path) for path in files]
            strays += other
    if len(plain) > 1:
        console.notice(f"each folder is a split of its name: {', '.join(plain)}")
    absolute = [Path(os.path.abspath(path)) for _, path in found]
    if twice := [path for path, n in Counter(absolute).items() if n > 1]:
        raise UserError(f"{twice[0]} is given twice", "name every source once")
    roots = [Path(os.path.abspath(source)) for source in sources]
    shared = os.path.commonpath([root if root.is_dir() else root.parent for root in roots])

    def name_of(path: Path) -> str:
        relative = Path(os.path.abspath(path)).relative_to(shared)
        return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")

    files = []
    for split, path in found:
        split = (split[1:] if len(plain) > 1 else "train") if split[0] == "/" else split
        files.append((split, path, name_of(path)))
    packed = f"{STRAY}: decompress it first"
    return files, [(name_of(p), packed if suffix_of(p) in PACKED else STRAY) for p in sorted(set(strays))]


def _look(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Sources in a folder, its folders, and what else there is. Hidden files and folders do not count."""
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    folders = [p for p in entries if p.is_dir()]
    files = [p for p in entries if suffix_of(p) in SUFFIXES and p.is_file()]
    tars = {p.stem for p in files if suffix_of(p) == ".tar"}
    found = [p for p in files if suffix_of(p) == ".tar" or p.stem not in tars]
    table = any(suffix_of(p) != ".tar" for p in found)
    known = {*files, *folders}
    strays = [p for p in entries if p not in known and suffix_of(p) not in (BESIDE_TABLE if table else BESIDE_TAR)]
    if table:  # its images lie in folders
        below = (Path(root, name) for f in folders for root, _, names in os.walk(f) for name in names)
        strays += [p for p in below if suffix_of(p) in (*SUFFIXES, *PACKED)]
    elif found:
        strays += folders
    return found, folders, strays
