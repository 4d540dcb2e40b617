"""Compute with timm what genuine weights of EfficientNet-Lite0 make of photos, in `golden_genuine.npz`.

`python tests/models/weights/golden_genuine.py SHARED` writes the file again from the folder of shared data; it needs
torch and timm, but not nml_jax. The file holds, for 200 photos, the class with the highest logit, and the features
projected onto 16 random directions: relative distances between vectors are about those between their projections.
"""

import io
import runpy
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")


def list_photos(shared: Path) -> list[bytes]:
    """Return the JPEG of the first validation photo of each of Tiny ImageNet's 200 classes."""
    pack = dict(np.load(shared / "tinyimagenet32" / "val.npz"))
    first = [int(np.flatnonzero(pack["labels"] == label)[0]) for label in range(200)]
    return [pack["data"][pack["offsets"][i] : pack["offsets"][i + 1]].tobytes() for i in first]


def project(features: np.ndarray) -> np.ndarray:
    return features.astype(np.float64) @ np.random.default_rng(0).standard_normal((features.shape[1], 16))


def main() -> None:
    shared = Path(sys.argv[1])
    timm = runpy.run_path(str(Path(__file__).with_name("golden.py")))["timm"]()
    import torch
    from PIL import Image

    folder = shared / "efficientnet_lite0"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    photos = [transform(Image.open(io.BytesIO(photo)).convert("RGB")) for photo in list_photos(shared)]
    with torch.inference_mode():
        features = [model.forward_head(model.forward_features(x[None]), pre_logits=True) for x in photos]
        features = torch.cat(features)
        classes = model.get_classifier()(features).argmax(1)
    np.savez_compressed(FILE, classes=classes.numpy().astype(np.int16), features=project(features.numpy()))


if __name__ == "__main__":
    main()
