"""Image-text pairs as people have them: WebDataset tars, Parquet, CSV and TSV, read in order and never extracted."""

import contextlib
import csv
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nml_jax import log
from nml_jax.errors import UserError

SUFFIXES = (".tar", ".parquet", ".csv", ".tsv")
PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
BESIDE_TAR = (".json",)  # img2dataset's statistics
BESIDE_TABLE = (".json", ".txt", ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
STRAY = "neither a tar nor a table"


class Refusal(NamedTuple):
    """Why a pair cannot be taken; with the key "", why a file cannot be read, or not to its end."""

    key: str
    reason: str


class Pair(NamedTuple):
    """An image with its captions, of which nothing has been checked yet.

    Attributes:
        key: unique in its file: of a tar's members, or the number of the (first) row of a table, from 0.
        image: reads the image: its bytes, and why it must be refused, or "".
        captions: str, or bytes that may be UTF-8.
        fields: the named columns, or all of KEY.json.
    """

    key: str
    image: Callable[[], tuple[bytes, str]]
    captions: list[Any]
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Columns:
    """What to read. None: as the source's kind has it (`image_text.image_text`)."""

    image: str | None = None
    captions: tuple[str, ...] | None = None
    fields: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar, or a range of a table: rows of Parquet, bytes of CSV and TSV.

    Attributes:
        split: of the dataset that it belongs to.
        path: of the file.
        name: of the file below the folder that all sources share, with "/".
        start, stop: the range. line, row: number of the lines and rows before `start`.
        again: rows at which an image begins that has come before in the table.
    """

    split: str
    path: str
    name: str
    start: int = 0
    stop: int = 0
    line: int = 0
    row: int = 0
    again: tuple[int, ...] = ()


def kind_of(path: str | Path) -> str:
    """The suffix of a file in lower case."""
    return os.path.splitext(path)[1].lower()


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
            if kind_of(source) not in SUFFIXES:
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
        log.say(f"each folder is a split of its name: {', '.join(plain)}")
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
    return files, [(name_of(p), packed if kind_of(p) in PACKED else STRAY) for p in sorted(set(strays))]


def _look(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Sources in a folder, its folders, and what else there is. Hidden files and folders do not count."""
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    folders = [p for p in entries if p.is_dir()]
    files = [p for p in entries if kind_of(p) in SUFFIXES and p.is_file()]
    tars = {p.stem for p in files if kind_of(p) == ".tar"}
    found = [p for p in files if kind_of(p) == ".tar" or p.stem not in tars]
    table = any(kind_of(p) != ".tar" for p in found)
    known = {*files, *folders}
    strays = [p for p in entries if p not in known and kind_of(p) not in (BESIDE_TABLE if table else BESIDE_TAR)]
    if table:  # its images lie in folders
        below = (Path(root, name) for f in folders for root, _, names in os.walk(f) for name in names)
        strays += [p for p in below if kind_of(p) in (*SUFFIXES, *PACKED)]
    elif found:
        strays += folders
    return found, folders, strays


def cut(split: str, path: Path, name: str, columns: Columns) -> list[Shard]:
    """The shards of a file; of one that cannot be read, one.

    Raises:
        UserError: a table is empty, lacks a column, or has two of one name.
    """
    from nml_jax.data import tables

    whole = Shard(split, str(path), name)
    try:
        return [whole] if kind_of(path) == ".tar" else tables.cut(whole, columns)
    except (OSError, ValueError, csv.Error):  # Arrow's errors are ValueError or OSError
        return [whole]  # reading it will say why


def read(shard: Shard, columns: Columns) -> Iterator[Pair | Refusal]:
    """The pairs of a shard, in order."""
    from nml_jax.data import tables, tars

    try:
        yield from (tars if kind_of(shard.path) == ".tar" else tables).read(shard, columns)
    except (OSError, ValueError, csv.Error) as e:
        why = getattr(e, "strerror", None) or str(e) or type(e).__name__
        yield Refusal("", f"unreadable: {why.splitlines()[0]}")


def read_fields(shard: Shard, columns: Columns) -> Iterator[dict[str, Any]]:
    """The fields of the pairs of a shard, without their images. What cannot be read has none: `read` says why."""
    from nml_jax.data import tables

    if kind_of(shard.path) == ".parquet":
        with contextlib.suppress(OSError, ValueError):
            yield from tables.read_fields(shard, columns)
    else:
        yield from (pair.fields for pair in read(shard, columns) if isinstance(pair, Pair))


def listed(values: Iterable[Any]) -> list[Any]:
    """Captions of several fields, each of which may hold several; a missing value is none."""
    lists = (value if isinstance(value, list) else [value] for value in values)
    return [caption for captions in lists for caption in captions if caption is not None]
