"""Hash what timm's and open_clip's evaluation transforms make of drawn images, in `golden_transforms.json`.

`python tests/data/images/golden_transforms.py` writes the file again; it needs torch, timm and open_clip, but not
nml_jax. The tests only need NumPy and the file.
"""

import hashlib
import itertools
import json
import runpy
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
SHAPES = ((48, 64), (101, 37), (33, 33), (75, 160))  # height, width

# (library, pixels, crop, filter, resize mode, shape of the image), of every combination
CASES = [
    *itertools.product(
        ("timm",), (32, 75), (0.875, 0.904, 1.0), ("bilinear", "bicubic"), ("shortest", "squash"), SHAPES
    ),
    *itertools.product(("open_clip",), (32, 75), (1.0,), ("bilinear", "bicubic"), ("shortest", "squash"), SHAPES),
]


def image(shape: tuple[int, int]) -> np.ndarray:
    """Draw a photo-like image uint8 [height, width, 3]."""
    rng = np.random.default_rng(shape)
    coarse = rng.integers(0, 256, (shape[0] // 8 + 1, shape[1] // 8 + 1, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return np.clip(coarse[: shape[0], : shape[1]] + rng.integers(-40, 41, (*shape, 3)), 0, 255).astype(np.uint8)


def hash_image(x: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(x)).hexdigest()[:12]


def transform(library: str, size: int, crop: float, name: str, mode: str, shape: tuple[int, int]) -> np.ndarray:
    """Return uint8 [size, size, 3]."""
    runpy.run_path(str(Path(__file__).parents[2] / "models" / "weights" / "golden.py"))["timm"]()
    from PIL import Image

    given = Image.fromarray(image(shape))
    if library == "timm":
        from timm.data import create_transform

        mode = {"shortest": "center", "squash": "squash"}[mode]
        steps = create_transform(
            (3, size, size), interpolation=name, crop_pct=crop, crop_mode=mode, is_training=False, use_prefetcher=True
        )
        return np.asarray(steps(given)).transpose(1, 2, 0)
    from open_clip.transform import image_transform
    from torchvision.transforms import ToTensor

    for step in image_transform(size, is_train=False, resize_mode=mode, interpolation=name).transforms:
        if isinstance(step, ToTensor):
            break
        given = step(given)
    return np.asarray(given)


def main() -> None:
    FILE.write_text(json.dumps([hash_image(transform(*case)) for case in CASES]) + "\n")
    print(len(CASES), "cases")


if __name__ == "__main__":
    main()
