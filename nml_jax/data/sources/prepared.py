"""Read prepared TFDS directories of ArrayRecord files, built by us or from TFDS's catalogue, without TensorFlow."""

import difflib
import functools
import json
import re
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from nml_jax import console
from nml_jax.data import npy
from nml_jax.data.class_names import compose
from nml_jax.data.images.codec import Undecodable
from nml_jax.data.sources import texts
from nml_jax.data.sources.captions import Captions, Joined, Slice, Stored
from nml_jax.data.sources.parts import draw_parts
from nml_jax.data.sources.source import Source, Subset, digest
from nml_jax.errors import MissingInput, UserError
from nml_jax.runs.files import replace_file

Span = tuple[str, int, int]  # split, first record, last record + 1

BUILD = "python -m nml_jax.prepare image_folder SRC {path}"
BUILD_PAIRS = "python -m nml_jax.prepare image_text SRC {path}"
REBUILD = "build the dataset again with python -m nml_jax.prepare"
PREPARE = "pip install nml_jax[prepare] && tfds build {name} --file_format=array_record{where}"


class Records(Source):
    """Encoded images of an ArrayRecord data source that yields serialised examples.

    We parse these ourselves, because TFDS takes several times as long.
    """

    def __init__(self, data: Any, feature: str, folder: Path, spans: list[Span], **about: Any):
        super().__init__(**about)
        self._data, self._feature, self._folder, self._spans = data, feature, folder, spans

    def image(self, i: int) -> bytes:
        try:
            return read_field(self._data, i, self._feature, "bytes_list")
        except Undecodable as e:
            raise Undecodable(f"{e} (record {i} in {self._folder})") from e

    @functools.cached_property
    def keys(self) -> Sequence[str] | None:
        """Keys as our builders wrote them: as JSON, or as texts on disk if there may be millions."""
        parts = []
        for name, start, stop in self._spans:
            path = self._folder / "supervision" / f"{name}.keys"
            if path.with_suffix(".keys.json").is_file():
                parts.append(json.loads(path.with_suffix(".keys.json").read_text("utf-8"))[start:stop])
            elif path.is_file():
                parts.append(Slice(texts.Texts(path), start, stop))
            else:
                return None
        return Joined(parts)


def load(kind: str, path: str, split: str, *, name: str, captions: bool) -> Source:
    """Open a split of a prepared dataset; see `sources.load`."""
    split = compose(split)
    builder = _open_prepared(path, captions) if kind == "directory" else _open_catalogue(name, path)
    folder, info = Path(builder.data_dir), builder.info
    _allow_many_files()
    content = _identify(folder)
    image, label = ("image", "") if captions else _find_features(info, folder)
    spans = find_spans(info, split, folder)
    if not spans:
        raise _make_empty(split, folder)
    records = _open_records(builder, split)
    if captions:
        about = {"captions": _open_captions(folder, spans, info), "fingerprint": digest("tfds", content, spans)}
        return Records(records, image, folder, spans, **about)
    labels = {name: _read_labels(builder, name, label, content) for name in {name for name, _, _ in spans}}
    whole, rows = draw_parts(split, labels) or (split, None)
    if rows is not None:
        if not len(rows):
            raise _make_empty(split, folder)
        spans, records = find_spans(info, whole, folder), _open_records(builder, whole)
    names = info.features[label].names
    source = Records(
        records,
        image,
        folder,
        spans,
        labels=np.concatenate([labels[name][a:b] for name, a, b in spans]),
        num_classes=info.features[label].num_classes,
        class_names=names if names else None,
        fingerprint=digest("tfds", content, spans),
    )
    return source if rows is None else Subset(source, rows)


def _make_empty(split: str, folder: Path) -> UserError:
    return UserError(f"split {split!r} of {folder} has no records", "choose a larger part of it")


def _open_records(builder: Any, split: str) -> Any:
    """Open the records of a split as bytes. Raise UserError if their files cannot be read at random."""
    try:
        return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError as e:
        raise UserError(
            f"{builder.data_dir} holds {builder.info.file_format.value} files, which cannot be read at random",
            PREPARE.format(name=builder.info.name, where=" --data_dir=ANOTHER_DIR"),
        ) from e


def _open_prepared(path: str, captions: bool) -> Any:
    """Open a directory that one of our builders prepared."""
    folder = Path(path).expanduser()
    if not (folder / "dataset_info.json").is_file():
        build = (BUILD_PAIRS if captions else BUILD).format(path=path or "OUT")
        raise MissingInput(f"data.path={path!r} holds no prepared dataset", f"build it: {build}")
    return open_directory(folder)


def open_directory(folder: Path) -> Any:
    """Open a prepared dataset. Raise UserError if its description is damaged."""
    try:
        return tfds.builder_from_directory(folder)
    except Exception as e:  # TFDS and protobuf raise many kinds for a damaged description
        raise UserError(f"{folder} is not a readable dataset: {str(e).splitlines()[0]}", REBUILD) from e


def _open_catalogue(name: str, path: str) -> Any:
    """Open a prepared dataset of TFDS's catalogue."""
    where = f" --data_dir={path}" if path else ""
    cure = f"prepare it once: {PREPARE.format(name=name, where=where)}"
    try:
        builder = tfds.builder(name, data_dir=path or None)
    except tfds.core.DatasetNotFoundError as e:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name.split("/")[0], known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see https://www.tensorflow.org/datasets/catalog"
        raise UserError(f"TFDS has no dataset {name!r}", hint) from e
    except ImportError as e:
        raise MissingInput(f"TFDS needs TensorFlow to describe {name!r} before it is prepared", cure) from e
    except ValueError as e:  # TFDS cannot parse the name or configuration
        raise UserError(f"TFDS has no dataset {name!r}: {str(e).splitlines()[0]}", "name it as in cifar10") from e
    if not builder.is_prepared():
        raise MissingInput(f"dataset {name!r} is not prepared in {builder.data_dir}", cure)
    return builder


def _allow_many_files() -> None:
    """Raise the limit of open files. ArrayRecord keeps every shard open, often more than the default limit of 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _identify(folder: Path) -> str:
    """Return the identity of the records: a digest of our manifest, or else of the description and file sizes."""
    if (folder / "manifest.json").is_file():
        return digest((folder / "manifest.json").read_bytes())
    described = [(folder / name).read_bytes() for name in ("dataset_info.json", "features.json")]
    return digest(*described, sorted((p.name, p.stat().st_size) for p in folder.glob("*.array_record*")))


def _find_features(info: Any, folder: Path) -> tuple[str, str]:
    """Return the names of the features that hold the image and its class."""
    pair = info.supervised_keys
    image, label = pair if pair and len(pair) == 2 and all(isinstance(k, str) for k in pair) else ("image", "label")
    kinds = {image: tfds.features.Image, label: tfds.features.ClassLabel}
    if not all(name in info.features and isinstance(info.features[name], kind) for name, kind in kinds.items()):
        raise UserError(
            f"{folder} does not pair an image with a class label: it has {', '.join(info.features)}",
            "choose a dataset for image classification",
        )
    return image, label


def find_spans(info: Any, split: str, folder: Path) -> list[Span]:
    """Locate the records of `split`, which may be a part or sum of splits, in the stored splits."""
    where = {}
    for name, stored in info.splits.items():
        start = 0
        for file in stored.file_instructions:
            where[file.filename] = (name, start)
            start += file.take
    try:
        files = info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError) as e:
        raise UserError(
            f"{folder} has no split {split!r}",
            f'its splits are {", ".join(info.splits)}; parts are written as in "{next(iter(info.splits))}[:50%]"',
        ) from e
    starts = [(where[f.filename][0], where[f.filename][1] + f.skip, f.take) for f in files]
    return [(name, start, start + take) for name, start, take in starts]


def _open_captions(folder: Path, spans: list[Span], info: Any) -> Captions:
    """Open the captions of these records, which the builder wrote beside them."""
    if not (folder / "supervision" / f"{spans[0][0]}.captions").is_file():
        raise UserError(f"{folder} has no captions", f"build it from image-text data: {BUILD_PAIRS.format(path='OUT')}")
    stored = {name: texts.Texts(folder / "supervision" / f"{name}.captions") for name, _, _ in spans}
    for name, of_split in stored.items():
        if len(of_split) != info.splits[name].num_examples:
            n = info.splits[name].num_examples
            raise UserError(
                f"{of_split.path} has captions of {len(of_split)} records, but its split has {n}",
                "prepare the dataset again",
            )
    return Joined([Slice(Stored(stored[name]), start, stop) for name, start, stop in spans])


def _read_labels(builder: Any, split: str, label: str, content: str) -> np.ndarray:
    """Read all labels of a stored split from its index. Without an index, read them from the records and write one."""
    folder = Path(builder.data_dir) / "supervision"
    n = builder.info.splits[split].num_examples
    ours = (folder.parent / "manifest.json").is_file()
    path = folder / (f"{split}.npy" if ours else f"{split}.{content[:16]}.npy")
    try:
        labels = npy.load(path)
    except (OSError, ValueError, EOFError):
        labels = np.zeros(0)
    if labels.shape == (n,):
        return labels
    if ours:
        raise UserError(f"{path} is missing or damaged", REBUILD)
    data = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    labels = np.empty(n, np.int64)
    for i in tqdm(range(n), desc=f"labels of {builder.info.name}/{split}, once", unit=" records", mininterval=1.0):
        try:
            labels[i] = read_field(data, i, label, "int64_list")
        except Undecodable as e:
            cure = "prepare the dataset again: every record must have a label"
            raise UserError(f"record {i} of split {split} in {builder.data_dir} has no label: {e}", cure) from e
    _write_index(path, labels)
    return labels


def _write_index(path: Path, labels: np.ndarray) -> None:
    """Write the index of labels. If the disk is read-only or full, warn: the next run then builds it again."""
    try:
        path.parent.mkdir(exist_ok=True)
        with replace_file(path) as part, part.open("wb") as file:
            np.save(file, labels)
    except OSError as e:
        console.notice(f"cannot keep the labels for the next run: {path}: {e.strerror}")


def read_field(data: Any, i: int, name: str, kind: str) -> Any:
    """Read the first value of field `name` of record i. `kind` is bytes_list or int64_list.

    Raises:
        Undecodable: the record is damaged or lacks the field.
        UserError: the operating system cannot read it. The cause may be temporary or of this machine alone, so the
            record itself is not to blame.
    """
    try:
        record = data[i]
    except RuntimeError as e:  # ArrayRecord checks a hash of all it reads
        why = str(e).split(";")[0]
        if not re.match(r"\w+\(\) failed", why):
            raise Undecodable(f"damaged in storage: {why}") from e
        files = "open files" in why
        cure = "raise `ulimit -n`: every shard is an open file" if files else "repair the storage, then start again"
        raise UserError(f"record {i} cannot be read: {e}", cure) from e
    except IndexError:
        record = b""
    if not record:  # ArrayRecord returns this beyond the end of a file that was cut while open
        raise Undecodable("missing in storage: its shard was cut")
    try:
        example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
        return getattr(example.features.feature[name], kind).value[0]
    except DecodeError as e:
        raise Undecodable(f"no tf.train.Example: {e}") from e
    except IndexError as e:
        raise Undecodable(f"no field {name!r} of kind {kind}") from e
