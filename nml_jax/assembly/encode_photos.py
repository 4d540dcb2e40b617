"""Run an encoder over the images of a folder, for predict.py."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from nml_jax import runtime
from nml_jax.assembly.encode import compile_encoder, encode_split
from nml_jax.assembly.fingerprint import compare_encoders, describe_encoder
from nml_jax.assembly.open_encoder import Opened, open_encoder
from nml_jax.data.class_names import NameIndex
from nml_jax.data.sources.photos import Photos, open_photos
from nml_jax.errors import UserError
from nml_jax.models.overview import count_features
from nml_jax.tasks.classification import Test

LOGITS = "logits"


@dataclasses.dataclass(frozen=True)
class EncodedPhotos:
    """The features of a folder's images, with what predict.py asks of features from files.

    Attributes:
        path: the folder.
        dim: D, the width of the layer.
        labels: names of the folders in which the images lie, str [N]; empty if the head knows none of them.
    """

    opened: Opened
    photos: Photos
    layer: str
    mesh: Mesh
    dim: int
    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    views: int = 1

    @property
    def path(self) -> Path:
        return self.photos.folder

    @property
    def files(self) -> list[Path]:
        return self.photos.files

    def blocks(self, _size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index of the first image, features float32 [n, 1, D]) in order.

        Raises:
            UserError: an image is damaged; the message names it.
        """
        config = self.opened.config.copy_and_resolve_references()
        with config.unlocked():
            config.extract.layers, config.extract.views = (self.layer,), 1
            config.extract.batch = choose_batch(len(self.photos), config.extract.batch, self.mesh)
        encode = compile_encoder(self.opened.encoder.model, (self.layer,), self.mesh)
        test, done = Test("photos", "id", self.photos), 0
        try:
            for rows in encode_split(config, self.opened.encoder, encode, self.mesh, test, None):
                yield done, rows[self.layer][:, None]
                done += len(rows[self.layer])
        except UserError as e:
            if "cannot be decoded" not in e.cause:
                raise
            raise UserError(f"{self.path}: {e.cause}", "repair this file, or take it out of the folder") from e


@dataclasses.dataclass(frozen=True)
class OwnClassifier:
    """The encoder's own head: its logits are the features. Has what predict.py asks of a tuned head."""

    classes: tuple[Any, ...]
    columns: tuple[str, ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    predicts_numbers = False

    @property
    def dim(self) -> int:
        return len(self.classes)

    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return features, features

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes, float64 [M, K], for logits [M, K]."""
        odds = np.exp(np.float64(logits) - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)


def choose_batch(images: int, usual: int, mesh: Mesh) -> int:
    """Return the size of a batch: the usual one, or as many rows as a few images need on all devices."""
    return usual if images >= usual else -(-images // mesh.size) * mesh.size


def open_own(encoder: Path) -> tuple[OwnClassifier, Opened]:
    """Open an encoder together with its own head.

    Raises:
        UserError: see `open_encoder`; or it has no head.
    """
    opened = open_encoder(encoder, runtime.make_mesh())
    if not opened.num_classes:
        raise UserError(f"--encoder={encoder} has no head of its own", "give a tuned head, a file in heads/ of a run")
    return OwnClassifier(opened.class_names or tuple(range(opened.num_classes))), opened


def open_encoded(head: Any, folder: Path, encoder: Path, opened: Opened | None = None) -> tuple[EncodedPhotos, str]:
    """Open a folder of images as the features that a head takes.

    Args:
        head: a tuned head, or `OwnClassifier`.
        opened: the encoder, if it is open already.

    Returns:
        The features, and a line if it is not known whether the head was tuned on this encoder's; "" if it was.

    Raises:
        UserError: there is no image or no encoder, or the head was tuned on features of another one.
    """
    photos = open_photos(folder)
    opened = opened or open_encoder(encoder, runtime.make_mesh())
    if "image" not in opened.encoder.model.spec:
        raise UserError(
            f"--encoder={encoder} reads texts, and predictions are of images", "give a file of features in their place"
        )
    told = head.about.get("encoder")
    own = isinstance(head, OwnClassifier)
    unknown = "" if told or own else (
        "the head does not say which encoder it was tuned on, as heads of features from files or of earlier versions: "
        f"whether {encoder} is that one was not checked"
    )  # fmt: skip
    if told:
        compare_encoders(told, describe_encoder(opened.config, opened.encoder), encoder)
    layer = LOGITS if own else str((told or {}).get("layer", "features"))
    dim = find_width(opened, layer, encoder)
    labels = find_labels(photos.paths, head.classes)
    return EncodedPhotos(opened, photos, layer, runtime.make_mesh(), dim, labels), unknown


def find_width(opened: Opened, layer: str, encoder: Path) -> int:
    """Return the width of a layer. Raise UserError if the encoder has no such layer."""
    try:
        return count_features(opened.encoder.model, layer)
    except KeyError as e:
        raise UserError(
            f"--encoder={encoder} has no layer {layer!r}, on which the head was tuned", "give the head's own encoder"
        ) from e


def find_labels(paths: Sequence[str], classes: Sequence[Any]) -> np.ndarray:
    """Return the names of the images' folders, str [N], if the head knows one of them; else an empty array."""
    names = [path.split("/")[-2] if "/" in path else "" for path in paths]
    index = NameIndex(classes)
    known = all(names) and any(index.find(name) is not None for name in dict.fromkeys(names))
    return np.array(names if known else [], str)
