"""Compute with timm the outputs in `golden.safetensors`, from weights and images that NumPy can draw again.

`python tests/models/weights/golden.py` writes the file again; it needs torch, timm and safetensors, but not nml_jax.
The tests only need NumPy and the file: `weights` and `images` depend on names and shapes alone.
"""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FILE = Path(__file__).with_suffix(".safetensors")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# name: (timm's name, its arguments, image size, batch, train)
CASES = {
    "resnet50": ("resnet50", {}, 224, 2, False),
    "resnet18_train": ("resnet18", {"num_classes": 10}, 64, 4, True),
    "vit_b": ("vit_base_patch16_224", {}, 224, 2, False),
    "vit_ti_gap": (
        "vit_tiny_patch16_224",
        {"img_size": 64, "depth": 2, "num_classes": 10, "global_pool": "avg", "fc_norm": False},
        64,
        2,
        False,
    ),
}


def rng(name: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw a state dict in which every tensor matters and activations stay near 1."""
    tensors = {}
    for name, shape in shapes.items():
        z = rng(name).standard_normal(shape, np.float32)
        if name.endswith("num_batches_tracked"):
            z = np.array(7)
        elif name.endswith("running_var"):
            z = np.exp(z / 4)
        elif len(shape) == 1:
            z = z / 8 + name.endswith("weight")  # the scale of a normalisation, or a bias or mean
        elif name not in ("cls_token", "pos_embed"):
            z /= np.sqrt(np.prod(shape[1:]))  # fan-in
        tensors[name] = np.asarray(z, np.int64 if name.endswith("tracked") else np.float32)
    return tensors


def images(case: str) -> np.ndarray:
    """Draw images uint8 [B, H, W, 3] of smooth noise, so that convolutions see structure."""
    _, _, size, batch, _ = CASES[case]
    coarse = rng(case).integers(0, 256, (batch, size // 8, size // 8, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@functools.cache
def timm():
    """Import timm, even if torchvision lacks its compiled half: define the two operators, which nothing here uses."""
    import torch

    try:
        import timm
    except RuntimeError:
        timm_needs = torch.library.Library("torchvision", "DEF")
        timm_needs.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        timm_needs.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import timm

        timm.torchvision_operators = timm_needs  # keeps the operators alive
    return timm


def run(model, x: np.ndarray, *, train: bool) -> dict[str, np.ndarray]:
    """Return features, logits, the token or mean after each stage or block, and BatchNorm statistics afterwards."""
    import torch

    out = {}

    def keep(name, _module, _inputs, value):
        out[name] = value.mean((2, 3)) if value.ndim == 4 else value[:, 0]

    for name, module in model.named_modules():
        prefix, _, index = name.rpartition(".")
        if prefix == "blocks":
            module.register_forward_hook(functools.partial(keep, f"block{index}"))
        elif name.startswith("layer") and not prefix:
            module.register_forward_hook(functools.partial(keep, f"stage{name[-1]}"))
    model.train(train)
    x = (x.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    with torch.no_grad():
        out["features"] = model.forward_head(model.forward_features(torch.from_numpy(x.transpose(0, 3, 1, 2))), True)
        out["logits"] = model.get_classifier()(out["features"])
    if train:
        out |= {name: value for name, value in model.state_dict().items() if "running" in name}
    return {name: np.ascontiguousarray(value.numpy()) for name, value in out.items()}


def main() -> None:
    import torch

    tensors, about = {}, {"timm": timm().__version__, "torch": torch.__version__, "shapes": {}}
    for case, (name, kwargs, _, _, train) in CASES.items():
        model = timm().create_model(name, **kwargs)
        shapes = about["shapes"][case] = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes).items()})
        tensors |= {f"{case}/{key}": value for key, value in run(model, images(case), train=train).items()}
        print(case, {key: float(value.std()) for key, value in tensors.items() if key.startswith(f"{case}/")})
    save_file(tensors, FILE, metadata={"about": json.dumps(about)})


if __name__ == "__main__":
    main()
