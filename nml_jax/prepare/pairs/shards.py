"""Write shards of image-text pairs. A shard's folder appears once it is complete."""

import dataclasses
import hashlib
import json
import math
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from nml_jax.data.class_names import clean_name, is_empty, simplify_group
from nml_jax.data.sources import texts
from nml_jax.prepare import image_files, records
from nml_jax.prepare.listing import find_training_split
from nml_jax.prepare.pairs.read import read, read_fields
from nml_jax.prepare.pairs.types import Columns, Pair, Refusal, Shard, Tally
from nml_jax.runs.files import write_json

SCHEMA = 3
MAX_CAPTION = 5000  # characters; longer texts are pages, of which a text tower would read the first lines

# "what" in refused.jsonl -> the manifest's key with the counts.
KINDS = {"pair": "refused", "caption": "refused_captions", "file": "refused_files"}
NO_IMAGE = "its class has no usable image in the training split"
DOMAIN = b"nml_jax image_text parts"


@dataclasses.dataclass(frozen=True)
class BuildJob:
    """The settings of a build. A shard depends only on these and on its piece of the sources.

    Attributes:
        work: folder of the finished shards and label files.
        columns: columns or fields to read.
        label, group: names of fields, or "".
        parts: (name, share) of the parts of every split.
        classes: names of the classes if there is a label.
        spellings: (label as it is written, name of its class), also of classes that were dropped.
        resize: largest shorter side of an image in pixels, or None.
    """

    work: str
    columns: Columns
    label: str = ""
    group: str = ""
    parts: tuple[tuple[str, float], ...] = ()
    classes: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    resize: int | None = None


def shard_folder(job: BuildJob, number: int) -> Path:
    """Return the folder of a finished shard."""
    return Path(job.work) / f"{number:06}"


def shard_labels(job: BuildJob, number: int) -> Path:
    """Return the file with the sorted distinct labels of a shard."""
    return Path(job.work) / f"{number:06}.labels.json"


def collect_labels(job: BuildJob, item: tuple[int, Shard]) -> None:
    """Write the labels of a shard, without reading its images."""
    number, shard = item
    found = (_read_field(fields, job.label) for fields in read_fields(shard, job.columns))
    write_json(shard_labels(job, number), sorted({value for value, reason in found if not reason}))


def build(job: BuildJob, item: tuple[int, Shard]) -> None:
    """Write a shard: records, texts and labels of each split, about.json, and refused.jsonl.

    Raises:
        OSError: the files cannot be written.
    """
    from PIL import Image

    number, shard = item
    if shard_folder(job, number).is_dir():
        return  # a cluster may run an item twice
    folder = Path(tempfile.mkdtemp(".tmp", f"{number:06}.", job.work))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we refuse such images ourselves
        _Writer(job, shard, folder).run()
    folder.rename(shard_folder(job, number))


class _Split:
    """The records, texts and labels of one split in a shard."""

    def __init__(self, path: Path):
        from array_record.python.array_record_module import ArrayRecordWriter

        self.records = ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # image files are compressed
        self.keys: list[str] = []
        self.captions: list[str] = []
        self.labels: list[int] = []
        self.bytes = self.caption_count = self.resized = 0
        self.sha = hashlib.sha256()


class _Writer:
    """A writer that checks the pairs of a shard and writes them one by one."""

    def __init__(self, job: BuildJob, shard: Shard, folder: Path):
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        self.job, self.shard, self.folder = job, shard, folder
        self.features = records.describe(folder, "image_text", list(job.classes) if job.label else None).features
        self.serializer = ExampleSerializer(self.features.get_serialized_info())
        self.class_ids = {name: i for i, name in enumerate(job.classes)}
        self.class_of = dict(job.spellings)
        self.seen: Counter[str] = Counter()
        self.tallies: dict[str, Counter[str]] = {}
        self.groups: set[str] = set()
        self.splits: dict[str, _Split] = {}
        self.reasons: dict[str, Counter[str]] = {what: Counter() for what in KINDS}

    def run(self) -> None:
        with (self.folder / "refused.jsonl").open("w", encoding="utf-8") as self.refused:
            for pair in read(self.shard, self.job.columns):
                if isinstance(pair, Tally):
                    self.tallies.setdefault(pair.what, Counter()).update(pair.counts)
                elif isinstance(pair, Refusal):
                    self.seen["pairs"] += bool(pair.key)
                    self.refuse(*pair, "pair" if pair.key else "file")
                else:
                    self.seen["pairs"] += 1
                    self.seen["captions"] += len(pair.captions)
                    self.add(pair)
        about = {}
        for name, split in self.splits.items():
            with records.raise_full_disk():
                split.records.close()
            texts.write(self.folder / f"{name}.keys", split.keys)
            texts.write(self.folder / f"{name}.captions", split.captions)
            if self.job.label:
                np.save(self.folder / f"{name}.npy", np.array(split.labels, np.int32))
            about[name] = {"records": len(split.keys), "captions": split.caption_count, "bytes": split.bytes}
            about[name] |= {"resized": split.resized, "sha256": split.sha.hexdigest()}
        found = {"seen": self.seen, "tallies": self.tallies, "groups": sorted(self.groups)}
        write_json(self.folder / "about.json", {"splits": about, "refused": self.reasons, **found})

    def refuse(self, key: str, reason: str, what: str = "pair") -> None:
        self.reasons[what][cut_reason(reason)] += 1
        self.refused.write(format_refusal(self.shard.name, key, what, reason))

    def add(self, pair: Pair) -> None:
        """Write a pair, or the first reason to refuse it. The pair is kept if at least one caption is good."""
        checked = [check_caption(value) for value in pair.captions]
        captions = [caption for caption, reason in checked if not reason]
        bad = [reason for _, reason in checked if reason]
        fields, reason, image, resized = {}, "" if captions else (bad or ["no caption"])[0], b"", False
        for name in self.job.columns.fields:
            if not reason:
                fields[name], reason = _read_field(pair.fields, name)
        if not reason:
            image, reason = pair.image()
        if not reason:
            image, resized, reason = image_files.check_image(image, self.job.resize)
        label = self.class_of[fields[self.job.label]] if self.job.label and not reason else None
        if label is not None and label not in self.class_ids:
            reason = f"{NO_IMAGE}: {label}"
        if reason:
            self.seen["captions_of_refused"] += len(checked)
            self.refuse(pair.key, reason)
            return
        for reason in bad:
            self.refuse(pair.key, reason, "caption")
        split = self.shard.split
        if self.job.group:
            self.groups.add(fields[self.job.group])
            split += "_" + choose_part(simplify_group(fields[self.job.group]), self.job.parts)
        self.write(split, f"{self.shard.name}/{pair.key}", image, captions, label)
        self.splits[split].resized += resized

    def write(self, split: str, key: str, image: bytes, captions: list[str], label: str | None) -> None:
        if split not in self.splits:
            self.splits[split] = _Split(self.folder / f"{split}.array_record")
        to, example = self.splits[split], {"image": image, "key": key}
        if label is not None:
            example["label"] = self.class_ids[label]
            to.labels.append(self.class_ids[label])
        proto = self.serializer.get_tf_example(self.features.encode_example(example))
        record = proto.SerializeToString(deterministic=True)  # else the order of features differs between processes
        with records.raise_full_disk():
            to.records.write(record)
        to.bytes += len(record)
        to.keys.append(key)
        to.captions.append(texts.join(captions))
        to.caption_count += len(captions)
        to.sha.update(json.dumps([key, label, captions, len(image)]).encode())
        to.sha.update(image)


def cut_reason(reason: str) -> str:
    """Cut the details off a reason, so that equal reasons can be counted."""
    return reason.split(":")[0]


def format_refusal(file: str, key: str, what: str, reason: str) -> str:
    """Return a line of refused.jsonl."""
    reason = reason.encode("utf-8", "backslashreplace").decode()
    return json.dumps({"file": file, "key": key, "what": what, "reason": reason}, ensure_ascii=False) + "\n"


def check_caption(value: Any) -> tuple[str, str]:
    """Return the caption without surrounding white space and "", or "" and the reason to refuse it."""
    try:
        text = value.decode("utf-8-sig") if isinstance(value, bytes) else value
        if not isinstance(text, str):
            return "", "caption is not text"
        text.encode("utf-8")
    except UnicodeError:
        return "", "caption is not UTF-8"
    from nml_jax.data.text.tokenizer import clean  # here, because it takes half a second to import

    text = text.strip()
    if is_empty(clean(text)):
        return "", "empty caption"
    if len(text) > MAX_CAPTION:
        return "", f"caption longer than {MAX_CAPTION} characters"
    if texts.SEPARATOR in text:
        return "", "caption with a NUL character"
    return text, ""


def choose_part(value: str, parts: tuple[tuple[str, float], ...]) -> str:
    """Choose the part of all records with this value: a hash in [0, 1) is compared with the cumulative shares."""
    position = int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8, key=DOMAIN).digest(), "big") / 2.0**64
    for name, share in parts:
        position -= share
        if position < 0:
            return name
    return parts[-1][0]


def _read_field(fields: dict[str, Any], name: str) -> tuple[str, str]:
    """Return a field as text and "", or "" and the reason why there is none."""
    value = fields.get(name)
    if isinstance(value, float):  # integers in a column with missing values
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        text.encode("utf-8")
    except UnicodeError:
        return "", f"field {name!r} is not UTF-8"
    if value is None or is_empty(text):
        return "", f"no field {name!r}"
    if not isinstance(value, bytes | str | int | float):
        return "", f"field {name!r} is not a single value"
    return clean_name(text), ""


def find_phantoms(job: BuildJob, n: int, splits: list[str]) -> list[str]:
    """Return the classes without a record in the training split, from the finished shards.

    Return none if it is not clear which split that is, or if it has no record at all.
    """
    train = find_training_split(splits)
    parts = [path for i in range(n) if (path := shard_folder(job, i) / f"{train}.npy").exists()]
    found = set(np.concatenate([np.load(path, allow_pickle=False) for path in parts]).tolist()) if parts else set()
    return [name for i, name in enumerate(job.classes) if found and i not in found]
