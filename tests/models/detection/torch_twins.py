"""torchvision's detectors as twins of ours, for scripts that make golden values and for benchmarks.

They need torch and torchvision. Where torchvision's compiled operators do not load, a greedy suppression in NumPy and
its own ROIAlign in Python, corrected beyond the map, take their place.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import numpy as np
import torch

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402
from torch import nn  # noqa: E402
from torchvision.models.detection import (  # noqa: E402
    anchor_utils,
    backbone_utils,
    faster_rcnn,
    mask_rcnn,
    retinanet,
    roi_heads,  # noqa: F401
    rpn,
)
from torchvision.models.resnet import BasicBlock  # noqa: E402
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7  # noqa: E402

from tests.models.detection import twins  # noqa: E402


def _suppress(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression, box by box."""
    order, keep = torch.argsort(scores, descending=True, stable=True), []
    iou = torchvision.ops.box_iou(boxes, boxes)
    while len(order):
        keep.append(int(order[0]))
        order = order[1:][~(iou[order[0], order[1:]] > threshold)]
    return torch.tensor(keep, dtype=torch.int64)


_library.impl("nms", _suppress, "CPU")
torchvision.ops.boxes._assert_has_ops = lambda: None
_roi_align = importlib.import_module("torchvision.ops.roi_align")
_interpolate = _roi_align._bilinear_interpolate


def _interpolate_inside(values, index, y, x, ymask, xmask):
    """Interpolate as the compiled ROIAlign does: samples more than a pixel outside the map are 0."""
    height, width = values.shape[-2:]
    rows, columns = (y >= -1) & (y <= height), (x >= -1) & (x <= width)
    inside = rows[:, None, :, None, :, None] & columns[:, None, None, :, None, :]
    return _interpolate(values, index, y, x, ymask, xmask) * inside


_roi_align._bilinear_interpolate = _interpolate_inside


class Backbone(nn.Module):
    """torchvision's ResNet of basic blocks, with any width and a stem of stride 1."""

    def __init__(self) -> None:
        super().__init__()
        w = twins.WIDTH
        self.conv1, self.bn1 = nn.Conv2d(3, w, 3, padding=1, bias=False), nn.BatchNorm2d(w)
        self.relu = nn.ReLU()
        inside = w
        for i in range(4):
            out, stride = w * 2**i, 2 if i else 1
            down = None
            if i:
                down = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            setattr(self, f"layer{i + 1}", nn.Sequential(BasicBlock(inside, out, stride, down)))
            inside = out


SIZES = {"min_size": twins.CANVAS[0], "max_size": twins.CANVAS[1], "image_mean": twins.MEAN, "image_std": twins.STD}

POOLED = [str(i) for i in range(len(twins.RPN["strides"]) - 1)]  # levels that regions are pooled from


def pyramid(stages: tuple[int, ...], extra) -> nn.Module:
    layers = {f"layer{i}": str(k) for k, i in enumerate(stages)}
    widths = [twins.WIDTH * 2 ** (i - 1) for i in stages]
    return backbone_utils.BackboneWithFPN(Backbone(), layers, widths, twins.FPN, extra)


def fill(model: nn.Module, draw: Callable[[str, Any], np.ndarray] = twins.draw) -> nn.Module:
    """Fill in the weights of the twins; BatchNorm keeps its statistics in training."""
    values = {name: torch.tensor(draw(name, x.shape)) for name, x in model.state_dict().items() if x.ndim}
    model.load_state_dict(values, strict=False)
    return model


def to_train(model: nn.Module) -> nn.Module:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def build_retina(classes: int = twins.CLASSES) -> nn.Module:
    """Build RetinaNet as in `ours.make_config`, with random weights."""
    backbone = pyramid((3, 4), LastLevelP6P7(twins.FPN, twins.FPN))
    sizes = tuple(tuple(int(4 * s * 2 ** (i / 3)) for i in range(3)) for s in twins.RETINA["strides"])
    anchors = anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return retinanet.RetinaNet(backbone, classes, anchor_generator=anchors, **SIZES, detections_per_img=40)


def _two_stages(classes: int, width: int) -> dict[str, Any]:
    """The arguments of Faster and Mask R-CNN as in `ours.make_config`; all anchors and regions are learned from."""
    strides = twins.RPN["strides"]
    return {
        "backbone": pyramid((2, 3, 4), LastLevelMaxPool()),
        **SIZES,
        "rpn_anchor_generator": anchor_utils.AnchorGenerator(
            tuple((8 * s,) for s in strides), ((0.5, 1.0, 2.0),) * len(strides)
        ),
        "rpn_head": rpn.RPNHead(twins.FPN, 3),
        "rpn_pre_nms_top_n_train": twins.RPN["before"][0],
        "rpn_pre_nms_top_n_test": twins.RPN["before"][1],
        "rpn_post_nms_top_n_train": twins.RPN["after"][0],
        "rpn_post_nms_top_n_test": twins.RPN["after"][1],
        "rpn_batch_size_per_image": 10**6,
        "box_roi_pool": MultiScaleRoIAlign(POOLED, 7, 2),
        "box_head": faster_rcnn.TwoMLPHead(twins.FPN * 49, width),
        "box_predictor": faster_rcnn.FastRCNNPredictor(width, classes + 1),
        "box_batch_size_per_image": 10**6,
        "box_detections_per_img": 40,
    }


def build_faster(classes: int = twins.CLASSES, width: int = twins.ROI["width"]) -> nn.Module:
    return faster_rcnn.FasterRCNN(**_two_stages(classes, width))


def build_mask(classes: int = twins.CLASSES, width: int = twins.ROI["width"]) -> nn.Module:
    return mask_rcnn.MaskRCNN(
        **_two_stages(classes, width),
        mask_roi_pool=MultiScaleRoIAlign(POOLED, 14, 2),
        mask_head=mask_rcnn.MaskRCNNHeads(twins.FPN, (twins.FPN,) * twins.MASK["depth"], 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(twins.FPN, twins.FPN, classes + 1),
    )


def pictures(batch: dict[str, np.ndarray] = twins.BATCH) -> list[torch.Tensor]:
    return [torch.tensor(x).permute(2, 0, 1) / 255 for x in batch["image"]]


def targets(offset: int, batch: dict[str, np.ndarray] = twins.BATCH) -> list[dict[str, torch.Tensor]]:
    """The objects of the batch, without padding; torchvision's two-stage classes begin at 1."""
    out = []
    for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True):
        real = labels >= 0
        out.append({"boxes": torch.tensor(boxes[real]), "labels": torch.tensor(labels[real]).long() + offset})
    return out


def keep_detections(found: list[dict[str, torch.Tensor]], prefix: str, out: dict[str, np.ndarray]) -> None:
    for i, detections in enumerate(found):
        out |= {f"{prefix}/detections/{i}/{name}": x.detach().numpy() for name, x in detections.items()}
