"""The task of the stage detect: its splits, how they are read, and detections and truth in COCO's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nml_jax import ranges
from nml_jax.console import notice, notice_once, shorten
from nml_jax.data.class_names import clean_name, list_names
from nml_jax.data.images import masks, scenes
from nml_jax.data.images.codec import decode
from nml_jax.data.images.draw import SIDE, Drawn, draw_objects, make_sheet
from nml_jax.data.sources.digit_scenes import DigitScenes
from nml_jax.data.sources.objects import Objects, ObjectSource, OtherClasses, SomeImages
from nml_jax.errors import MissingInput, UserError
from nml_jax.models import Model

SOURCES = ("digits", "directory")


class Task(NamedTuple):
    """The splits of a detector. `test` has the classes of `train`, in their order."""

    name: str
    train: ObjectSource
    test: ObjectSource
    test_split: str


def check_ranges(config: ConfigDict) -> None:
    """Raise UserError if a value of the section `detect.data` is out of range."""
    ranges.require_at_least(1, "detect.data", config, "scenes", "test_scenes", "smallest", "max_objects")
    ranges.require_share("detect.data", config, "flip")
    ranges.require_interval("detect.data", config, "canvas")
    if config.source not in SOURCES:
        raise UserError(f"detect.data.source={config.source!r} does not exist", f"choose one of {', '.join(SOURCES)}")
    if not all(type(side) is int and 1 <= side <= config.canvas[0] for side in config.scales):
        cure = f"give sides of 1 to {config.canvas[0]} pixels, or a larger detect.data.canvas"
        raise UserError(f"detect.data.scales={tuple(config.scales)} do not fit the canvas", cure)


def open_task(config: ConfigDict) -> Task:
    """Open the splits of the section `detect.data`.

    Raises:
        UserError: a dataset is missing or damaged, a test object is of a class that training does not know, or there is
            nothing to train on.
    """
    data = config.detect.data
    if data.source == "digits":
        how: dict[str, Any] = {"side": data.canvas[0], "seed": 0, "kinds": data.kinds}
        train = DigitScenes("train", data.scenes, **how)
        return Task("digit scenes", choose_images(train, data), DigitScenes("test", data.test_scenes, **how), "test")
    from nml_jax.data.sources import annotated  # imports TFDS, which takes a second that digits do not need

    train = annotated.load(data.path, data.train)
    test = annotated.load(data.test_path or data.path, data.test)
    test.check_ids()
    name = Path(data.path).expanduser().resolve().name
    chosen = choose_images(train, data)
    return Task(name, chosen, match_classes(chosen, test), data.test)


def match_classes(train: ObjectSource, test: ObjectSource) -> ObjectSource:
    """Return the test split with the classes of the training split, matched by name, and say which these are.

    Also says which classes are tested and never trained on: their AP is 0.

    Raises:
        UserError: a test object is of a class that training does not have.
    """
    index = {clean_name(name): c for c, name in enumerate(train.class_names)}
    classes = np.array([index.get(clean_name(name), -1) for name in test.class_names], np.int32)
    known, present = classes >= 0, np.zeros(len(classes), bool)
    any_of = present.copy()
    for objects in map(test.objects, range(len(test))):
        any_of[objects.labels] = present[objects.labels[~objects.crowd]] = True
    if strange := [test.class_names[c] for c in np.flatnonzero(any_of & ~known)]:
        raise UserError(
            f"test objects are of {list_names(strange)}, which the training data do not have",
            "test on data with the classes of training, or prepare both together",
        )
    tested = {int(c) for c in classes[present]}
    if untrained := tested - _find_present(train, tested):
        names = list_names([train.class_names[c] for c in sorted(untrained)])
        notice_once(f"there is no training object of {names}: their AP is 0, and counts in the mean")
    absent = [name for c, name in enumerate(train.class_names) if c not in classes[present]]
    if absent and len(absent) < len(train.class_names):
        shown = f"{len(absent)} of {len(train.class_names)} classes, {shorten(absent)}"
        notice_once(f"AP is the mean over the classes that test objects are of: there is none of {shown}")
    if tuple(test.class_names) == tuple(train.class_names):
        return test
    return OtherClasses(test, classes, train.class_names)


def _find_present(source: ObjectSource, wanted: set[int]) -> set[int]:
    """Return which of the wanted classes a source has objects of that are not crowds. Reads no more than it must."""
    found: set[int] = set()
    for i in range(len(source)):
        if wanted <= found:
            break
        objects = source.objects(i)
        found |= {*objects.labels[~objects.crowd].tolist()}
    return found & wanted


def count(config: ConfigDict) -> tuple[int, int]:
    """Return the number of images to train on and of classes, from the data.

    Raises:
        UserError: see `open_task`; or `detect.data.num_classes` is another number.
    """
    task, told = open_task(config), config.detect.data.num_classes
    if told is not None and told != task.train.num_classes:
        cure = f"set --config.detect.data.num_classes={task.train.num_classes}, or leave it out"
        raise UserError(f"detect.data.num_classes={told}, but the data have {task.train.num_classes} classes", cure)
    return len(task.train), task.train.num_classes


def find_sizes(config: ConfigDict) -> tuple[int, int]:
    """Do as `count`; if the data are not there, take the numbers that the config expects."""
    data = config.detect.data
    try:
        return count(config)
    except MissingInput as e:
        if data.expected is None or data.num_classes is None:
            raise
        notice(f"{e.cause}; planning with detect.data.expected={data.expected}")
        return data.expected, data.num_classes


def choose_images(source: ObjectSource, data: ConfigDict) -> ObjectSource:
    """Leave out images that nothing can be learnt from: without an object but crowds, or with a side too short.

    Says how many these are, and how many objects `max_objects` cuts.

    Raises:
        UserError: no image is left.
    """
    large, counts = source.sizes.min(1) >= data.smallest, source.counts[:, 0]
    kept = np.flatnonzero(large & (counts > 0))
    cut = int(np.maximum(counts[kept] - data.max_objects, 0).sum())
    left_out = {
        "without an object but crowds": int((large & (counts == 0)).sum()),
        f"with a side below {data.smallest} pixels": int((~large).sum()),
    }
    if told := [f"{n:,} {why}" for why, n in left_out.items() if n]:
        notice_once(f"not trained on: {' and '.join(told)}, of {len(source):,} images")
    if cut:
        notice_once(f"detect.data.max_objects={data.max_objects} cuts {cut:,} objects, the last of their images")
    if not len(kept):
        raise UserError("no image has an object to train on", "give another split, or a smaller detect.data.smallest")
    return source if len(kept) == len(source) else SomeImages(source, kept)


def check_masks(task: Task, system: str) -> None:
    """Check that objects have the masks that a system learns from and is scored on; say how many have none.

    Raises:
        UserError: no object of a split has one.
    """
    for split, source in (("training", task.train), ("test", task.test)):
        objects, with_mask = map(int, source.counts.sum(0))
        if objects and not with_mask:
            cure = "leave the system out of detect.systems, or give data with `segmentation`"
            raise UserError(f"detect.systems={system} needs masks, and no object of the {split} split has one", cure)
        if with_mask < objects:
            missing = f"{objects - with_mask:,} of {objects:,} objects of the {split} split have no mask"
            notice_once(f"{system}: {missing} and do not count")


def make_transform(data: ConfigDict, model: Model) -> scenes.SceneTransform:
    """Make the transform of images for a detector, whose spec says which masks it takes."""
    short, long = map(int, data.canvas)
    canvas, spec = scenes.pad_canvas(short, long), model.spec
    return scenes.SceneTransform(
        canvas,
        short,
        long,
        scales=tuple(data.scales),
        flip=data.flip,
        most=data.max_objects,
        crop=spec["masks"].shape[-1] if "masks" in spec else 0,
        stride=canvas[0] // spec["maps"].shape[2] if "maps" in spec else 0,
    )


def find_canvas(data: ConfigDict) -> tuple[int, int]:
    """Return height and width of the landscape canvas."""
    return scenes.pad_canvas(*map(int, data.canvas))


# ---- COCO's format


def make_truth(source: ObjectSource) -> dict[str, Any]:
    """Return a source as a dataset in COCO's format: image ids are those of records, category c + 1 is class c."""
    images, annotations = [], []
    for i in range(len(source)):
        height, width = map(int, source.sizes[i])
        images.append({"id": i, "height": height, "width": width})
        annotations += [{"image_id": i, **each} for each in _annotate(source.objects(i), height, width)]
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(source.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotate(objects: Objects, height: int, width: int) -> list[dict[str, Any]]:
    """Return the annotations of an image, without ids."""
    out = []
    for k, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
        one = {"category_id": int(objects.labels[k]) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
               "area": float(objects.areas[k]), "iscrowd": int(objects.crowd[k])}  # fmt: skip
        if objects.masks[k] is not None:
            one["segmentation"] = masks.to_rle(objects.masks[k], height, width)
        out.append(one)
    return out


def describe(source: ObjectSource, i: int, found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the detections of image i in COCO's format, with the ids of `make_truth`, in pixels of the picture.

    Args:
        found: as `evals.detection.find_detections` yields it.
    """
    height, width = map(int, source.sizes[i])
    return describe_found(i, (height, width), found)


def describe_found(i: Any, size: tuple[int, int], found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Do as `describe` for a picture of `size` (height, width) with the id `i`."""
    (height, width), (h, w) = size, map(int, found["size"])
    boxes = found["boxes"].astype(np.float64) * np.array([width / w, height / h] * 2)
    boxes = boxes.clip(0, [width, height] * 2)
    out = []
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        one = {"image_id": i, "category_id": int(found["classes"][k]) + 1, "score": float(found["scores"][k]),
               "bbox": [x1, y1, x2 - x1, y2 - y1]}  # fmt: skip
        if "masks" in found:
            one["segmentation"] = masks.encode(masks.paste(found["masks"][k], boxes[k], height, width))
        if "maps" in found:
            up, across = map(int, found["canvas"])
            mask = masks.resize_map(found["maps"][k], (up, across), (h, w), height, width)
            one["segmentation"] = masks.encode(mask)
        out.append(one)
    return out


def restore_ids(source: ObjectSource, results: list[Any]) -> list[dict[str, Any]]:
    """Return results with the ids of images and categories that the annotations of `source` have."""
    images = {i: source.image_ids[i] for i in {one["image_id"] for one in results}}  # each is read from a file
    return [
        {**one, "image_id": images[one["image_id"]], "category_id": int(source.category_ids[one["category_id"] - 1])}
        for one in results
    ]


# ---- pictures

SHOWN = 8  # images on a sheet
SURE = 0.3  # detections with a lower score are not drawn


def draw_sheet(source: ObjectSource, results: list[Any]) -> bytes:
    """Draw the first images of a source, each with its true objects and beside that with what was found, as a JPEG.

    Args:
        results: as `describe` returns them, of all images.
    """
    shown = range(min(SHOWN, len(source)))
    found: dict[int, list[Drawn]] = {i: [] for i in shown}
    for one in results:
        if one["image_id"] in found and one["score"] >= SURE:
            found[one["image_id"]].append(draw_result(one, source.class_names))
    pairs = []
    for i in shown:
        image, objects = decode(source.image(i)), source.objects(i)
        true = [
            Drawn(box, source.class_names[label] + " (crowd)" * bool(crowd), label, mask)
            for box, label, crowd, mask in zip(
                objects.boxes.tolist(), objects.labels.tolist(), objects.crowd, objects.masks, strict=True
            )
        ]
        pairs.append((draw_objects(image, true, SIDE), draw_objects(image, found[i], SIDE)))
    return make_sheet(pairs)


def draw_result(one: Mapping[str, Any], class_names: Sequence[str]) -> Drawn:
    """Return a detection, as `describe` returns it, as what is drawn."""
    x, y, w, h = one["bbox"]
    label = one["category_id"] - 1
    return Drawn([x, y, x + w, y + h], f"{class_names[label]} {one['score']:.2f}", label, one.get("segmentation"))
