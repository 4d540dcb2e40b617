"""RetinaNet against torchvision's, part by part."""

import numpy as np

from tests.models.detection import comparison
from tests.models.detection.comparison import get_golden


def test_outputs_are_torchvisions():
    for name in ("logits", "deltas"):
        found, theirs = comparison.get_twin("retina").plain[0][name], get_golden(f"retina/{name}")
        assert np.abs(found - theirs).max() <= 2e-5 * np.abs(theirs).max()


def test_matching_is_torchvisions():
    index = comparison.get_twin("retina").plain[0]["index"]
    np.testing.assert_array_equal(index, get_golden("retina/index"))
    assert set(np.unique(index)) == {-2, -1, 0, 1, 2, 3}


def test_losses_and_gradients_are_torchvisions():
    comparison.check_losses("retina", {"class_loss": "classification", "box_loss": "bbox_regression"})


def test_detections_are_torchvisions():
    comparison.compare_detections(comparison.get_twin("retina").plain[3], "retina", offset=0)
