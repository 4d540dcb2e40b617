"""Write images as records of a prepared TFDS/ArrayRecord dataset, with its description and manifest."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nml_jax import console
from nml_jax.data.class_names import list_names
from nml_jax.errors import UserError
from nml_jax.prepare.image_files import check_image, describe_resized
from nml_jax.prepare.listing import Item, Listing, make_no_image_error
from nml_jax.prepare.out_folder import check_out, make_partial, own_out
from nml_jax.runs.files import write_json

RECORDS_PER_SHARD = 8192  # half a gigabyte of photos of 60 kB
CHUNK = 64  # files in memory at a time

Example = dict[str, Any]


def build(name: str, listing: Listing, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build the dataset `out` from a listing. `out` appears once it is complete.

    Args:
        name: name of the builder for the manifest and TFDS.
        out: a path that does not exist, or an empty folder (`check_out`).
        workers: number of threads that read and check files; None: one per core.

    Returns:
        The manifest.

    Raises:
        UserError: a split has no usable image, `workers` is below 1, or `out` cannot be written.
    """
    check_workers(workers)
    with own_out(out), make_partial(out) as partial:
        check_out(listing.src, out)  # another build may have ended meanwhile
        (partial / "supervision").mkdir()
        splits = _write_splits(partial, name, listing, workers or os.cpu_count() or 1)
        manifest = {"builder": name, "schema": 1, "classes": listing.classes, "splits": splits}
        if listing.resize:
            manifest["resized"] = describe_resized(listing.resize, {split: listing.resized[split] for split in splits})
        manifest |= {"missing_classes": list_missing(splits), "dropped_classes": listing.dropped}
        manifest |= {"refused": listing.refused, "files_left_out": listing.left_out}
        if listing.seen is not None:
            manifest["seen"] = listing.seen
        manifest |= listing.complete_manifest(partial)
        write_json(partial / "manifest.json", manifest)
        partial.rename(out.resolve())
    return manifest


def list_missing(splits: Mapping[str, Any]) -> dict[str, list[str]]:
    """List the classes without an image in each split, from the entries of the manifest. Leave out complete splits."""
    missing = {split: [c for c, n in entry.get("per_class", {}).items() if not n] for split, entry in splits.items()}
    return {split: names for split, names in missing.items() if names}


def print_classes(manifest: Mapping[str, Any]) -> None:
    """Print the classes that were dropped, and those that a split lacks."""
    if dropped := manifest.get("dropped_classes"):
        console.show(f"dropped, without a usable image in the training split: {list_names(dropped)}")
    for split, names in manifest.get("missing_classes", {}).items():
        console.show(f"{split}: no image of {list_names(names)}")


def check_workers(workers: int | None) -> None:
    """Raise UserError if files cannot be read by so many threads or processes."""
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}", "leave it out for one per core")


def check_split(name: str, cure: str) -> None:
    """Raise UserError if TFDS does not accept the name of a split."""
    if not re.fullmatch(r"[\w-]*\w[\w-]*", name) or name == "all":
        raise UserError(f"{name!r} cannot name a split", f"{cure}: letters, digits, _ and -, not 'all'")


def check_class(name: str, cure: str) -> None:
    """Raise UserError if TFDS cannot store the name of a class. It writes them to a file, one per line."""
    if not name or name != name.strip() or not name.isprintable():
        raise UserError(f"{name!r} cannot name a class", f"{cure}: printable, without spaces around it")


def _write_splits(folder: Path, name: str, listing: Listing, workers: int) -> dict[str, Any]:
    """Write records, TFDS's description and the supervision index. Return each split's entry in the manifest."""
    from PIL import Image
    from tqdm import tqdm

    writer, entries = _open_writer(folder, name, listing), {}
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=sum(map(len, listing.splits.values())), desc="images", unit=" files", mininterval=0.5) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we refuse such images ourselves
        for split in listing.splits:
            entries[split] = _write_split(folder, listing, writer, split, _load_examples(listing, split, pool, bar))
    with raise_full_disk():
        writer.close_all()
    return entries


def _write_split(
    folder: Path, listing: Listing, writer: Any, split: str, chunks: Iterator[list[Example]]
) -> dict[str, Any]:
    values, keys, sha = [], [], hashlib.sha256()
    for chunk in chunks:
        for example in chunk:
            value = example[listing.field]
            values.append(value)
            keys.append(example["key"])
            sha.update(f"{example['key']}\n{value}\n{len(example['image'])}\n".encode())
            sha.update(example["image"])
        with raise_full_disk():
            writer.add_examples({split: chunk})
    if not values:
        raise make_no_image_error(listing, split)
    listing.write_index(folder / "supervision", split, values)
    (folder / "supervision" / f"{split}.keys.json").write_text(json.dumps(keys), "utf-8")
    return {"records": len(values), "sha256": sha.hexdigest(), "per_class": listing.count_classes(split, values)}


def _load_examples(listing: Listing, split: str, pool: ThreadPoolExecutor, bar: Any) -> Iterator[list[Example]]:
    """Yield the usable images of a split in chunks of examples. List the others in `listing.refused`."""
    class_ids, items = {name: i for i, name in enumerate(listing.classes)}, listing.iterate_items(split)
    while chunk := list(itertools.islice(items, CHUNK)):
        examples = []
        loaded = pool.map(functools.partial(_load_item, listing.resize), chunk)
        for item, (content, resized, reason) in zip(chunk, loaded, strict=True):
            if reason:
                listing.refused.append({"file": item.key, "reason": reason})
            else:
                value = class_ids[item.label] if listing.field == "label" else item.label
                examples.append({"image": content, listing.field: value, "key": item.key})
                listing.resized[split] += resized
        yield examples
        bar.update(len(chunk))


def _load_item(resize: int | None, item: Item) -> tuple[bytes, bool, str]:
    """Load an image and check it. Return what `check_image` returns."""
    content, reason = item.load()
    return (b"", False, reason) if reason else check_image(content, resize, item.size)


def _open_writer(folder: Path, name: str, listing: Listing) -> Any:
    """Open a writer that keeps the order of the examples.

    TFDS's builders would sort them by a hash, and need TensorFlow above a gigabyte.
    """
    import tensorflow_datasets as tfds

    if listing.field == "label":
        info = describe(folder, name, listing.classes)
    else:
        info = describe(folder, name, None, texts=(listing.field,))
    writer = tfds.core.SequentialWriter(info, RECORDS_PER_SHARD, file_format="array_record")
    writer.initialize_splits(list(listing.splits))
    return writer


def describe(folder: Path, name: str, classes: list[str] | None, *, texts: Sequence[str] = ()) -> Any:
    """Return TFDS's description of the dataset: image, key, label if there are classes, and further fields of text."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    features = {"image": tfds.features.Image(), **{text: tfds.features.Text() for text in ("key", *texts)}}
    if classes is not None:
        features["label"] = tfds.features.ClassLabel(names=classes)
    identity = DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="nml_jax.data.builders"
    )
    return tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=None if classes is None else ("image", "label"),
        disable_shuffling=True,
    )


@contextlib.contextmanager
def raise_full_disk() -> Iterator[None]:
    """Convert the RuntimeError that ArrayRecord raises on a full disk into an OSError."""
    try:
        yield
    except RuntimeError as e:
        raise OSError(str(e)) from e
