"""Make golden_detection.json: COCO's twelve numbers of 200 random cases, by pycocotools and by faster-coco-eval.

python tests/evals/golden_detection.py      (needs faster-coco-eval, which is no dependency)
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as codec

PATH = Path(__file__).with_suffix(".json")
CASES, SIDE, CLASSES = 200, 120, 3
KINDS = {"box": "bbox", "mask": "segm"}


def draw_rle(box: list[float]) -> dict[str, Any]:
    """An ellipse within a box, as a compressed RLE."""
    x, y, w, h = box
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    rle = codec.encode(np.asfortranarray(inside, np.uint8))
    return {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}


def draw_box(rng: np.random.Generator) -> list[float]:
    """x, y, w, h of any of the three size ranges."""
    w, h = np.exp(rng.uniform(np.log(4), np.log(110), 2))
    return [float(v) for v in (rng.uniform(0, SIDE - w), rng.uniform(0, SIDE - h), w, h)]


def make_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth and results with crowds, empty images, ties of scores, several detections of an object, and none."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "height": SIDE, "width": SIDE} for i in range(int(rng.integers(1, 5)))]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for _ in range(int(rng.integers(0, 7))):
            box, label = draw_box(rng), int(rng.integers(1, CLASSES + 1))
            rle, crowd = draw_rle(box), int(rng.random() < 0.15)
            area = float(codec.area(rle)) if rng.random() < 0.8 else box[2] * box[3]
            where = {"image_id": image["id"], "category_id": label}
            annotations.append({**where, "id": len(annotations) + 1, "bbox": box, "area": area, "iscrowd": crowd,
                                "segmentation": rle})  # fmt: skip
            for _ in range(int(rng.integers(0, 4)) * (seed % 10 != 0)):
                moved = [float(v) for v in np.array(box) + rng.normal(0, 0.08 * min(box[2:]), 4)]
                moved = [moved[0], moved[1], max(moved[2], 1.0), max(moved[3], 1.0)]
                wrong = int(rng.integers(1, CLASSES + 1)) if rng.random() < 0.2 else label
                score = float(np.round(rng.random(), int(rng.integers(1, 4))))  # one digit: ties
                results.append({"image_id": image["id"], "category_id": wrong, "score": score, "bbox": moved,
                                "segmentation": draw_rle(moved)})  # fmt: skip
    categories = [{"id": c, "name": str(c)} for c in range(1, CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def evaluate(library: Any, evaluator: Any, truth: Any, results: Any, kind: str) -> list[float]:
    """The twelve numbers of a library, in the way that its documentation shows."""
    coco = library()
    coco.dataset = json.loads(json.dumps(truth))
    coco.createIndex()
    own = [{k: v for k, v in r.items() if k != ("segmentation" if kind == "box" else "bbox")} for r in results]
    run = evaluator(coco, coco.loadRes(own), KINDS[kind])
    run.evaluate()
    run.accumulate()
    run.summarize()
    return [float(v) for v in run.stats[:12]]


def main() -> None:
    from faster_coco_eval import COCO as FASTER
    from faster_coco_eval import COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    libraries = {"pycocotools": (COCO, COCOeval), "faster-coco-eval": (FASTER, COCOeval_faster)}
    golden: dict[str, dict[str, list[list[float]]]] = {}
    for name, (library, evaluator) in libraries.items():
        for kind in KINDS:
            with contextlib.redirect_stdout(io.StringIO()):
                rows = [
                    evaluate(library, evaluator, *make_case(s), kind) if make_case(s)[1] else [] for s in range(CASES)
                ]
            golden.setdefault(name, {})[kind] = rows
    both = (golden[name][kind][s] for kind in KINDS for s in range(CASES) for name in libraries)
    for one, other in zip(both, both, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    lines = {kind: [[round(v, 15) for v in row] for row in golden["faster-coco-eval"][kind]] for kind in KINDS}
    PATH.write_text(json.dumps(lines).replace("], [", "],\n["))


if __name__ == "__main__":
    main()
