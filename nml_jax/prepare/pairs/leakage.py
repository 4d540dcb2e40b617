"""Count captions that several splits of image-text pairs share."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax.data.sources import texts


def count_equal_texts(folder: Path, splits: list[str]) -> list[dict[str, Any]]:
    """Count the captions that are equal in two splits, for all splits that share some.

    Args:
        folder: folder with `SPLIT.captions` of every split.

    Returns:
        For two splits: their names, the number of distinct equal texts, and for each of the two the number of captions
        with such a text, and of pairs with such a caption.
    """
    if len(splits) < 2:
        return []
    hashes = {split: _hash_captions(folder / f"{split}.captions") for split in splits}
    found = []
    for a, b in itertools.combinations(splits, 2):
        shared = np.intersect1d(hashes[a][0], hashes[b][0])
        if not len(shared):
            continue
        entry: dict[str, Any] = {"splits": [a, b], "texts": len(shared), "captions": {}, "pairs": {}}
        for split in (a, b):
            hashed, pairs = hashes[split]
            equal = np.isin(hashed, shared)
            entry["captions"][split] = int(equal.sum())
            entry["pairs"][split] = len(np.unique(pairs[equal]))
        found.append(entry)
    return found


def _hash_captions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of every caption, uint64 [N], and the number of its pair, int64 [N]."""
    hashed, pairs = bytearray(), []
    separator, stored = texts.SEPARATOR.encode(), texts.Texts(path)
    for i in range(len(stored)):
        for caption in stored.raw(i).split(separator):
            hashed += hashlib.blake2b(caption, digest_size=8).digest()
            pairs.append(i)
    return np.frombuffer(bytes(hashed), np.uint64), np.array(pairs, np.int64)
