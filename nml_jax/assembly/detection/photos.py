"""Apply a trained detector to a folder of images, for predict.py."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax import console, runtime
from nml_jax.data.class_names import escape_name
from nml_jax.data.images.codec import Undecodable, decode
from nml_jax.data.images.draw import draw_objects, encode_jpeg
from nml_jax.data.sources.objects import Objects, ObjectSource, make_objects
from nml_jax.data.sources.photos import Photos, open_photos
from nml_jax.data.sources.source import digest
from nml_jax.data.stream import pipeline
from nml_jax.data.stream.reading import SceneReading
from nml_jax.errors import UserError, report_disk_errors
from nml_jax.evals.detection import find_detections
from nml_jax.hashes import hash_bytes
from nml_jax.models import Model
from nml_jax.runs.detections import RESULTS
from nml_jax.runs.files import write_bytes, write_json
from nml_jax.runs.rows import has_rows
from nml_jax.tasks import detection
from nml_jax.training import checkpoint
from nml_jax.training.detection import program as detect
from nml_jax.training.detection.saved import read_saved

PICTURES = "pictures"  # folder of the output
LONGEST = 255  # bytes of a file's name


class Detector(NamedTuple):
    """A trained detector, on the mesh."""

    config: ConfigDict
    model: Model
    weights: tuple[Any, Any]  # params, model_state
    class_names: list[str]
    category_ids: list[int]


def open_detector(folder: Path, mesh: Mesh) -> Detector:
    """Load the last checkpoint of a detector's folder, and say so if its training is not done.

    Raises:
        UserError: it is damaged.
    """
    step, meta = read_saved(folder)
    if not has_rows(folder):
        console.notice(f"{folder}: its training is not done; this is the detector after step {step.name}")
    config = meta["config"]
    setup = detect.Setup(meta["system"], meta["num_classes"], detection.find_canvas(config.detect.data))
    model = detect.build_model(config.model, config.detect, setup, mesh)
    params, model_state = model.shapes
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = {"params": params, "model_state": model_state, "ema": None}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes)
    loaded = checkpoint.load(step, {"model": shapes})["model"]
    weights = runtime.move_to_mesh((loaded["params"], loaded["model_state"]), mesh)
    return Detector(config, model, weights, meta["class_names"], meta["category_ids"])


class Pictures(ObjectSource):
    """The images of a folder, of which no objects are known."""

    def __init__(self, photos: Photos):
        self.photos = photos
        sizes = [_measure(photos, i) for i in range(len(photos))]
        super().__init__(np.array(sizes), class_names=(), fingerprint=digest("pictures", photos.fingerprint))

    @property
    def keys(self) -> list[str]:
        return self.photos.paths

    def image(self, i: int) -> bytes:
        return self.photos.image(i)

    def objects(self, i: int) -> Objects:
        return make_objects([], [], [], [], [])


def _measure(photos: Photos, i: int) -> tuple[int, ...]:
    """Return height and width of an image. Raise UserError if it cannot be decoded."""
    try:
        return decode(photos.image(i)).shape[:2]
    except Undecodable as e:
        cure = "repair this file, or take it out of the folder"
        raise UserError(f"{photos.folder / photos.paths[i]} cannot be decoded: {e}", cure) from e


def detect_photos(detector: Detector, folder: Path, mesh: Mesh) -> Iterator[tuple[str, np.ndarray, list[Any]]]:
    """Yield (path, image, detections) of every image below a folder, landscapes before portraits.

    The detections are in COCO's format, in pixels of the image, best first; categories are numbered from 1 in the
    order of the class names.

    Raises:
        UserError: the folder holds no image, or one cannot be decoded.
    """
    source, config = Pictures(open_photos(folder)), detector.config
    transform = detection.make_transform(config.detect.data, detector.model)
    reading = SceneReading(transform, *runtime.find_process_block(mesh), threads=config.runtime.threads)
    batch = min(config.detect.batch, len(source))
    batches = pipeline.evaluate(source, reading, batch=-(-batch // mesh.size) * mesh.size)
    moving = {"put": runtime.put_batch(mesh), "fetch": partial(runtime.fetch, mesh=mesh)}
    for i, found in find_detections(detector.model.apply, *detector.weights, batches, **moving):
        height, width = map(int, source.sizes[i])
        yield source.keys[i], decode(source.image(i)), detection.describe_found(i, (height, width), found)


def name_picture(path: str) -> Path:
    """Return the path of an image's picture: with .jpg added, and cut if its name would be too long.

    A name that is cut has the beginning of a hash, so that no other picture has it.
    """
    if len(os.fsencode(Path(path).name)) + len(".jpg") <= LONGEST:
        return Path(f"{path}.jpg")
    short = os.fsencode(Path(path).name)[: LONGEST - len("-01234567.jpg")].decode("utf-8", "ignore")
    return Path(path).with_name(f"{short}-{hash_bytes(os.fsencode(path))[:8]}.jpg")


def write_detections(folder: Path, photos: Path, out: Path) -> int:
    """Detect objects in the images below `photos` and write results.json and a picture for each image into `out`.

    results.json holds all detections in COCO's format, with the ids of the categories that the detector was trained
    with, and beside them the name of the file and of the category. It is written last.

    Returns:
        The number of detections.

    Raises:
        UserError: the detector is damaged, there is no image or one cannot be decoded, or `out` lies in `photos` or
            cannot be written.
    """
    if out.resolve().is_relative_to(photos.resolve()):
        raise UserError(f"--out={out} lies inside {photos}", "choose another folder, or pictures would become inputs")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file", "give the name of a folder")
    mesh = runtime.make_mesh()
    detector, results = open_detector(folder, mesh), []
    with report_disk_errors(out):
        for path, image, found in detect_photos(detector, photos, mesh):
            drawn = [detection.draw_result(one, detector.class_names) for one in found
                     if one["score"] >= detection.SURE]  # fmt: skip
            write_bytes(out / PICTURES / name_picture(path), encode_jpeg(draw_objects(image, drawn)))
            for one in found:
                label = one["category_id"] - 1
                named = {"file_name": escape_name(path), "category": detector.class_names[label]}
                results.append({**one, "category_id": detector.category_ids[label], **named})
        write_json(out / RESULTS, results)
    return len(results)
