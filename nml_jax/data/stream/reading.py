"""Describe how images are read, for training and evaluation alike."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from nml_jax.data.images import transforms
from nml_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Reading:
    """Settings of image reading: transforms, this process's rows of a batch, threads and prefetching.

    Attributes:
        augment: the section `config.augment`.
        image_size: side of training images in pixels. Test images have `augment.test_size` if it is set.
        mean, std: per channel, for pixels in [0, 1]; see `transforms.train_transform`.
        block, blocks: this process reads part number `block` of the `blocks` equal parts of every global batch.
        threads: number of threads, each with a batch of its own; 0 uses the caller's, fastest for tiny images.
        prefetch: batches made ahead; at least one per thread.
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
        """Side of test images in pixels."""
        return self.augment.test_size or self.image_size

    def train_transform(self, size: int) -> Callable[..., dict[str, Any]]:
        """Augment a record into an image of this size."""
        return transforms.train_transform(self.augment, size, self.mean, self.std)

    def eval_transform(self) -> Callable[..., dict[str, Any]]:
        """Resize a record to a test image."""
        return transforms.eval_transform(self.augment, self.test_size)


def divide_batch(batch: int, blocks: int) -> int:
    """Return the number of rows of one process in a global batch.

    Raises:
        UserError: `blocks` processes cannot share the batch equally.
    """
    if batch < 1 or batch % blocks:
        raise UserError(
            f"a batch of {batch} cannot be divided among {blocks} processes", f"choose a multiple of {blocks}"
        )
    return batch // blocks
