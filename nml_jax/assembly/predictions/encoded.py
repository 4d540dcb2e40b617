"""Run an encoder over the images of a folder, or the texts of a table, for predict.py."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from nml_jax import runtime
from nml_jax.assembly.encode import compile_encoder, encode_split
from nml_jax.assembly.encoder import is_remote
from nml_jax.assembly.fingerprint import compare_encoders, describe_encoder
from nml_jax.assembly.open_encoder import Opened, open_encoder
from nml_jax.assembly.predictions.user_files import Asked, Inputs, open_images, open_texts
from nml_jax.errors import UserError
from nml_jax.models.overview import count_features
from nml_jax.tasks.task import Test

LOGITS = "logits"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The features of images or texts, with what predict.py asks of features from files.

    Attributes:
        dim: D, the width of the layer.
        labels: names of classes, str [N]; empty if they are not known.
    """

    opened: Opened
    inputs: Inputs
    layer: str
    mesh: Mesh
    dim: int
    class_names: tuple[str, ...] = ()
    views: int = 1

    @property
    def path(self) -> Path:
        return self.inputs.path

    @property
    def files(self) -> list[Path]:
        return self.inputs.files

    @property
    def labels(self) -> np.ndarray:
        return self.inputs.labels

    def blocks(self, _size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index of the first row, features float32 [n, 1, D]) in order.

        Raises:
            UserError: an image is damaged, or a text has no tokens; the message names it. A service makes vectors of
                another width than before.
        """
        config = self.opened.config.copy_and_resolve_references()
        with config.unlocked():
            config.extract.layers, config.extract.views = (self.layer,), 1
            config.extract.batch = choose_batch(len(self.inputs.source), config.extract.batch, self.mesh)
        encode = compile_encoder(self.opened.encoder.model, (self.layer,), self.mesh)
        test, done = Test("files", "id", self.inputs.source), 0
        try:
            for rows in encode_split(config, self.opened.encoder, encode, self.mesh, test, None):
                if (width := rows[self.layer].shape[1]) != self.dim:
                    raise UserError(
                        f"the encoder makes {width} numbers of a row of {self.path}, and the head takes {self.dim}",
                        "find out what the service has changed, and tune a head again",
                    )
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


def choose_batch(rows: int, usual: int, mesh: Mesh) -> int:
    """Return the size of a batch: the usual one, or as many rows as a few inputs need on all devices."""
    return usual if rows >= usual else -(-rows // mesh.size) * mesh.size


def open_own(encoder: Path) -> tuple[OwnClassifier, Opened]:
    """Open an encoder together with its own head.

    Raises:
        UserError: see `open_encoder`; or it has no head.
    """
    opened = open_encoder(encoder, runtime.make_mesh())
    if not opened.num_classes:
        raise UserError(f"--encoder={encoder} has no head of its own", "give a tuned head, a file in heads/ of a run")
    return OwnClassifier(opened.class_names or tuple(range(opened.num_classes))), opened


def open_encoded(
    head: Any, path: Path, encoder: Path, opened: Opened | None = None, asked: Asked | None = None
) -> tuple[Encoded, str]:
    """Open a folder of images, or a table of texts, as the features that a head takes.

    Args:
        head: a tuned head, or `OwnClassifier`.
        opened: the encoder, if it is open already.
        asked: columns of a table of texts.

    Returns:
        The features, and a line if it is not known whether the head was tuned on this encoder's; "" if it was.

    Raises:
        UserError: there is nothing to encode or no encoder, the head was tuned on features of another one, or columns
            of images are asked for.
    """
    asked = asked or Asked()
    opened = opened or open_encoder(encoder, runtime.make_mesh())
    reads_texts = "image" not in opened.encoder.model.spec
    if not reads_texts and (given := [name for name, value in asked._asdict().items() if value]):
        raise UserError(f"--{given[0]} is for tables, and --encoder={encoder} reads images", "leave it out")
    told = head.about.get("encoder")
    own = isinstance(head, OwnClassifier)
    unknown = "" if told or own else (
        "the head does not say which encoder it was tuned on, as heads of features from files or of earlier versions: "
        f"whether {encoder} is that one was not checked"
    )  # fmt: skip
    if told:
        compare_encoders(told, describe_encoder(opened.config, opened.encoder), encoder)
    layer = LOGITS if own else str((told or {}).get("layer", "features"))
    dim = head.dim if is_remote(opened.config) else find_width(opened, layer, encoder)  # a service's is its own
    if reads_texts:
        inputs = open_texts(path, asked, (told or {}).get("texts"))
    else:
        inputs = open_images(path, head.classes)
    return Encoded(opened, inputs, layer, runtime.make_mesh(), dim), unknown


def find_width(opened: Opened, layer: str, encoder: Path) -> int:
    """Return the width of a layer. Raise UserError if the encoder has no such layer."""
    try:
        return count_features(opened.encoder.model, layer)
    except KeyError as e:
        raise UserError(
            f"--encoder={encoder} has no layer {layer!r}, on which the head was tuned", "give the head's own encoder"
        ) from e
