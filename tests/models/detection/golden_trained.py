"""Add to golden_trained.safetensors what torchvision 0.28 and mmdetection 3.3.0 detect with the weights in it.

    PYTHONPATH=.:FOLDER python tests/models/detection/golden_trained.py

needs what golden_mmdetection.py needs. trained_twins.py has written the weights and the scenes.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.models.detection import golden_mmdetection, torch_twins, twins
from tests.models.detection.torch_twins import fill, keep_detections, pictures

CLASSES, WIDTH = twins.TRAINED["classes"], twins.TRAINED["width"]
BUILD = {
    "retina": partial(torch_twins.build_retina, CLASSES),
    "faster": partial(torch_twins.build_faster, CLASSES, WIDTH),
    "mask": partial(torch_twins.build_mask, CLASSES, WIDTH),
}
FILE = Path(__file__).with_suffix(".safetensors")


def detect(system: str, stored: dict[str, np.ndarray], images: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the detections; of sure ones also which cells of their masks, and which pixels, are above one half."""
    out: dict[str, np.ndarray] = {}
    model = fill(BUILD[system](), lambda name, _: twins.get_weight(stored, system, name)).eval()
    model.transform.postprocess = lambda found, *_: found  # which would paste the masks; pictures are not resized
    found = model(images)
    for one, image in zip(found, images, strict=True):
        if "masks" in one:
            sure = one["scores"] > twins.SURE
            cells, shape = one["masks"][sure], image.shape[1:]
            pasted = torch_twins.roi_heads.paste_masks_in_image(cells, one["boxes"][sure], shape)
            one["masks"], one["pasted"] = (torch.tensor(np.packbits(x[:, 0] > 0.5, -1)) for x in (cells, pasted))
    keep_detections(found, f"trained/{system}", out)
    return out


def detect_masks(stored: dict[str, np.ndarray], images: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the detections of SOLOv2."""
    out: dict[str, np.ndarray] = {}
    model = golden_mmdetection.make_model(CLASSES, lambda name, _: twins.get_weight(stored, "solo", name))
    made = golden_mmdetection.run_head(model, images)
    golden_mmdetection.keep_detections(model, made, tuple(images[0].shape[1:]), "trained/solo", out)
    return out


if __name__ == "__main__":
    kept = {name: x for name, x in load_file(FILE).items() if "/detections/" not in name}
    scenes = pictures({"image": kept["trained/image"][..., None].repeat(3, -1)})
    with torch.no_grad():
        for each in BUILD:
            kept |= detect(each, kept, scenes)
        kept |= detect_masks(kept, scenes)
    save_file({k: np.ascontiguousarray(x) for k, x in kept.items()}, FILE)
    print(sum(x.nbytes for x in kept.values()), {k: x.shape for k, x in kept.items() if "/detections/" in k})
