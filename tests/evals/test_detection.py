import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.evals import detection
from tests.evals import golden_detection

GOLDEN = json.loads(golden_detection.PATH.read_text())


@pytest.mark.parametrize("kind", detection.KINDS)
@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_the_twelve_numbers_are_those_of_both_libraries(kind: str, every: int):
    for seed, golden in list(enumerate(GOLDEN[kind]))[:: every - 1 or 1]:
        truth, results = golden_detection.make_case(seed)
        got = detection.score(truth, results, kind)
        if not results:
            assert set(got.values()) <= {0.0}, seed
            assert ("AP" in got) == any(not a["iscrowd"] for a in truth["annotations"]), seed
            continue
        want = {name: value for name, value in zip(detection.NAMES, golden, strict=True) if value >= 0}
        assert got.keys() == want.keys(), seed
        np.testing.assert_allclose([*got.values()], [*want.values()], rtol=0, atol=1e-12, err_msg=str(seed))


def one_object(**changes):
    box = [10.0, 10.0, 40.0, 40.0]
    rle = golden_detection.draw_rle(box)
    truth = {
        "images": [{"id": 0, "height": 120, "width": 120}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": box, "area": 1600.0, "iscrowd": 0,
                         "segmentation": rle, **changes}],
    }  # fmt: skip
    return truth, [{"image_id": 0, "category_id": 1, "score": 0.9, "bbox": box, "segmentation": rle}]


def test_an_annotation_with_the_id_0_can_be_found():
    truth, results = one_object(id=0)
    assert detection.score(truth, results, "box")["AP"] == pytest.approx(1)
    assert detection.score(truth, results, "mask")["AP"] == pytest.approx(1)


def test_what_is_undefined_is_left_out_and_nothing_found_is_zero():
    truth, results = one_object()
    assert set(detection.score(truth, results, "box")) == set(detection.NAMES) - {"APs", "APl", "ARs", "ARl"}
    assert detection.score(truth, [], "box")["AP"] == 0.0
    assert detection.score(*one_object(iscrowd=1), "box") == {}


class Detector:
    """A model whose detections are in its batch: a box at the corner of the picture, of class 0."""

    @staticmethod
    def apply(params, model_state, batch, *, train, key):
        b = len(batch["size"])
        boxes = jnp.zeros((b, 2, 4)).at[:, 0, 2:].set(batch["size"][:, ::-1] / params)
        scores, classes = jnp.array([[0.5, 0.0]] * b), jnp.array([[0, -1]] * b)
        return {"boxes": boxes, "scores": scores, "classes": classes, "logits": jnp.zeros(())}, model_state


def batches():
    image = np.zeros((4, 8, 16, 3), np.uint8)
    size = np.array([[8, 16], [4, 8], [8, 8], [1, 1]], np.int32)
    yield {"image": image, "size": size, "id": np.array([5, 3, 4, 0], np.int32), "mask": np.array([1, 1, 1, 0.0])}


def test_detections_come_by_image_without_those_that_do_not_exist():
    found = dict(detection.find_detections(Detector.apply, jnp.float32(2), {}, batches()))
    assert list(found) == [5, 3, 4]
    assert all(of["scores"].tolist() == [0.5] and of["canvas"].tolist() == [8, 16] for of in found.values())
    np.testing.assert_array_equal(found[3]["boxes"], [[0, 0, 4, 2]])


def test_the_evaluator_yields_rows_and_says_what_is_undefined(capsys):
    truth = {
        "images": [{"id": i, "height": 8, "width": 16} for i in (3, 4, 5)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [0, 0, 8, 4], "area": 32, "iscrowd": 0}
                        for i in (3, 4, 5)],
    }  # fmt: skip

    def describe(i, found):
        return [{"image_id": i, "category_id": 1, "score": 0.5, "bbox": [0, 0, 8, 4]} for _ in found["scores"]]

    evaluator = detection.Detection(Detector.apply, batches, truth, describe)
    got = dict(evaluator.run(jnp.float32(2), {}))
    assert got == pytest.approx(dict.fromkeys(["box_AP", "box_AP50", "box_AP75", "box_APs", "box_AR100"], 1.0))
    assert len(evaluator.results) == 3
    assert "box_APm and box_APl left out: undefined" in capsys.readouterr().err
    assert jax.tree.leaves(got)


def test_an_empty_truth_has_no_numbers():
    truth = {"images": [{"id": 5, "height": 8, "width": 16}], "categories": [], "annotations": []}
    assert dict(detection.Detection(Detector.apply, list, truth, lambda i, found: []).run(None, {})) == {}
