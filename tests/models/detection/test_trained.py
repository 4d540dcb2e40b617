"""The detections of twins that were trained on digit scenes, against torchvision's and mmdetection's."""

import functools

import jax
import numpy as np
import pytest

from nml_jax.boxes import compute_iou
from nml_jax.data.images import masks
from tests.models.detection import comparison, ours, twins
from tests.models.detection.comparison import get_golden

HEIGHT, WIDTH = twins.TRAINED["canvas"]


@functools.cache
def detect(system: str) -> dict[str, np.ndarray]:
    """Return what a twin finds on the scenes."""
    image = get_golden("trained/image")[..., None].repeat(3, -1)
    model, _ = ours.build(system, **twins.TRAINED)
    weights = ours.fill(model, lambda name, _: twins.get_weight(comparison.load(), system, name))
    batch = {"image": image, "size": np.tile(np.int32([HEIGHT, WIDTH]), (len(image), 1))}
    run = jax.jit(lambda params, state: model.apply(params, state, batch, train=False, key=None)[0])
    return jax.device_get(run(*weights))


@pytest.mark.parametrize(
    ("system", "score"), [("retina", twins.SURE), ("faster", twins.SURE), ("mask", twins.SURE), ("solo", 0.2)]
)
def test_twins_are_trained(system, score):
    """Most objects are found, with their class. The training of SOLOv2 was stopped early: its scores are below 0.33."""
    found, hits = detect(system), []
    for i, (boxes, labels) in enumerate(zip(get_golden("trained/boxes"), get_golden("trained/labels"), strict=True)):
        right = np.asarray(compute_iou(boxes, found["boxes"][i])) > 0.5
        right &= (found["scores"][i] > score) & (found["classes"][i] == labels[:, None])
        hits += list(right.any(1)[labels >= 0])
    assert np.mean(hits) > 0.5


@pytest.mark.parametrize("system", ["retina", "faster", "mask"])
def test_detections_are_torchvisions(system):
    comparison.compare_detections(detect(system), f"trained/{system}", offset=int(system != "retina"))


def test_masks_are_torchvisions():
    """The cells of the masks of sure detections, and their pixels in the picture.

    torchvision pastes a mask into a box that it first rounds to whole pixels; other codebases, and we, do not.
    """
    found = detect("mask")
    cells, pixels = [], []
    for i, scores in enumerate(found["scores"]):
        sure = scores > twins.SURE
        own, boxes = found["masks"][i][sure], found["boxes"][i][sure]
        cells.append(compare_bits(own > 0.5, f"trained/mask/detections/{i}/masks"))
        pasted = [masks.paste(*pair, HEIGHT, WIDTH) for pair in zip(own, boxes, strict=True)]
        pixels.append(compare_bits(np.reshape(pasted, (-1, HEIGHT, WIDTH)), f"trained/mask/detections/{i}/pasted"))
    wrong, of = np.sum(cells, 0)
    assert wrong <= 1e-3 * of
    wrong, of = np.sum(pixels, 0)
    assert wrong <= 0.15 * of, "the rounding of boxes moves edges"


def test_detections_are_mmdetections():
    """The scores after Matrix-NMS, the classes, and the masks in the picture."""
    found, pixels = detect("solo"), []
    for i, classes in enumerate(found["classes"]):
        scores, labels = (get_golden(f"trained/solo/detections/{i}/{name}") for name in ("scores", "labels"))
        count = int((classes >= 0).sum())
        assert count == len(scores) > 0
        np.testing.assert_array_equal(classes[:count], labels)
        np.testing.assert_allclose(found["scores"][i, :count], scores, atol=1e-4)
        size = HEIGHT, WIDTH
        large = [masks.resize_map(x, size, size, *size) for x in found["maps"][i, :count]]
        pixels.append(compare_bits(np.stack(large), f"trained/solo/detections/{i}/masks"))
    wrong, of = np.sum(pixels, 0)
    assert wrong <= 1e-3 * of


def compare_bits(found: np.ndarray, name: str) -> tuple[int, int]:
    """Return how many bits differ from those stored, and how many are set in one or the other."""
    theirs = np.unpackbits(get_golden(name), axis=-1, count=found.shape[-1]).astype(bool)
    assert found.shape == theirs.shape
    return int((found != theirs).sum()), int((found | theirs).sum())
