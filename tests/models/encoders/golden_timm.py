"""Compute with timm, in float64, the outputs in `golden_timm.safetensors`, from weights and images drawn by NumPy.

`python -m tests.models.encoders.golden_timm` writes the file again; it needs torch, timm and safetensors, but not
nml_jax. The tests only need NumPy and the file: `draw` and `images` depend on names and shapes alone.
"""

import functools
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.models.weights import golden

FILE = Path(__file__).with_suffix(".safetensors")
MEAN, STD = np.float32((0.5, 0.4, 0.45)), np.float32((0.25, 0.3, 0.2))

# name: (timm's name, its arguments, image size)
CASES = {
    # stage 1: 8 places, shifted windows of 4; stage 2: a window as large as the map
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4,
                                              "img_size": 32}, 32),
    # 10, 5 and 3 places: sides that are no multiple of the window, odd ones that are merged, a map below the window
    "swin_padded": ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (2, 1, 1), "num_heads": (1, 2, 4),
                                                     "window_size": 4, "img_size": 40}, 40),
    "bit": ("resnetv2_50x1_bit", {"layers": (2, 1), "channels": (128, 256), "stem_chs": 32}, 33),
    "clip": ("vit_base_patch16_clip_224", {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}, 32),
    "dinov2": ("vit_small_patch14_dinov2", {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 42}, 42),
}  # fmt: skip
CLASSES = 10
GRIDS = {"larger": (3, 5), "smaller": (5, 2)}  # name: sides of the grids that position embeddings are read from and for


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw a state dict in which every tensor matters and activations stay near 1."""
    return {name: x + np.float32(name.endswith("gamma")) for name, x in golden.weights(shapes).items()}


def images(case: str) -> np.ndarray:
    """Draw two images uint8 [2, S, S, 3] of smooth noise, so that convolutions see structure."""
    size = CASES[case][2]
    coarse = golden.rng(case).integers(0, 256, (2, -(-size // 8), -(-size // 8), 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]


def shrink(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keep one number for each place of a map [B, ..., C]: a sum of the channels with unlike weights."""
    return {
        name: x @ np.cos(np.arange(x.shape[-1])) if name.endswith(("_map", "_tokens")) else x
        for name, x in outputs.items()
    }


def measure_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the root mean square of the error in standard deviations."""
    return float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())


def run(model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return features, logits and every stage or block: "_map" channels last, or "_tokens"."""
    import torch

    out = {}

    def keep(name, _module, _inputs, value):
        out[name] = value

    for name, module in model.named_modules():
        prefix, _, index = name.rpartition(".")
        if prefix == "blocks":
            module.register_forward_hook(functools.partial(keep, f"block{index}_tokens"))
        elif prefix in ("layers", "stages"):
            module.register_forward_hook(functools.partial(keep, f"stage{int(index) + 1}_map"))
        elif name == "stem" or (name == "patch_embed" and hasattr(model, "layers")):
            module.register_forward_hook(functools.partial(keep, "stem_map"))
        elif name == "norm_pre":
            module.register_forward_hook(functools.partial(keep, "embed_tokens"))
    with torch.no_grad():
        out["features"] = model.forward_head(model.forward_features(torch.from_numpy(x.transpose(0, 3, 1, 2))), True)
        out["logits"] = model(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    channels_last = not hasattr(model, "stages")
    return {
        name: np.ascontiguousarray(x if channels_last or x.ndim < 4 else x.permute(0, 2, 3, 1)).astype(np.float64)
        for name, x in out.items()
    }


def draw_positions(name: str) -> np.ndarray:
    """Draw position embeddings [1, 1 + n², 8], the class token's first."""
    return golden.rng(name).standard_normal((1, 1 + GRIDS[name][0] ** 2, 8), np.float32)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    tensors, about = {}, {"timm": golden.timm().__version__, "torch": torch.__version__, "shapes": {}, "float32": {}}
    for case, (name, kwargs, _) in CASES.items():
        # timm's constructors of BiT fix the layers, so this calls what they call.
        make = golden.timm().create_model if case != "bit" else golden.timm().models.resnetv2._create_resnetv2_bit
        model = make(name, num_classes=CLASSES, **kwargs).eval()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        about["shapes"][case] = shapes
        model.load_state_dict({key: torch.from_numpy(value) for key, value in draw(shapes).items()})
        x = (images(case) / 255 - MEAN) / STD
        rough, exact = shrink(run(model, np.float32(x))), shrink(run(model.double(), x))
        about["float32"][case] = {key: measure_error(rough[key], exact[key]) for key in exact}
        tensors |= {f"{case}/{key}": value for key, value in exact.items()}
        features = exact["features"]
        print(case, np.abs(features[0] - features[1]).max() / features.std(), about["float32"][case])
    resample = golden.timm().layers.resample_abs_pos_embed
    for name, (_, new) in GRIDS.items():
        tensors[name] = resample(torch.from_numpy(draw_positions(name)), [new, new]).numpy()
    save_file(tensors, FILE, metadata={"about": json.dumps(about)})


if __name__ == "__main__":
    main()
