"""Write golden_mmdetection.safetensors: what the SOLOv2 head of mmdetection 3.3.0 computes for the twin of `twins.py`.

    PYTHONPATH=.:FOLDER python tests/models/detection/golden_mmdetection.py

needs what golden_torchvision.py needs, and in FOLDER the wheels mmdet 3.3.0, mmengine 0.10.7, mmcv-lite 2.2.0, addict,
packaging, six, yapf, rich, termcolor, platformdirs and opencv-python-headless without what they depend on. Only the
files of the head are imported: mmcv's compiled operators are not needed.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.models.detection import torch_twins as tv
from tests.models.detection import twins
from tests.models.detection.golden_torchvision import keep_losses


def _import_head():
    """Import the head, with empty packages around it."""
    folder = Path(importlib.util.find_spec("mmdet").origin).parent  # type: ignore[union-attr, arg-type]
    for name in ("", ".models", ".models.dense_heads", ".models.layers", ".models.utils", ".models.losses"):
        shell = types.ModuleType(f"mmdet{name}")
        shell.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[f"mmdet{name}"] = shell
    for name, holds in {
        "mmdet.structures": ("SampleList",),
        "mmdet.structures.bbox": ("BaseBoxes", "get_box_type", "stack_boxes"),
        "mmdet.structures.mask": ("BitmapMasks", "PolygonMasks"),
        "mmcv.ops": ("sigmoid_focal_loss",),
    }.items():
        shell = types.ModuleType(name)
        vars(shell).update(dict.fromkeys(holds, list))
        sys.modules[name] = shell
    utils = types.ModuleType("mmdet.utils")
    vars(utils).update(vars(importlib.import_module("mmengine.utils")))
    spec = importlib.util.spec_from_file_location("typing_utils", folder / "utils" / "typing_utils.py")
    typing_utils = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(typing_utils)  # type: ignore[union-attr]
    vars(utils).update({name: x for name, x in vars(typing_utils).items() if not name.startswith("__")})
    sys.modules["mmdet.utils"] = utils
    misc = importlib.import_module("mmdet.models.utils.misc")
    vars(sys.modules["mmdet.models.utils"]).update({k: x for k, x in vars(misc).items() if not k.startswith("__")})
    matrix = importlib.import_module("mmdet.models.layers.matrix_nms")
    sys.modules["mmdet.models.layers"].mask_matrix_nms = matrix.mask_matrix_nms
    for name in ("focal_loss", "dice_loss"):
        importlib.import_module(f"mmdet.models.losses.{name}")
    return importlib.import_module("mmdet.models.dense_heads.solov2_head").SOLOV2Head


class Masks:
    """Masks of objects, as the head asks for them."""

    def __init__(self, masks: np.ndarray) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def to_tensor(self, dtype, device):
        return torch.tensor(self.masks).to(dtype=dtype, device=device)


def make_model(classes: int = twins.CLASSES, draw: Callable[[str, Any], np.ndarray] = twins.draw) -> torch.nn.Module:
    from mmengine.config import ConfigDict

    own, strides = twins.SOLO, twins.SOLO["strides"]
    head = _import_head()(
        num_classes=classes,
        in_channels=twins.FPN,
        feat_channels=own["width"],
        stacked_convs=own["depth"],
        strides=[2 * strides[0], *strides[1:-1], strides[-2]],
        scale_ranges=own["ranges"],
        pos_scale=0.2,
        num_grids=list(own["grids"]),
        cls_down_index=0,
        norm_cfg={"type": "GN", "num_groups": own["groups"], "requires_grad": True},
        mask_feature_head={
            "feat_channels": own["mask_width"], "start_level": 0, "end_level": 2, "out_channels": own["kernel"],
            "mask_stride": strides[0], "norm_cfg": {"type": "GN", "num_groups": own["groups"], "requires_grad": True},
        },
        loss_mask={"type": "DiceLoss", "use_sigmoid": True, "loss_weight": 3.0},
        loss_cls={"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
        test_cfg=ConfigDict(nms_pre=500, score_thr=0.1, mask_thr=0.5, filter_thr=0.05, kernel="gaussian", sigma=2.0,
                            max_per_img=40),
    )  # fmt: skip
    model = torch.nn.Module()
    model.backbone, model.mask_head = tv.pyramid((2, 3, 4), tv.LastLevelMaxPool()), head
    return tv.to_train(tv.fill(model, draw))


def run_head(model: torch.nn.Module, pictures: list[torch.Tensor]) -> Any:
    """Return the kernels, the logits and the features of pictures."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (twins.MEAN, twins.STD))
    return model.mask_head(list(model.backbone(torch.stack([(x - mean) / std for x in pictures])).values()))


def keep_detections(model: torch.nn.Module, made: Any, canvas: Any, prefix: str, out: dict[str, np.ndarray]) -> None:
    """Keep the detections of what `run_head` made of pictures that fill a canvas."""
    kernels, logits, features = made
    metas = [{"img_shape": canvas, "ori_shape": canvas}] * len(features)
    with torch.no_grad():
        found = model.mask_head.predict_by_feat(kernels, [x.clone() for x in logits], features, metas)
    for i, one in enumerate(found):
        out[f"{prefix}/detections/{i}/scores"] = one.scores.numpy()
        out[f"{prefix}/detections/{i}/labels"] = one.labels.numpy()
        out[f"{prefix}/detections/{i}/masks"] = np.packbits(one.masks.numpy(), -1)


def run(out: dict[str, np.ndarray]) -> None:
    from mmengine.structures import InstanceData

    model = make_model()
    head = model.mask_head
    kernels, logits, features = made = run_head(model, tv.pictures())
    objects = []
    for i, target in enumerate(tv.targets(0)):
        masks = Masks(twins.paint_masks(twins.BATCH["boxes"][i], twins.BATCH["masks"][i])[: len(target["boxes"])])
        objects.append(InstanceData(bboxes=target["boxes"], labels=target["labels"], masks=masks))
    flat = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in logits], 1)
    out["solo/logits"] = flat.detach().numpy()
    start = np.cumsum([0, *(side**2 for side in twins.SOLO["grids"])])
    all_kernels = torch.cat([x.flatten(2) for x in kernels], 2)
    for i, one in enumerate(objects):
        painted, classes, _, cells = head._get_targets_single(one, featmap_sizes=features.shape[-2:])
        cell = np.concatenate([np.array(x, np.int64) + first for x, first in zip(cells, start, strict=False)])
        out[f"solo/{i}/cell"] = cell.astype(np.int32)
        out[f"solo/{i}/class"] = torch.cat([x.flatten() for x in classes]).numpy().astype(np.int32)
        out[f"solo/{i}/painted"] = np.packbits(torch.cat(painted).numpy(), -1)
        masks = torch.einsum("cp,chw->phw", all_kernels[i][:, cell], features[i])
        out[f"solo/{i}/masks"] = masks.detach().numpy()[:, ::4, ::4].copy()
    keep_losses(model, head.loss_by_feat(kernels, logits, features, objects, []), "solo", out)
    keep_detections(model, made, twins.CANVAS, "solo", out)


if __name__ == "__main__":
    golden: dict[str, np.ndarray] = {}
    run(golden)
    save_file({k: np.ascontiguousarray(x) for k, x in golden.items()}, Path(__file__).with_suffix(".safetensors"))
    print(sum(x.nbytes for x in golden.values()), {k: x.shape for k, x in golden.items()})
