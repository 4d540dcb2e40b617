"""Define sources: random access to images with labels or captions, and views of them.

A source knows all labels or captions without reading an image. Builders write them beside the records as an index; for
catalogue datasets the index is built once. So noise can be put over 10^7 records in a second.
"""

import dataclasses
import functools
import hashlib
import json
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from nml_jax.data.class_names import clean_name
from nml_jax.data.sources.captions import Captions, Joined, Taken
from nml_jax.errors import UserError

NO_LABELS = np.zeros(0, np.int32)


class Source:
    """Records in a fixed order, with labels or with captions. It can be pickled, and reading is thread-safe.

    Attributes:
        labels: int32 [N]; empty for a source of captions.
        labels_clean: int32 [N]; the labels without noise.
        num_classes: int; labels are in [0, num_classes).
        class_names: one string per class.
        captions: captions[i] are the one or more captions of record i; empty for a source of labels.
        captions_clean: the captions without noise.
        fingerprint: identity of the content: dataset, split, selection and supervision.
        keys: N names of the records in the data they were built from, or None.
        parts: lengths of the datasets of a mixture, in their order; (N,) for a single dataset.
    """

    keys: Sequence[str] | None = None

    def __init__(
        self,
        labels: np.ndarray = NO_LABELS,
        *,
        num_classes: int = 0,
        class_names: Sequence[str] | None = None,
        fingerprint: str,
        labels_clean: np.ndarray | None = None,
        captions: Captions = (),
        captions_clean: Captions | None = None,
        parts: tuple[int, ...] = (),
    ):
        """Raise UserError if a label is outside [0, num_classes) or there is not one name per class."""
        self.labels = _check_labels(labels, num_classes)
        self.labels_clean = self.labels if labels_clean is None else labels_clean
        self.num_classes = num_classes
        self.class_names = tuple(str(i) for i in range(num_classes)) if class_names is None else tuple(class_names)
        self.captions = captions
        self.captions_clean = captions if captions_clean is None else captions_clean
        self.fingerprint = fingerprint
        self.parts = parts or (len(self),)
        if len(self.class_names) != num_classes:
            raise UserError(f"{len(self.class_names)} class names for {num_classes} classes", "name every class once")

    def image(self, i: int) -> bytes | np.ndarray:
        """Return the image of record i: an encoded file, or uint8 [H, W, 1 | 3 | 4].

        Raises:
            codec.Undecodable: the record is damaged in storage.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels) or len(self.captions)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return record i: image and id, with label and label_clean, or with captions, a list of str."""
        i = range(len(self))[operator.index(i)]
        record = {"image": self.image(i), "id": i}
        if len(self.labels):
            return record | {"label": int(self.labels[i]), "label_clean": int(self.labels_clean[i])}
        return record | {"captions": self.captions[i]}


class Arrays(Source):
    """Images in memory: uint8 [N, H, W, 1 | 3 | 4], or a sequence of such images or of encoded files."""

    def __init__(self, images: Any, labels: np.ndarray, *, keys: Sequence[str] | None = None, **about: Any):
        super().__init__(labels, **about)
        if len(images) != len(labels):
            raise UserError(f"{len(images)} images but {len(labels)} labels", "give one label per image")
        self.images, self.keys = images, keys

    def image(self, i: int) -> bytes | np.ndarray:
        return self.images[i]


class Subset(Source):
    """The records of `source` at `indices`, in that order. Ids start at 0 again.

    With `classes`, class classes[j] becomes class j. The records must be of these classes.
    """

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray, classes: Sequence[int] | None = None):
        indices = np.asarray(indices, np.int64).reshape(-1)
        kept = list(range(source.num_classes)) if classes is None else list(classes)
        about: dict[str, Any]
        if len(source.labels):
            number = np.full(source.num_classes, -1, np.int32)
            number[kept] = np.arange(len(kept))
            about = {
                "labels": number[source.labels[indices]],
                "labels_clean": number[source.labels_clean[indices]],
                "num_classes": len(kept),
                "class_names": [source.class_names[c] for c in kept],
            }
        else:
            about = {
                "captions": Taken(source.captions, indices),
                "captions_clean": Taken(source.captions_clean, indices),
            }
        super().__init__(**about, fingerprint=digest("subset", source.fingerprint, indices, kept))
        self.source, self.indices, self.classes = source, indices, tuple(kept)

    def image(self, i: int) -> bytes | np.ndarray:
        return self.source.image(int(self.indices[i]))

    @functools.cached_property
    def keys(self) -> Sequence[str] | None:
        keys = self.source.keys
        return None if keys is None else Taken(keys, self.indices)


class Overlay(Source):
    """The images of `source` under other supervision."""

    source: Source

    def image(self, i: int) -> bytes | np.ndarray:
        return self.source.image(i)

    @property
    def keys(self) -> Sequence[str] | None:
        return self.source.keys


class Mixture(Source):
    """Several sources, one after another. Ids run through all of them.

    Raises:
        UserError: some have labels and others captions, or their classes differ.
    """

    def __init__(self, sources: Sequence[Source]):
        first = sources[0]
        about: dict[str, Any]
        if len({(bool(len(s.labels)), tuple(map(clean_name, s.class_names))) for s in sources}) > 1:
            raise UserError(
                "the datasets of data.mixture differ in their classes", "mix datasets with the same classes"
            )
        if len(first.labels):
            about = {
                "labels": np.concatenate([s.labels for s in sources]),
                "labels_clean": np.concatenate([s.labels_clean for s in sources]),
                "num_classes": first.num_classes,
                "class_names": first.class_names,
            }
        else:
            about = {
                "captions": Joined([s.captions for s in sources]),
                "captions_clean": Joined([s.captions_clean for s in sources]),
            }
        fingerprint = digest("mixture", [s.fingerprint for s in sources])
        super().__init__(**about, fingerprint=fingerprint, parts=tuple(map(len, sources)))
        self.sources, self.images = sources, Joined([_Images(s) for s in sources])

    def image(self, i: int) -> bytes | np.ndarray:
        return self.images[i]

    @functools.cached_property
    def keys(self) -> Sequence[str] | None:
        keys = [s.keys for s in self.sources]
        return None if None in keys else Joined([k for k in keys if k is not None])


@dataclasses.dataclass(frozen=True)
class _Images(Sequence):
    """The images of a source as a sequence."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: Any) -> Any:
        return self.source.image(i)


def select_classes(source: Source, classes: Sequence[int]) -> Source:
    """Select the records of some classes, in source order. Classes are renumbered in the given order.

    Raises:
        UserError: a class is unknown or named twice.
    """
    wrong = [c for n, c in enumerate(classes) if not 0 <= c < source.num_classes or c in classes[:n]]
    if wrong:
        raise UserError(
            f"class {wrong[0]} in data.classes={tuple(classes)} is unknown or named twice",
            f"name each class once, from 0 to {source.num_classes - 1}",
        )
    return Subset(source, np.flatnonzero(np.isin(source.labels, classes)), classes)


def in_memory(
    images: Sequence[Any], labels: Any, *, num_classes: int, class_names: Sequence[str] | None = None, name: str
) -> Source:
    """Make a source of images in memory.

    Args:
        images: uint8 [N, H, W, 1 | 3 | 4], or N such images or encoded files (bytes).
        labels: int [N].
        name: name of the dataset, part of the fingerprint.

    Raises:
        UserError: lengths differ, or a label is outside [0, num_classes).
    """
    labels = _check_labels(np.asarray(labels), num_classes)
    fingerprint = digest(name, num_classes, class_names and list(class_names), labels, *images)
    return Arrays(images, labels, num_classes=num_classes, class_names=class_names, fingerprint=fingerprint)


def digest(*parts: Any) -> str:
    """Return the SHA-256 of arrays, bytes and JSON values, each with its kind and length."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            head, body = f"{part.dtype.str}{part.shape}", np.ascontiguousarray(part).data
        elif isinstance(part, bytes):
            head, body = f"bytes {len(part)}", part
        else:
            body = json.dumps(part).encode()
            head = f"json {len(body)}"
        sha.update(head.encode() + b"\n")
        sha.update(body)
    return sha.hexdigest()


def _check_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return labels as int32 [N]. Raise UserError if one is not an integer in [0, num_classes)."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or not labels.size):
        raise UserError(f"labels are {labels.dtype} of shape {labels.shape}", "give one integer per record")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        i = wrong[0]
        raise UserError(
            f"record {i} has label {labels[i]}, outside its {num_classes} classes",
            f"labels are 0 to {num_classes - 1}; a split without labels cannot be used",
        )
    return labels.astype(np.int32)
