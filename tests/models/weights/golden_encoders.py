"""Compute with timm, in float64, the outputs of small convolutional encoders in `golden_encoders.safetensors`.

`python tests/models/weights/golden_encoders.py` writes the file again; it needs torch, timm and safetensors, but not
nml_jax. The tests only need NumPy and the file, which holds in float64: features, logits, the mean of every stage, and
BatchNorm statistics of one batch, without which gates and SiLU would extinguish the signal. Beside them is how far
torch's own float32 is from float64 (root mean square, in standard deviations).
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
MEAN, STD, BATCH, CLASSES = golden.MEAN, golden.STD, 4, 7

SE, LITE = "_se0.25", ""
STAGES = (
    "ds_r1_k3_s1_e1_c16", "ir_r2_k3_s2_e6_c24", "ir_r2_k5_s2_e6_c40", "ir_r3_k3_s2_e6_c80",
    "ir_r3_k5_s1_e6_c112", "ir_r4_k5_s2_e6_c192", "ir_r1_k3_s1_e6_c320",
)  # fmt: skip


def efficientnet(stages: int, width: float, depth: float, gate: str, act: str, **kwargs):
    """Build an EfficientNet of the first stages of B0, or of Lite, with timm's own builder."""
    golden.timm()
    from timm.models import _efficientnet_builder as builder
    from timm.models.efficientnet import EfficientNet
    from torch import nn

    rounded = functools.partial(builder.round_channels, multiplier=width)
    return EfficientNet(
        builder.decode_arch_def([[stage + gate] for stage in STAGES[:stages]], depth),
        num_features=rounded(1280),
        round_chs_fn=rounded,
        act_layer={"silu": nn.SiLU, "relu6": nn.ReLU6}[act],
        norm_layer=functools.partial(nn.BatchNorm2d, eps=kwargs.pop("eps")),
        num_classes=CLASSES,
        **kwargs,
    )


def clip_convnext():
    """Build open_clip's CLIP of a small ConvNeXt with an MLP as its head, and a small text tower."""
    golden.timm()
    import open_clip
    from timm.models import _registry
    from timm.models.convnext import _create_convnext

    small = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
    known = _registry._model_entrypoints["convnext_tiny"]
    _registry._model_entrypoints["convnext_tiny"] = lambda **kwargs: _create_convnext(
        "convnext_tiny", **small, **{key: value for key, value in kwargs.items() if value is not None}
    )
    vision = {"timm_model_name": "convnext_tiny", "timm_pool": "", "timm_proj": "mlp", "image_size": 64}
    text = {"context_length": 5, "vocab_size": 9, "width": 8, "heads": 2, "layers": 1}
    model = open_clip.CustomTextCLIP(20, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text))
    _registry._model_entrypoints["convnext_tiny"] = known
    return model


def convnext(name: str = "convnext_tiny", **kwargs):
    """Build a ConvNeXt of four stages of one block, or of two."""
    kwargs = {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1)} | kwargs
    return golden.timm().create_model(name, num_classes=CLASSES, **kwargs)


# name: (constructor, pixels)
TF = {"eps": 1e-3, "pad_type": "same"}
CASES = {
    "tf_efficientnet": (functools.partial(efficientnet, 7, 0.25, 0.5, SE, "silu", **TF), 64),
    "tf_efficientnet_odd": (functools.partial(efficientnet, 3, 0.5, 0.5, SE, "silu", **TF), 75),
    "efficientnet_odd": (functools.partial(efficientnet, 3, 0.5, 1.0, SE, "silu", eps=1e-5), 75),
    "efficientnet_lite0": (functools.partial(efficientnet, 4, 0.25, 0.5, LITE, "relu6", **TF), 64),
    "convnext": (convnext, 64),
    "clip_convnext": (clip_convnext, 64),
    "convnext_mlp_odd": (functools.partial(convnext, "convnext_large_mlp", head_hidden_size=48), 75),
}


def images(case: str) -> np.ndarray:
    """Draw images uint8 [4, S, S, 3], of which each differs in scale and colour, and which have structure and noise."""
    size, rng = CASES[case][1], golden.rng(case)
    coarse = rng.integers(0, 256, (BATCH, size // 8 + 1, size // 8 + 1, 3)).repeat(8, axis=1).repeat(8, axis=2)
    noise = rng.integers(-30, 31, (BATCH, size, size, 3))
    return np.clip(coarse[:, :size, :size] + noise, 0, 255).astype(np.uint8)


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw a state dict as in golden.py, with layer scales near 1 so that the blocks matter."""
    tensors = golden.weights(shapes)
    return {name: 1 + value if name.endswith("gamma") else value for name, value in tensors.items()}


def run(model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return features, logits and the mean over the output of each stage, in the dtype of x."""
    import torch

    out = {}

    def keep(name, _module, _inputs, value):
        out[name] = value.mean((2, 3))

    for name, module in model.named_modules():
        prefix, _, index = name.removeprefix("visual.trunk.").rpartition(".")
        if prefix in ("blocks", "stages"):
            module.register_forward_hook(functools.partial(keep, f"stage{int(index) + 1}"))
        elif name.removeprefix("visual.trunk.") in ("stem", "bn1"):
            module.register_forward_hook(functools.partial(keep, "stem"))
    with torch.no_grad():
        if hasattr(model, "encode_image"):
            out["features"] = model.visual.trunk(torch.from_numpy(x))
            out["embedding"] = torch.nn.functional.normalize(model.visual.head(out["features"]), dim=1)
            return {name: np.ascontiguousarray(value.numpy()) for name, value in out.items()}
        out["features"] = model.forward_head(model.forward_features(torch.from_numpy(x)), pre_logits=True)
        out["logits"] = model.get_classifier()(out["features"])
    return {name: np.ascontiguousarray(value.numpy()) for name, value in out.items()}


def take_statistics(model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Replace the running statistics of BatchNorm by those of one batch, as float32."""
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    model.train()
    with torch.no_grad():
        if norms:
            model(torch.from_numpy(x))
    model.eval()
    return {name: value.numpy() for name, value in model.state_dict().items() if "running" in name}


def normalise(x: np.ndarray, dtype: type) -> np.ndarray:
    """Normalise images with float32 constants in `dtype`, channels first.

    In float32, multiply by reciprocals as XLA does, so that torch's network gets the pixels that ours gets.
    """
    whole, mean, std = (np.asarray(value, np.float32).astype(dtype) for value in (255, MEAN, STD))
    x = x.astype(dtype)
    x = (x / whole - mean) / std if dtype is np.float64 else (x * (1 / whole) - mean) * (1 / std)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def measure(x: np.ndarray, exact: np.ndarray) -> float:
    """Return the root mean square of the difference, in standard deviations of the exact values."""
    return float(np.sqrt(np.mean((x - exact) ** 2)) / exact.std())


def main() -> None:
    import torch

    tensors, about = {}, {"timm": golden.timm().__version__, "torch": torch.__version__, "shapes": {}, "float32": {}}
    for case, (make, _) in CASES.items():
        model = make()
        shapes = about["shapes"][case] = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes).items()})
        state = take_statistics(model, normalise(images(case), np.float32))
        narrow = run(model.eval(), normalise(images(case), np.float32))
        wide = run(model.double(), normalise(images(case), np.float64))
        about["float32"][case] = {key: measure(narrow[key], wide[key]) for key in wide}
        tensors |= {f"{case}/{key}": value for key, value in wide.items()}
        tensors |= {f"{case}/state/{key}": value for key, value in state.items()}
        apart = np.abs(wide["features"][0] - wide["features"][1]).max() / wide["features"].std()
        print(case, "two images differ by", apart, about["float32"][case])
    save_file(tensors, FILE, metadata={"about": json.dumps(about)})


if __name__ == "__main__":
    main()
