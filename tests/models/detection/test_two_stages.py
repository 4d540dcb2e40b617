"""Mask R-CNN, which holds all of Faster R-CNN, against torchvision's."""

from tests.models.detection import comparison

LOSSES = {
    "rpn_class_loss": "loss_objectness",
    "rpn_box_loss": "loss_rpn_box_reg",
    "class_loss": "loss_classifier",
    "box_loss": "loss_box_reg",
    "mask_loss": "loss_mask",
}


def test_losses_and_gradients_are_torchvisions():
    comparison.check_losses("mask", LOSSES)


def test_detections_are_torchvisions():
    comparison.compare_detections(comparison.get_twin("mask").plain[3], "mask", offset=1)
