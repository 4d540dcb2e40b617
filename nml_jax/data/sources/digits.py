"""scikit-learn's handwritten digits."""

from typing import Any

import numpy as np

from nml_jax.data.sources.source import Arrays, Source, digest
from nml_jax.errors import UserError


def read_digits(split: str) -> Source:
    """scikit-learn's handwritten digits: 1,797 images of 8x8, ten classes; keys are the numbers of its records.

    Pixels 0..16 become round(255 v / 16) in three equal channels. Of each class every fifth record, in scikit-learn's
    order, is "test", the rest is "train".

    Raises:
        UserError: another split.
    """
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise UserError(f"digits has no split {split!r}", "its splits are train, test")
    bunch: Any = load_digits()
    labels = bunch.target.astype(np.int32)
    rank = np.zeros(len(labels), int)  # of a record within its class
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
