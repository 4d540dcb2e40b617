"""Compute with open_clip the outputs in `golden_clip.safetensors`, from inputs that NumPy can draw again.

`python tests/models/weights/golden_clip.py` writes the file again; it needs torch, timm, open_clip and safetensors, but
not nml_jax. As for `golden.py`, the tests only need NumPy and the file.
"""

import functools
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import save_file

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden.py"))))
FILE = Path(__file__).with_suffix(".safetensors")
MEAN, STD = golden.MEAN, golden.STD
CONTEXT, VOCAB = 12, 99
TEXT = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 48, "heads": 3, "layers": 2}
RESNET = {"layers": (1, 2, 1, 1), "width": 16, "image_size": 64}

# name: (class of open_clip, its arguments, vision_cfg, image size, train)
CASES = {
    "resnet": ("CLIP", {}, RESNET, 64, False),
    "resnet_train": ("CLIP", {}, RESNET, 64, True),
    "vit": (
        "CLIP",
        {"quick_gelu": True, "init_logit_bias": -10.0},
        {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
        32,
        False,
    ),
    "vit_gap": (
        "CLIP",
        {},
        {"layers": 1, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32, "pool_type": "avg"},
        32,
        False,
    ),
    "timm": ("CustomTextCLIP", {}, {"timm_model_name": "resnet18", "image_size": 64}, 64, False),
}


def batch(case: str) -> dict[str, np.ndarray]:
    """Draw smooth images uint8 [4, S, S, 3], and texts int32 [6, L]: start, words, end (highest id), padding (0)."""
    size = CASES[case][3]
    coarse = golden.rng(case).integers(0, 256, (4, size // 8, size // 8, 3), np.uint8)
    text = golden.rng(f"{case} text").integers(1, VOCAB - 2, (6, CONTEXT), np.int32)
    text[:, 0] = VOCAB - 2
    for row, end in zip(text, (1, 2, 5, 7, 10, 11), strict=True):
        row[end], row[end + 1 :] = VOCAB - 1, 0
    return {"image": coarse.repeat(8, axis=1).repeat(8, axis=2), "text": text}


def create(case: str):
    """Create the torch module, with open_clip's own random weights."""
    golden.timm()  # first, as it mends torchvision
    import open_clip

    kind, kwargs, vision, _, _ = CASES[case]
    configs = open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**TEXT)
    return getattr(open_clip, kind)(24, *configs, **kwargs)


def run(model, inputs: dict[str, np.ndarray], *, train: bool) -> dict[str, np.ndarray]:
    """Return embeddings, logits, outputs of the image tower's stages or blocks, and BatchNorm statistics afterwards."""
    import torch

    out = {}

    def keep(name, _module, _inputs, value):
        out[name] = value.mean((2, 3)) if value.ndim == 4 else value[:, 0]

    for name, module in model.named_modules():
        prefix, _, last = name.rpartition(".")
        if prefix == "visual.transformer.resblocks":
            module.register_forward_hook(functools.partial(keep, f"block{last}"))
        elif prefix in ("visual", "visual.trunk") and last.startswith("layer"):
            module.register_forward_hook(functools.partial(keep, f"stage{last[-1]}"))
    model.train(train)
    image = (inputs["image"].astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    with torch.no_grad():
        out["embedding"] = model.encode_image(torch.from_numpy(image.transpose(0, 3, 1, 2)), normalize=True)
        out["text_embedding"] = model.encode_text(torch.from_numpy(inputs["text"]).long(), normalize=True)
        out["logits"] = model.logit_scale.exp() * out["embedding"] @ out["text_embedding"].T
        if model.logit_bias is not None:
            out["logits"] = out["logits"] + model.logit_bias
    if train:
        out |= {name: value for name, value in model.state_dict().items() if "running" in name}
    return {name: np.ascontiguousarray(value.numpy()) for name, value in out.items()}


def main() -> None:
    import torch

    tensors, shapes = {}, {}
    for case, (_, _, _, _, train) in CASES.items():
        model = create(case)
        shapes[case] = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict({key: torch.from_numpy(value) for key, value in golden.weights(shapes[case]).items()})
        tensors |= {f"{case}/{key}": value for key, value in run(model, batch(case), train=train).items()}
        print(case, {key: float(value.std()) for key, value in tensors.items() if key.startswith(f"{case}/")})
    import open_clip

    about = {"open_clip": open_clip.__version__, "torch": torch.__version__, "shapes": shapes}
    save_file(tensors, FILE, metadata={"about": json.dumps(about)})


if __name__ == "__main__":
    main()
