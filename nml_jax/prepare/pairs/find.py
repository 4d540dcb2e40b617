"""Find the files of image-text pairs and their splits."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nml_jax import console
from nml_jax.data.class_names import read_name, warn_alike
from nml_jax.errors import UserError
from nml_jax.prepare import clutter
from nml_jax.prepare.pairs.types import SUFFIXES, Found, read_suffix
from nml_jax.prepare.records import check_split

PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
BESIDE_TAR = (".json",)  # img2dataset's statistics
BESIDE_TABLE = (".json", ".txt", ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
BESIDE = "beside a source: images of a table, or metadata"
STRAY = "neither a tar nor a table"


def find(sources: Sequence[Path]) -> Found:
    """Find the source files in the given files and folders (see `build`).

    Raises:
        UserError: a source does not exist, has no files, or its splits are ambiguous.
        OSError: a folder cannot be read.
    """
    found: list[tuple[str, Path]] = []
    strays: list[Path] = []
    left_out: Counter[str] = Counter()
    for source in sources:
        files, others, counts = _list_source(source)
        found += files
        strays += others
        left_out.update(counts)
    plain = dict.fromkeys(split[1:] for split, _ in found if split[0] == "/")  # names of the folders of files
    if len(plain) > 1:
        for name in plain:
            check_split(name, "rename the folder")
        console.notice(f"each folder is one split: {', '.join(plain)}")
    absolute = [Path(os.path.abspath(path)) for _, path in found]
    if twice := [path for path, n in Counter(absolute).items() if n > 1]:
        raise UserError(f"{twice[0]} is given twice", "give every source once")
    roots = [Path(os.path.abspath(source)) for source in sources]
    shared = os.path.commonpath([root if root.is_dir() else root.parent for root in roots])

    def make_name(path: Path) -> str:
        relative = Path(os.path.abspath(path)).relative_to(shared)
        return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")

    files = []
    for split, path in found:
        split = (split[1:] if len(plain) > 1 else "train") if split[0] == "/" else split
        files.append((split, path, make_name(path)))
    packed = f"{STRAY}: decompress it first"
    warn_alike({split for split, _, _ in files}, "splits")
    return Found(
        files, [(make_name(p), packed if read_suffix(p) in PACKED else STRAY) for p in sorted(set(strays))], left_out
    )


def _list_source(source: Path) -> tuple[list[tuple[str, Path]], list[Path], Counter[str]]:
    """Return the files of one source with their splits, its stray files, and the number of other files by reason.

    The split of a folder of files is "/" and its name: the name is a split only if there are several such folders.
    """
    if source.is_file():
        if read_suffix(source) not in SUFFIXES:
            raise UserError(f"{source} is none of {', '.join(SUFFIXES)}", "convert or decompress it first")
        return [("train", source)], [], Counter()
    if not source.is_dir():
        raise UserError(f"{source} does not exist", "give files or folders with image-text pairs")
    direct, folders, strays, left_out = _list_folder(source)
    inside = {folder: _list_folder(folder) for folder in folders}
    nested = [path for files, *_ in inside.values() for path in files]
    if direct and nested:
        raise UserError(
            f"{source} contains {direct[0].name} and also {nested[0].relative_to(source)}",
            "keep either files or one folder for each split, or give the files themselves",
        )
    if direct:
        name = read_name(Path(os.path.abspath(source)).name)
        return [(f"/{name}", path) for path in direct], strays, left_out
    found = []
    for folder in folders if nested else [source]:
        files, _, others, counts = inside.get(folder, ([], [], [], Counter()))
        if not files:
            cure = "decompress archives first, and move away folders that are not splits"
            raise UserError(f"{folder} contains none of {', '.join(SUFFIXES)}", cure)
        found += [(read_name(folder.name), path) for path in files]
        strays += others
        left_out.update(counts)
    return found, strays, left_out


def _list_folder(folder: Path) -> tuple[list[Path], list[Path], list[Path], Counter[str]]:
    """Return the sources in a folder, its subfolders, stray files, and the number of other files by reason."""
    left_out: Counter[str] = Counter()
    entries = []
    for path in sorted(folder.iterdir()):
        if reason := clutter.find_clutter(path.name, is_folder=path.is_dir()):
            left_out[reason] += clutter.count_files(path)
        else:
            entries.append(path)
    folders = [p for p in entries if p.is_dir()]
    files = [p for p in entries if read_suffix(p) in SUFFIXES and p.is_file()]
    tars = {p.stem for p in files if read_suffix(p) == ".tar"}
    found = [p for p in files if read_suffix(p) == ".tar" or p.stem not in tars]
    table = any(read_suffix(p) != ".tar" for p in found)
    beside = BESIDE_TABLE if table else BESIDE_TAR
    others = [p for p in entries if p not in files and p not in folders]
    strays = [p for p in others if read_suffix(p) not in beside]
    left_out[BESIDE] += len(others) - len(strays) + len(files) - len(found)
    if table:  # subfolders hold its images
        below = [Path(root, name) for f in folders for root, _, names in os.walk(f) for name in names]
        packed = [p for p in below if read_suffix(p) in (*SUFFIXES, *PACKED)]
        strays += packed
        left_out[BESIDE] += len(below) - len(packed)
    elif found:
        strays += folders
    return found, folders, strays, +left_out
