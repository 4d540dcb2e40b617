"""Read datasets of images with objects, which `python -m nml_jax.prepare coco_folder` wrote."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from nml_jax.data.class_names import compose
from nml_jax.data.images.codec import Undecodable
from nml_jax.data.sources import prepared, texts
from nml_jax.data.sources.captions import Joined, Slice
from nml_jax.data.sources.objects import Objects, ObjectSource, make_objects
from nml_jax.data.sources.prepared import Span
from nml_jax.data.sources.source import digest
from nml_jax.errors import MissingInput, UserError
from nml_jax.stored import require_fields

BUILD = "python -m nml_jax.prepare coco_folder SRC {path}"
REBUILD = "prepare the dataset again"
FIELDS = {"classes": list[str], "category_ids": dict[str, list[int | None]]}  # of manifest.json, that are read here


class Annotated(ObjectSource):
    """The records of a split. Annotations are read from the index beside them."""

    def __init__(self, data: Any, folder: Path, spans: list[Span], manifest: dict[str, Any], content: str):
        self._data, self._folder, self._spans = data, folder, spans
        index, names = folder / "supervision", dict.fromkeys(name for name, _, _ in spans)
        stored = {name: texts.Texts(index / f"{name}.annotations") for name in names}
        about = {name: _read_sizes(index / f"{name}.sizes.npy", len(stored[name])) for name in names}
        self._annotations = Joined([Slice(stored[name], start, stop) for name, start, stop in spans])
        table = np.concatenate([about[name][start:stop] for name, start, stop in spans])
        self._ids = {name: manifest["category_ids"][name] for name in names}
        super().__init__(
            table[:, :2],
            class_names=manifest["classes"],
            category_ids=[-1 if i is None else i for i in next(iter(self._ids.values()))],
            image_ids=_ImageIds(self._annotations),
            fingerprint=digest("annotated", content, spans),
        )
        self.counts = table[:, 2:]

    def check_ids(self) -> None:
        """Raise UserError if ids of images or classes clash in a sum of parts, so that results could not use them."""
        if len(self._spans) == 1:
            return
        splits = f"the splits {' and '.join(self._ids)} of {self._folder}"
        if len({*map(tuple, self._ids.values())}) > 1:
            cure = "name one of them, or prepare them from files with the same categories"
            raise UserError(f"{splits} have other category ids, so results would be ambiguous", cure)
        for i, n in Counter(self.image_ids).items():
            if n > 1:
                cure = "name one of them, or prepare them from files whose images have ids of their own"
                raise UserError(f"{splits}: {n} images have the id {i!r}, so results would be ambiguous", cure)

    def image(self, i: int) -> bytes:
        try:
            return prepared.read_field(self._data, i, "image", "bytes_list")
        except Undecodable as e:
            raise Undecodable(f"{e} (record {i} in {self._folder})") from e

    def objects(self, i: int) -> Objects:
        found = json.loads(self._annotations[i])["annotations"]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in found)]
        columns = ([one[key] for one in found] for key in ("label", "iscrowd", "area", "segmentation"))
        return make_objects(boxes, *columns)

    @property
    def keys(self) -> Any:
        """Names of the image files."""
        parts = []
        for name, start, stop in self._spans:
            path = self._folder / "supervision" / f"{name}.keys.json"
            parts.append(json.loads(path.read_text("utf-8"))[start:stop])
        return Joined(parts)


class _ImageIds(Sequence):
    """The ids of the images in their json, read on access."""

    def __init__(self, annotations: Any):
        self._annotations = annotations

    def __getitem__(self, i: Any) -> Any:
        return json.loads(self._annotations[i])["id"]

    def __len__(self) -> int:
        return len(self._annotations)


def load(path: str, split: str) -> Annotated:
    """Open a split of a prepared dataset; also a part, "train[:80%]", or a sum.

    Raises:
        UserError: there is no such dataset or split, or a file of it is damaged.
    """
    folder = Path(path).expanduser()
    if not (folder / "dataset_info.json").is_file():
        cure = f"build it: {BUILD.format(path=path or 'OUT')}"
        raise MissingInput(f"detect.data: {path!r} holds no prepared dataset", cure)
    builder = prepared.open_directory(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if manifest["builder"] != "coco_folder":
            raise UserError(f"{folder} has no objects: it is from {manifest['builder']}", BUILD.format(path="OUT"))
        require_fields({name: manifest[name] for name in FIELDS}, FIELDS)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder / 'manifest.json'} is missing or damaged: {e}", REBUILD) from e
    split = compose(split)
    spans = prepared.find_spans(builder.info, split, folder)
    if not spans:
        raise UserError(f"split {split!r} of {folder} has no records", "choose a larger part of it")
    data = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    return Annotated(data, folder, spans, manifest, digest((folder / "manifest.json").read_bytes()))


def _read_sizes(path: Path, n: int) -> np.ndarray:
    """Read height, width and numbers of objects, and of those with masks, of every record, int32 [N, 4]."""
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise UserError(f"{path} is missing or damaged: {e}", REBUILD) from e
    if table.shape != (n, 4):
        raise UserError(f"{path} is not of the {n} records of its split", REBUILD)
    return table
