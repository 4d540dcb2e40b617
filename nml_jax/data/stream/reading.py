"""Describe how images are read, for training and evaluation alike, and the arrays of a batch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nml_jax.data.images import transforms
from nml_jax.data.images.scenes import SceneTransform, is_portrait
from nml_jax.data.sources.objects import ObjectSource
from nml_jax.data.sources.source import Source
from nml_jax.errors import UserError


class Field(NamedTuple):
    """An array that every example of a batch has. Rows of padding are filled with `fill`."""

    shape: tuple[int, ...]
    dtype: Any
    fill: int = 0


Transform = Callable[..., dict[str, Any]]  # (record, rng) -> example


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
    def repeats(self) -> int:
        """Number of examples in a row that show the same record in training."""
        return self.augment.repeats

    def find_groups(self, source: Source) -> np.ndarray | None:
        """Return a group for each record; the records of a batch are of one. None: they all are."""
        return None

    def train_transform(self, *, test: bool = False) -> Transform:
        """Augment a record into a training image; with `test` of the size of test images."""
        return transforms.train_transform(self.augment, self._find_side(test), self.mean, self.std)

    def eval_transform(self) -> Transform:
        """Resize a record to a test image."""
        return transforms.eval_transform(self.augment, self._find_side(test=True))

    def list_fields(self, group: int, *, test: bool) -> Mapping[str, Field]:
        """Return the arrays that the transforms make of a record of a group."""
        side = self._find_side(test)
        return {"image": Field((side, side, 3), np.uint8)}

    def _find_side(self, test: bool) -> int:
        return (self.augment.test_size if test else 0) or self.image_size


@dataclasses.dataclass(frozen=True)
class SceneReading:
    """The same for images with objects. A batch has one of two canvases, landscape or portrait.

    Attributes:
        transform: makes examples of records.
        block, blocks, threads, prefetch: see `Reading`.
    """

    transform: SceneTransform
    block: int = 0
    blocks: int = 1
    threads: int = 8
    prefetch: int = 4
    repeats: int = 1

    def find_groups(self, source: Source) -> np.ndarray | None:
        """Return 1 for pictures that are higher than wide, else 0. None if the canvas is square."""
        assert isinstance(source, ObjectSource)
        height, width = self.transform.canvas
        return None if height == width else is_portrait(source.sizes).astype(np.int8)

    def train_transform(self, *, test: bool = False) -> Transform:
        return self.transform.train

    def eval_transform(self) -> Transform:
        return self.transform.test

    def list_fields(self, group: int, *, test: bool) -> Mapping[str, Field]:
        """Return the arrays of a batch with the canvas of a group: 0 landscape, 1 portrait."""
        of = self.transform
        height, width = canvas = of.canvas[::-1] if group else of.canvas
        out = {"image": Field((*canvas, 3), np.uint8), "size": Field((2,), np.int32, 1)}
        if test:
            return out
        out |= {"boxes": Field((of.most, 4), np.float32), "labels": Field((of.most,), np.int32, -1)}
        if of.crop:
            out["masks"] = Field((of.most, of.crop, of.crop), np.uint8)
        if of.stride:
            out["maps"] = Field((of.most, height // of.stride, -(-width // of.stride // 8)), np.uint8)
            out["centres"] = Field((of.most, 2), np.float32)
        return out


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
