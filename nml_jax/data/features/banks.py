"""Read and write feature banks: the outputs of a frozen encoder on one split, as sharded safetensors with an index.

The key of a bank depends on everything that its numbers depend on (encoder, preprocessing, split). So a stale bank is
never read: it has another key and is written again. A bank's folder gets its name once it is complete.
"""

import dataclasses
import glob
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from nml_jax.errors import UserError, report_disk_errors
from nml_jax.hashes import hash_bytes, hash_file
from nml_jax.runs.files import write_json
from nml_jax.settings import hash_json
from nml_jax.stored import parse_json

VERSION = 1
SHARD_ROWS = 16_384
OWN = ("label", "id")  # arrays of a bank that are not layers


class Bank:
    """A bank on disk. Arrays are read shard by shard.

    Attributes:
        index: key, n, layers (name -> [V, D]), num_classes, class_names, shards, and scoring if it was given.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.index: dict[str, Any] = _read_index(folder)

    def __len__(self) -> int:
        return self.index["n"]

    def read(self, name: str) -> np.ndarray:
        """Read all rows of one array in source order: a layer (float32 [N, V, D]), "id" (int32 [N]), or
        "label" (int32 [N], or float32 [N] where labels are scores).

        Raises:
            UserError: a shard is missing, damaged, or holds a value that is not finite.
        """
        return np.concatenate([self.shard(shard, name) for shard in self.index["shards"]])

    def shard(self, shard: Mapping[str, Any], name: str) -> np.ndarray:
        """Read the rows of one array in one entry of `index["shards"]`. Raise what `read` raises."""
        path = self.folder / shard["file"]
        cure = f"delete {self.folder}; the next start writes it again"
        if not path.exists():
            raise UserError(f"{path} is missing", cure)
        try:
            if hash_file(path) != shard["sha256"]:
                raise UserError(f"{path} has changed since it was written (SHA-256 differs)", cure)
            with safe_open(path, "numpy") as tensors:
                out = tensors.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise UserError(f"{path}: {e}", cure) from e
        if out.dtype.kind == "f" and not (finite := np.isfinite(out).reshape(len(out), -1).all(1)).all():
            row = int(np.flatnonzero(~finite)[0])
            raise UserError(f"{path}: row {row} of {name!r} is not finite", "extract it again with --force=extract")
        return out


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a bank, with the reading methods of `files.Features`."""

    bank: Bank
    name: str

    def __len__(self) -> int:
        return len(self.bank)

    @property
    def views(self) -> int:
        return self.bank.index["layers"][self.name][0]

    @property
    def dim(self) -> int:
        return self.bank.index["layers"][self.name][1]

    def read(self) -> np.ndarray:
        """Read all rows, float32 [N, V, D]."""
        return self.bank.read(self.name)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, float32 [at most `size`, V, D]) in order."""
        start = 0
        for shard in self.bank.index["shards"]:
            rows = self.bank.shard(shard, self.name)
            for i in range(0, len(rows), size):
                yield start + i, rows[i : i + size]
            start += len(rows)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Read these rows in this order, float32 [n, V, D]."""
        out = np.empty((len(index), self.views, self.dim), np.float32)
        for start, block in self.blocks(SHARD_ROWS):
            here = np.flatnonzero((index >= start) & (index < start + len(block)))
            out[here] = block[index[here] - start]
        return out


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    cure = f"delete {folder}; the next start writes it again"
    try:
        index = parse_json(path.read_bytes())
        sound = index["sha256"] == _hash_index(index)
    except FileNotFoundError as e:
        raise UserError(f"{folder} is not a feature bank: it has no index.json", cure) from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}", cure) from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged: {e}", cure) from e
    if not sound:
        raise UserError(f"{path} has changed since it was written (SHA-256 differs)", cure)
    return index


def _hash_index(index: Mapping[str, Any]) -> str:
    """Return the digest of an index, without the digest that it holds."""
    return hash_json({k: v for k, v in index.items() if k != "sha256"})


def find(folder: Path, key: str) -> Bank | None:
    """Return the bank in `folder`; None if there is none or it has another key."""
    if not (folder / "index.json").exists():
        return None
    bank = Bank(folder)
    return bank if bank.index["key"] == key else None


def copy(source: Path, folder: Path, key: str) -> bool:
    """Copy the bank in `source` if it has this key; return whether it has. It replaces the content of `folder`.

    Raises:
        UserError: the disk is full, or the bank is damaged.
    """
    if source == folder or find(source, key) is None:
        return False
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    with report_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return True


def write(
    folder: Path,
    blocks: Iterable[Mapping[str, np.ndarray]],
    *,
    key: str,
    num_classes: int,
    class_names: tuple[str, ...],
    scoring: Mapping[str, Any] | None = None,
) -> Bank:
    """Write a bank from blocks of rows. It replaces the content of the folder once it is complete.

    Args:
        folder: folder of the bank.
        blocks: dicts of layers (float32 [n, V, D]), "label" (int32 [n], or float32 [n] of scores) and "id" (int32 [n]),
            in source order.
        key: identity of all that the numbers depend on.
        num_classes, class_names: the classes of the labels.
        scoring: how to score a head on the split, as JSON values, if labels alone do not say.

    Raises:
        UserError: a feature is not finite, there are no rows, or the disk is full.
    """
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    shards: list[dict[str, Any]] = []
    layers: dict[str, list[int]] = {}
    with report_disk_errors(folder):
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*part"):  # by a killed run
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        for block in _regroup(blocks, SHARD_ROWS):
            for name, array in block.items():
                if array.dtype.kind != "f" or name in OWN:
                    continue
                layers[name] = list(array.shape[1:])
                if not (finite := np.isfinite(array).reshape(len(array), -1).all(1)).all():
                    record = int(block["id"][~finite][0])
                    raise UserError(f"the encoder's {name!r} of record {record} is not finite", "check the checkpoint")
            data = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in block.items()})
            file = f"{len(shards):05d}.safetensors"
            (part / file).write_bytes(data)
            shards.append({"file": file, "rows": len(block["id"]), "sha256": hash_bytes(data)})
        if not shards:
            raise UserError(f"{folder}: the split has no records", "choose another split")
        index: dict[str, Any] = {
            "version": VERSION,
            "key": key,
            "n": sum(shard["rows"] for shard in shards),
            "layers": layers,
            "num_classes": num_classes,
            "class_names": list(class_names),
            "shards": shards,
            **({"scoring": dict(scoring)} if scoring else {}),
        }
        write_json(part / "index.json", index | {"sha256": _hash_index(index)})
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return Bank(folder)


def _regroup(blocks: Iterable[Mapping[str, np.ndarray]], rows: int) -> Iterable[dict[str, np.ndarray]]:
    """Yield the same rows in blocks of exactly `rows`; the last may be smaller."""
    held: list[Any] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block["id"])
        while count >= rows:
            joined = {k: np.concatenate([h[k] for h in held]) for k in held[0]}
            yield {k: v[:rows] for k, v in joined.items()}
            held, count = [{k: v[rows:] for k, v in joined.items()}], count - rows
    if count:
        yield {k: np.concatenate([h[k] for h in held]) for k in held[0]}
