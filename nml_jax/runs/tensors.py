"""Write safetensors files that prove their own content, and are equal byte for byte if the content is.

The metadata hold a SHA-256 of everything else in the file: of the tensors' names, types, shapes and bytes, and of the
other metadata. The library writes metadata in an order that changes from process to process, so they are sorted here.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import safe_open

PROOF = "sha256"  # its key in the metadata


def seal_tensors(tensors: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file with a proof in its metadata."""
    own = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    return _sort_metadata(safetensors.numpy.save(own, metadata={**meta, PROOF: hash_tensors(own, meta)}))


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        SafetensorError, OSError: the file cannot be read.
    """
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  no mapping


def is_sealed(tensors: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> bool:
    """Return whether the metadata hold a proof.

    Raises:
        ValueError: the proof is that of another content.
    """
    if PROOF in meta and meta[PROOF] != hash_tensors(tensors, meta):
        raise ValueError("it has changed since it was written (SHA-256 differs)")
    return PROOF in meta


def hash_tensors(tensors: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> str:
    """Return the SHA-256 of tensors and metadata, without the proof."""
    about = {name: [x.dtype.str, list(x.shape)] for name, x in sorted(tensors.items())}
    rest = {name: text for name, text in sorted(meta.items()) if name != PROOF}
    sha = hashlib.sha256(json.dumps([about, rest]).encode())
    for name in about:
        sha.update(np.ascontiguousarray(tensors[name]).tobytes())
    return sha.hexdigest()


def _sort_metadata(data: bytes) -> bytes:
    """Return the content of a safetensors file with its metadata in alphabetical order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[end:]
