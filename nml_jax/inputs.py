"""List the files and folders that a config names, and hash them to notice changes."""

import glob
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml_jax.hashes import hash_bytes, hash_file
from nml_jax.settings import flatten, hash_json

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json")
WORDS = {("zeroshot.class_map", "order")}  # values that are not paths
TABLES = (".tsv", ".csv", ".txt", ".jsonl", ".ndjson", ".parquet")  # names of tables of texts
LARGE = 2**30  # bytes of a file that is not read as a whole
# Names of files of features that can be shards of one set. A .npy cannot: labels would be a file beside it.
SHARDS = (
    *(".npz", ".safetensors", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    *(".parquet", ".arrow", ".feather", ".ipc"),
)


def list_paths(part: Mapping[str, Any]) -> list[str]:
    """List the files and folders that a part of a config names and whose content its numbers depend on."""
    return [path for _, path in name_paths(part)]


def name_paths(part: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the same as pairs (key of the config, path)."""
    named = {
        "init_from", "noise_file", "data.path", "data.tokenizer",
        "downstream.path", "detect.data.path", "detect.data.test_path", "texts.tokenizer", "zeroshot.templates",
        "zeroshot.class_names", "zeroshot.class_map",
    }  # fmt: skip
    flat = dict(flatten(part))
    one = [(key, value) for key, value in flat.items() if key in named and value and (key, value) not in WORDS]
    one += [("data.mixture", path) for path in flat.get("data.mixture", ())]
    tasks = flat.get("downstream.tasks", ())
    directories = (entry for entry in flat.get("downstream.directories", ()) if len(entry) > 1)
    one += [("downstream.directories", entry[1]) for entry in directories if entry[0] in tasks]
    texts = [f"texts.{split}" for split in ("train", "test", "ood")]
    one += [(key, path) for key in texts for path in split_specs(flat.get(key, ""))]
    one += [("glue.folder", path) for path in list_tables(flat.get("glue.folder", ""))]
    keys = [f"features.{split}" for split in ("train", "test", "ood")]
    return [*one, *((key, path) for key in keys for path in list_files(flat.get(key, "")))]


def find_rules(part: Mapping[str, Any]) -> dict[str, str]:
    """Find rules that a part of a config is read by, and was not in older versions, whose numbers are others."""
    splits = ("data.train", "data.validation", "downstream.train", "downstream.test", "downstream.ood",
              "downstream.directories")  # fmt: skip
    cut = any("%]" in str(value) for key, value in flatten(part) if key in splits)
    return {"parts in percent": "of every class"} if cut else {}


def split_specs(several: str) -> list[str]:
    """Split specs of test files at ";". A spec is FILE, "FEATURES.npy,LABELS.npy" or a folder of shards.

    A pattern such as "domains/*.npz" stands for a spec for each of its files, in the order of their names.
    """
    specs = [spec.strip() for spec in several.split(";") if spec.strip()]
    return [file for spec in specs for file in _match_pattern(spec)]


def split_parts(spec: str) -> list[str]:
    """Return the specs of the single files that make up one set: a list with ";", a pattern, or a folder of shards."""
    specs = split_specs(spec) if spec.strip() else [spec]
    return [file for part in specs for file in (list_shards(Path(part).expanduser()) or [part])]


def list_shards(folder: Path) -> list[str]:
    """Return the shards in a folder, by name, or in the order of a saved Hugging Face data set; [] if there are none.

    Names that begin with "." or "_" are left out, as in other readers of such folders.
    """
    if not folder.is_dir():
        return []
    if (state := folder / "state.json").is_file():
        try:
            return [str(folder / file["filename"]) for file in json.loads(state.read_bytes())["_data_files"]]
        except (ValueError, KeyError, TypeError):
            return []
    names = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(SHARDS) and path.is_file()]
    return [str(path) for path in names if path.name[0] not in "._"]


def list_tables(folder: str) -> list[str]:
    """List a folder and the tables of texts in it, at most three folders deep; [] for ""."""
    if not folder:
        return []
    below = Path(folder).expanduser()
    found = (path for depth in range(1, 5) for path in below.glob("/".join(["*"] * depth)))
    return [folder, *sorted(str(path) for path in found if path.name.lower().endswith(TABLES) and path.is_file())]


def _match_pattern(spec: str) -> list[str]:
    """Return the files that match a pattern; the spec itself if it is none, or names an existing file."""
    if not glob.has_magic(spec) or all(path.exists() for path in split_pair(spec)):
        return [spec]
    return sorted(glob.glob(str(Path(spec).expanduser()))) or [spec]


def list_files(several: str) -> list[str]:
    """List the files of feature specs that are separated by ";"."""
    parts = [part for spec in split_specs(several) for part in split_parts(spec)]
    return [str(path) for part in parts for path in split_pair(part)]


def split_pair(spec: str) -> list[Path]:
    """Return the one or two files of a spec. A comma separates two, unless it is in the name of an existing file."""
    whole = Path(spec).expanduser()
    cuts = [(spec[:i], spec[i + 1 :]) for i, character in enumerate(spec) if character == ","]
    if not cuts or whole.exists():
        return [whole]
    pairs = [[Path(part.strip()).expanduser() for part in cut] for cut in cuts]
    return next((pair for pair in pairs if all(p.is_file() for p in pair)), pairs[0])


def describe_content(path: Path) -> str:
    """Return the content of a file or folder in words that are equal wherever the content is.

    A folder is described by its manifests and by the sizes of its files of records. A file above 1 GiB is described by
    its size and its ends.
    """
    try:
        if path.is_dir():
            records = sorted(p for p in path.rglob("*") if re.search(r"\.(array_record|tfrecord)", p.name))
            sizes = [[str(p.relative_to(path)), p.stat().st_size] for p in records if p.is_file()]
            size, found = sum(n for _, n in sizes), hash_json([hash_content(path), sizes])
        elif path.is_file():
            size = path.stat().st_size
            found = hash_content(path) if size <= LARGE else _hash_ends(path, size)
        else:
            return "nothing"
    except OSError as e:
        return f"unreadable ({e.strerror})"
    return f"{size} bytes (SHA-256 {found[:8]})"


def _hash_ends(path: Path, size: int) -> str:
    """Return the SHA-256 of the first and the last MiB of a file."""
    with path.open("rb") as file:
        first = file.read(2**20)
        file.seek(size - 2**20)
        return hash_bytes(first + file.read())


def hash_content(path: Path) -> str:
    """Return a SHA-256 that changes when a file changes, or when the manifests in a folder do.

    For a file above 1 GiB, hash its size and modification time instead, because every start of a run does this.
    """
    if path.is_file() and path.stat().st_size > LARGE:
        return hash_json([path.stat().st_size, path.stat().st_mtime_ns])
    if path.is_file():
        return hash_file(path)
    described = [p for name in ("manifest.json", "dataset_info.json", "SHA256SUMS") for p in path.rglob(name)]
    if weights := [p for name in WEIGHTS for p in path.glob(name)]:  # a published model's
        described += [*weights, *path.glob("*config.json"), *path.glob("*_Pooling/config.json")]
        described += [path / name for name in TOKENIZER if (path / name).is_file()]
    return hash_json([[str(p.relative_to(path)), hash_content(p)] for p in sorted(described)])
