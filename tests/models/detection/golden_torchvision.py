"""Write golden_torchvision.safetensors: what torchvision 0.28 computes with the weights and pictures of `twins.py`.

    PYTHONPATH=. python tests/models/detection/golden_torchvision.py

needs torch, torchvision and safetensors; see torch_twins.py.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from tests.models.detection import torch_twins, twins
from tests.models.detection.torch_twins import fill, keep_detections, pictures, targets, to_train, torchvision


def keep_losses(model: nn.Module, losses: dict[str, torch.Tensor], prefix: str, out: dict[str, np.ndarray]) -> None:
    """Keep the losses, and the gradient of their sum."""
    sum(losses.values()).backward()
    out |= {f"{prefix}/loss/{name}": x.detach().numpy() for name, x in losses.items()}
    square = 0.0
    for name, x in model.named_parameters():
        if x.grad is not None:
            square += float((x.grad.double() ** 2).sum())
            if any(part in name for part in twins.KEPT):
                out[f"{prefix}/gradient/{name}"] = x.grad.numpy().copy()
    out[f"{prefix}/gradient_norm"] = np.float64(square) ** 0.5


def make_retina(out: dict[str, np.ndarray]) -> None:
    model = to_train(fill(torch_twins.build_retina()))
    images, _ = model.transform(pictures())
    features = list(model.backbone(images.tensors).values())
    heads = model.head(features)
    made = model.anchor_generator(images, features)
    out |= {f"retina/p{i}": x.detach().numpy() for i, x in enumerate(features)}
    out |= {"retina/logits": heads["cls_logits"].detach().numpy(), "retina/anchors": made[0].numpy().astype(np.int16)}
    out["retina/deltas"] = heads["bbox_regression"].detach().numpy()
    matched = [
        model.proposal_matcher(torchvision.ops.box_iou(t["boxes"], a)) if len(t["boxes"]) else torch.full((len(a),), -1)
        for t, a in zip(targets(0), made, strict=True)
    ]
    out["retina/index"] = torch.stack(matched).numpy().astype(np.int8)
    keep_losses(model, model(pictures(), targets(0)), "retina", out)
    keep_detections(model.eval()(pictures()), "retina", out)


def make_two_stages(out: dict[str, np.ndarray]) -> None:
    """Run Mask R-CNN; all anchors and all regions are learned from, so that nothing is drawn."""
    model = to_train(fill(torch_twins.build_mask()))
    wanted = targets(1)
    for i, target in enumerate(wanted):
        target["masks"] = torch.tensor(twins.paint_masks(twins.BATCH["boxes"][i], twins.BATCH["masks"][i]))[
            : len(target["boxes"])
        ]
    losses = model(pictures(), wanted)
    keep_losses(model, losses, "mask", out)
    with torch.no_grad():
        keep_detections(model.eval()(pictures()), "mask", out)


if __name__ == "__main__":
    torch.manual_seed(0)
    golden: dict[str, np.ndarray] = {}
    make_retina(golden)
    make_two_stages(golden)
    for name in [name for name in golden if name.endswith("/masks")]:  # pasted into the picture: more than half
        golden[name] = np.packbits(golden[name][:, 0] > 0.5)
    save_file({k: np.ascontiguousarray(x) for k, x in golden.items()}, Path(__file__).with_suffix(".safetensors"))
    print(sum(x.nbytes for x in golden.values()), {k: x.shape for k, x in golden.items()})
