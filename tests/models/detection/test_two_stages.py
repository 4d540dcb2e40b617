"""Faster and Mask R-CNN against torchvision's, and what their padding must not do."""

import pytest

from tests.models.detection import comparison

LOSSES = {
    "rpn_class_loss": "loss_objectness",
    "rpn_box_loss": "loss_rpn_box_reg",
    "class_loss": "loss_classifier",
    "box_loss": "loss_box_reg",
}
SYSTEMS = {"faster": LOSSES, "mask": {**LOSSES, "mask_loss": "loss_mask"}}


@pytest.mark.parametrize("system", SYSTEMS)
def test_losses_and_gradients_are_torchvisions(system: str):
    comparison.check_losses(system, SYSTEMS[system])


@pytest.mark.parametrize("system", SYSTEMS)
def test_detections_are_torchvisions(system: str):
    comparison.compare_detections(comparison.get_twin(system).plain[3], system, offset=1)


def test_padding_changes_nothing():
    comparison.check_padding("mask", {"rpn_logits", "rpn_index", "regions", "roi_index", "class_logits", "mask_logits"})


def test_degenerate_objects_give_finite_losses():
    comparison.check_degenerate("mask")
