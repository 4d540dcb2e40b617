"""How images are read: what training and evaluation share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from nml_jax.data.images import transforms
from nml_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Reading:
    """How images are made, which rows of a batch are this process's, and how far ahead they are read.

    Attributes:
        augment: the section `config.augment`.
        image_size: of training images; test images have `augment.test_size`, where that is set.
        mean, std: per channel, of pixels in [0, 1]; see `transforms.train_transform`.
        block, blocks: this process reads block number `block` of the `blocks` equal parts of every global batch.
        threads: each works on a batch of its own; 0 works in the caller's, which is fastest for tiny images.
        prefetch: batches ready or under way; at least one per thread.
    """

    augment: Any
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    block: int = 0
    blocks: int = 1
    threads: int = 8
    prefetch: int = 4

    @property
    def test_size(self) -> int:
        """Side of test images."""
        return self.augment.test_size or self.image_size

    def train_transform(self, size: int) -> Callable[..., dict[str, Any]]:
        """Augment a record into an image of this size."""
        return transforms.train_transform(self.augment, size, self.mean, self.std)

    def eval_transform(self) -> Callable[..., dict[str, Any]]:
        """Resize a record to a test image."""
        return transforms.eval_transform(self.augment, self.test_size)


def divide_batch(batch: int, blocks: int) -> int:
    """Rows of one process in a global batch.

    Raises:
        UserError: `blocks` processes cannot share the batch equally.
    """
    if batch < 1 or batch % blocks:
        raise UserError(
            f"a batch of {batch} cannot be divided among {blocks} processes", f"choose a multiple of {blocks}"
        )
    return batch // blocks
