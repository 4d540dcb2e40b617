"""Define sources of images with objects: boxes, classes and masks."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nml_jax.data.sources.captions import Taken
from nml_jax.data.sources.source import Source, digest

# A mask as COCO writes it: polygons [[x1, y1, x2, y2, ...], ...] or an RLE {"size": [h, w], "counts": ...}; None: none.
Segmentation = Any


class Objects(NamedTuple):
    """The n objects of an image, in pixels of its upright picture.

    Fields:
        boxes: float64 [n, 4], x1 y1 x2 y2; the ends are exclusive.
        labels: int32 [n], classes from 0.
        crowd: bool [n]; a region of many objects, which training leaves out and the evaluation does not count.
        areas: float64 [n], pixels of the mask, or what the annotation says.
        masks: n segmentations.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    masks: tuple[Segmentation, ...]

    def take(self, kept: np.ndarray) -> "Objects":
        """Return the objects at `kept`, indices or bool [n]."""
        kept = np.arange(len(self.labels))[kept]
        masks = tuple(self.masks[i] for i in kept)
        return Objects(self.boxes[kept], self.labels[kept], self.crowd[kept], self.areas[kept], masks)


def make_objects(
    boxes: Sequence[Any], labels: Sequence[int], crowd: Sequence[bool], areas: Sequence[float], masks: Sequence[Any]
) -> Objects:
    """Make the objects of an image from lists, which may be empty."""
    return Objects(
        np.asarray(boxes, np.float64).reshape(-1, 4),
        np.asarray(labels, np.int32).reshape(-1),
        np.asarray(crowd, bool).reshape(-1),
        np.asarray(areas, np.float64).reshape(-1),
        tuple(masks),
    )


class ObjectSource(Source):
    """Images with objects. A record has image, id, and objects: an `Objects`.

    Attributes:
        sizes: int32 [N, 2], height and width of the upright pictures.
        image_ids: N ids of the images in the annotations that they come from.
        category_ids: K ids of the classes there.
        counts: int [N, 2], objects that are not crowds, and those of them with a mask.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        *,
        class_names: Sequence[str],
        fingerprint: str,
        image_ids: Sequence[Any] | None = None,
        category_ids: Sequence[int] | None = None,
    ):
        self.sizes = np.asarray(sizes, np.int32).reshape(-1, 2)
        super().__init__(num_classes=len(class_names), class_names=class_names, fingerprint=fingerprint)
        self.image_ids = range(len(self)) if image_ids is None else image_ids
        self.category_ids = range(len(class_names)) if category_ids is None else category_ids

    @functools.cached_property
    def counts(self) -> np.ndarray:
        found = (self.objects(i) for i in range(len(self)))
        alone = [objects.take(~objects.crowd) for objects in found]
        return np.array([[len(of.labels), sum(mask is not None for mask in of.masks)] for of in alone])

    def objects(self, i: int) -> Objects:
        """Return the objects of record i, without reading its image."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        return {"image": self.image(i), "id": i, "objects": self.objects(i)}


class SomeImages(ObjectSource):
    """The records of `source` at `indices`, in that order. Ids start at 0 again."""

    def __init__(self, source: ObjectSource, indices: np.ndarray):
        super().__init__(
            source.sizes[indices],
            class_names=source.class_names,
            fingerprint=digest("some images", source.fingerprint, np.asarray(indices, np.int64)),
            image_ids=Taken(source.image_ids, indices),
            category_ids=source.category_ids,
        )
        self.source, self.indices = source, indices
        self.counts = source.counts[indices]

    def image(self, i: int) -> bytes | np.ndarray:
        return self.source.image(int(self.indices[i]))

    def objects(self, i: int) -> Objects:
        return self.source.objects(int(self.indices[i]))

    @property
    def keys(self) -> Sequence[str] | None:
        keys = self.source.keys
        return None if keys is None else Taken(keys, self.indices)


class OtherClasses(SomeImages):
    """All records of `source`, with classes of another numbering.

    Args:
        classes: the class of this source that each class of `source` is.
    """

    def __init__(self, source: ObjectSource, classes: np.ndarray, class_names: Sequence[str]):
        super().__init__(source, np.arange(len(source)))
        known = {int(new): source.category_ids[old] for old, new in enumerate(classes) if new >= 0}
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.category_ids = [known.get(c, -1) for c in range(len(class_names))]
        self.classes = classes
        self.fingerprint = digest("other classes", source.fingerprint, classes.tolist(), list(class_names))

    def objects(self, i: int) -> Objects:
        objects = super().objects(i)
        return objects._replace(labels=self.classes[objects.labels].astype(np.int32))
