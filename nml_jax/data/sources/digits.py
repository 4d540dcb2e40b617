"""Read scikit-learn's handwritten digits."""

from typing import Any

import numpy as np

from nml_jax.data.sources.source import Arrays, Source, digest
from nml_jax.errors import UserError


def read_digits(split: str) -> Source:
    """Read scikit-learn's handwritten digits: 1,797 images of 8x8, ten classes. Keys are scikit-learn's record numbers.

    Pixels 0..16 become round(255 v / 16) in three equal channels. Every fifth record of each class, in scikit-learn's
    order, is in "test", the rest in "train".

    Raises:
        UserError: the split is neither train nor test.
    """
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise UserError(f"digits has no split {split!r}", "its splits are train, test")
    bunch: Any = load_digits()
    labels = bunch.target.astype(np.int32)
    rank = np.zeros(len(labels), int)  # rank of a record within its class
    for c in range(10):
        rank[labels == c] = np.arange(np.sum(labels == c))
    index = np.flatnonzero((rank % 5 == 4) == (split == "test"))
    pixels = np.rint(bunch.images[index] * 255 / 16).astype(np.uint8)
    return Arrays(
        np.repeat(pixels[..., None], 3, axis=-1),
        labels[index],
        keys=[str(i) for i in index],
        num_classes=10,
        class_names=None,
        fingerprint=digest("digits", split, pixels, labels[index]),
    )
