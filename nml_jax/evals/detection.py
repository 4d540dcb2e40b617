"""Evaluate detections by COCO's average precision, as pycocotools computes it.

A number without an object to average over, such as APs where no object is small, is undefined: pycocotools gives -1 for
it. Here it is left out.
"""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nml_jax import console

# COCO's twelve numbers, in pycocotools' order.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SHOWN = (*NAMES[:6], "AR100")  # those that become rows
KINDS: Mapping[str, Any] = {"box": "bbox", "mask": "segm"}  # what is compared, and pycocotools' name for it

Result = Mapping[str, Any]  # image_id, category_id, score, bbox as x y w h, and with masks segmentation as an RLE


def score(truth: Mapping[str, Any], results: Sequence[Result], kind: str) -> dict[str, float]:
    """Return COCO's numbers, by NAMES, that are defined. Without any detection they are 0.

    Args:
        truth: a dataset in COCO's format: images, categories, and annotations with bbox, area, iscrowd and, for
            masks, segmentation. For masks, annotations without one do not count. Annotations may have any ids:
            pycocotools takes one with id 0 for unmatched, so they are numbered again.
        results: in COCO's format.
        kind: a key of KINDS.
    """
    known = truth["annotations"] if kind == "box" else (a for a in truth["annotations"] if "segmentation" in a)
    own = [{**annotation, "id": i} for i, annotation in enumerate(known, 1)]
    found = [_complete(result, i, kind) for i, result in enumerate(results, 1)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and a table
        of: Any = KINDS[kind]
        evaluation = COCOeval(_index(truth, own), _index(truth, found), of)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = zip(NAMES, map(float, evaluation.stats), strict=True)
    return {name: value for name, value in values if value >= 0}


def _complete(result: Result, i: int, kind: str) -> dict[str, Any]:
    """Return a result with the fields that pycocotools reads of a detection."""
    if kind == "box":
        area = result["bbox"][2] * result["bbox"][3]
    else:
        area = float(codec.area(result["segmentation"]))
    return {**result, "id": i, "area": area, "iscrowd": 0}


def _index(truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    """Return pycocotools' index of annotations. `COCO.loadRes` fails on an empty list."""
    out: Any = COCO()
    out.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
    out.createIndex()
    return out


# A module function, so that all evaluators of one model share its compiled program.
@partial(jax.jit, static_argnames=("apply",))
def _detect(params: Any, model_state: Any, batch: Mapping[str, jax.Array], *, apply: Callable) -> dict[str, jax.Array]:
    """Return the outputs of a detector that describe its detections, each [B, D, ...]."""
    outputs = apply(params, model_state, batch, train=False, key=None)[0]
    return {name: outputs[name] for name in ("boxes", "scores", "classes", "masks", "maps") if name in outputs}


def find_detections(
    apply: Callable[..., Any],
    params: Any,
    model_state: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    put: Callable[[Any], Any] = jax.device_put,
    fetch: Callable[[Any], Any] = jax.device_get,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield (id, detections) of every image, in the order of the batches.

    Args:
        batches: this process's rows of image, size, id and mask, see `SceneReading`.
        put, fetch: see `Classification`.

    Yields:
        detections: boxes float32 [d, 4], scores float32 [d], classes int32 [d] and, of a system with masks, masks or
            maps [d, ...], on the canvas and best first; size int32 [2]; canvas int32 [2].
    """
    for local in batches:
        batch = put(local)
        inputs = {name: batch[name] for name in ("image", "size")}
        about = {name: batch[name] for name in ("id", "mask", "size")}
        found, about = fetch((_detect(params, model_state, inputs, apply=apply), about))
        canvas = np.array(local["image"].shape[1:3], np.int32)
        for row in np.flatnonzero(about["mask"] > 0):
            there = found["classes"][row] >= 0
            own = {name: values[row][there] for name, values in found.items()}
            yield int(about["id"][row]), {**own, "size": about["size"][row], "canvas": canvas}


class Detection:
    """An Evaluator of a detector.

    Args:
        apply: that of a Model.
        batches: returns this process's batches of the split, from the start; see `find_detections`.
        truth: the split in COCO's format; see `score`.
        describe: (id, detections) -> their results in COCO's format.
        kinds: of KINDS.
        put, fetch: see `Classification`.
    """

    def __init__(
        self,
        apply: Callable[..., Any],
        batches: Callable[[], Iterable[Mapping[str, np.ndarray]]],
        truth: Mapping[str, Any],
        describe: Callable[[int, Mapping[str, np.ndarray]], list[Result]],
        *,
        kinds: Sequence[str] = ("box",),
        put: Callable[[Any], Any] = jax.device_put,
        fetch: Callable[[Any], Any] = jax.device_get,
    ):
        self.batches, self.truth, self.describe, self.kinds = batches, truth, describe, kinds
        self.find = partial(find_detections, apply, put=put, fetch=fetch)
        self.results: list[Result] = []

    def run(self, params: Any, model_state: Any) -> Iterator[tuple[str, float]]:
        """Yield box_AP, box_AP50, box_AP75, box_APs, box_APm, box_APl and box_AR100, and the same with mask_.

        Those that are undefined are left out, and a line is logged once. The results stay in `results`.
        """
        found = self.find(params, model_state, self.batches())
        self.results = [result for i, detections in found for result in self.describe(i, detections)]
        for kind in self.kinds:
            numbers = score(self.truth, self.results, kind)
            if missing := [f"{kind}_{name}" for name in SHOWN if name not in numbers]:
                why = "no object of that size to find" if "AP" in numbers else "no object to find"
                console.notice_once(f"{console.list_words(missing)} left out: undefined, there is {why}")
            yield from ((f"{kind}_{name}", numbers[name]) for name in SHOWN if name in numbers)
