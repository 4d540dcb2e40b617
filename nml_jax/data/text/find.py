"""Find the files of a set of texts below a folder, in the layouts that GLUE, Hugging Face and TFDS leave.

A set is a folder whose name is the set's but for case and punctuation, such as SST-2, possibly below another. In it
train.tsv, sst2_train.jsonl, data/train-00000-of-00002.parquet and train/0000.parquet are the split train; a folder that
TFDS has prepared is all splits.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from nml_jax.data.text.tables import SUFFIXES
from nml_jax.errors import UserError

SPLITS = {"train": ("train", "training"), "dev": ("dev", "validation", "valid", "val", "trial"), "test": ("test",)}
# Words that tell parts of one split apart: a file with one of them is taken only if it is asked for.
PARTS = {"matched", "mismatched", "in", "out"}
SHARD = re.compile(r"(\d+-of-\d+|^\d+)$")
DEPTH = 3  # levels of folders in which a set may lie, and in which its files may lie in it


def find_set(folder: Path, names: Collection[str]) -> Path | None:
    """Return the folder of a set below `folder`, or `folder` itself; None if there is none.

    Args:
        names: what the set is called, in small letters and digits alone.
    """
    for level in range(DEPTH):
        found = [folder] if not level else sorted(p for p in folder.glob("/".join(["*"] * level)) if p.is_dir())
        for path in found:
            if re.sub(r"[^a-z0-9]", "", path.resolve().name.lower()) in names and _holds_data(path):
                return path
    return None


def _holds_data(folder: Path) -> bool:
    return any(True for _ in _list_files(folder)) or find_prepared(folder) is not None


def _list_files(folder: Path) -> Iterable[Path]:
    for level in range(1, DEPTH):
        for path in sorted(folder.glob("/".join(["*"] * level))):
            if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] not in "._":
                yield path


def find_prepared(folder: Path) -> Path | None:
    """Return the newest folder that TFDS has prepared in the folder of a set; None if there is none."""
    found = [
        *folder.glob("dataset_info.json"),
        *folder.glob("*/dataset_info.json"),
        *folder.glob("*/*/dataset_info.json"),
    ]
    found = [path.parent for path in found if any(path.parent.glob("*.array_record*"))]
    return max(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)], default=None)


def find_split(folder: Path, split: str) -> list[Path]:
    """Return the files of a split in the folder of a set; [] if there are none.

    Args:
        split: train, dev or test, and words that the name must have, as in "dev matched".

    Raises:
        UserError: several files may be meant.
    """
    kind, *more = split.split()
    parts = [(path, _list_words(path.relative_to(folder))) for path in _list_files(folder)]
    fitting = [(path, words) for path, words in parts if PARTS & words == {*more}]
    for word in SPLITS[kind]:
        named = [path for path, words in fitting if word in words]
        for suffix in SUFFIXES:
            if own := [path for path in named if path.suffix.lower() == suffix]:
                return _require_one(own, split)
    return []


def _list_words(path: Path) -> set[str]:
    return {*re.split(r"[^a-z]+", str(path.with_suffix("")).lower())}


def _require_one(files: list[Path], split: str) -> list[Path]:
    if len(files) > 1 and not all(SHARD.search(path.stem) for path in files):
        names = ", ".join(path.name for path in files[:4])
        raise UserError(f"{files[0].parent}: {names} may all be the split {split!r}", "leave one of them there")
    return files
