"""Open exported folders in timm, open_clip and transformers, and keep what they say in `golden_export.json`.

    python tests/export/golden_export.py write FOLDER         # needs nml_jax: exports runs of random weights
    python tests/export/golden_export.py open FOLDER [FILE]   # needs torch, timm, open_clip and transformers alone

The first step also writes photos, and the features, logits and embeddings that nml_jax computes of them. The second one
loads every folder strictly, runs each library's own preprocessing and network on the same photos, and writes names,
shapes, preprocessing and the largest differences, in standard deviations, to `golden_export.json`. It fails if a
difference exceeds BAR or a tensor that a library holds differs by a bit. The suite compares its own folders with the
file, and so needs none of the libraries; test_libraries.py does both steps again.
"""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_suffix(".json")
BAR = 5e-4  # standard deviations
TEXTS = ["A red square", "two  cats &amp; a café", "an emoji of a bee, 🐝, and much more than twelve tokens of text"]


def draw_photos(count: int = 6) -> list[np.ndarray]:
    """Draw coarse photos uint8 [61, 83, 3] or [70, 64, 3]."""
    rng = np.random.default_rng(0)
    sizes = [(61, 83), (70, 64)]
    tops = np.linspace(256, 40, count).astype(int)  # from bright to dark, so that every network tells them apart
    coarse = [rng.integers(0, top, (9, 9, 3), np.uint8) for top in tops]
    return [x.repeat(10, 0).repeat(10, 1)[: sizes[i % 2][0], : sizes[i % 2][1]] for i, x in enumerate(coarse)]


# ---- with nml_jax ----------------------------------------------------------------------------------------------------


def write(folder: Path) -> None:
    """Export a run of random weights for each case, with photos and our outputs of them."""
    sys.path.insert(0, str(ROOT))
    from PIL import Image

    from nml_jax.export.__main__ import main
    from tests.scenes import leaving

    (folder / "photos").mkdir(parents=True)
    for i, pixels in enumerate(draw_photos()):
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    for name, overrides in (leaving.TINY | leaving.CLIPS | leaving.FULL).items():
        images = view_photos(leaving.make_config(**overrides)) if "model.bn_momentum" in overrides else None
        run = leaving.make_run(folder / "runs" / name / "noise=0.3,seed=0", images=images, **overrides)
        if main([str(run), str(folder / name)]):
            raise SystemExit(f"{name} was not exported")
        save_file(compute(run), folder / f"{name}.safetensors")


def compute(run: Path) -> dict[str, np.ndarray]:
    """Compute our features, logits and embeddings of the photos."""
    import jax

    from nml_jax import settings
    from nml_jax.assembly.encoder import load_tokenizer
    from nml_jax.data.text.tokenizer import PUBLISHED
    from nml_jax.training.pretrained import load_model

    loaded = load_model(run)
    config = settings.from_json(loaded.meta["config"])
    batch = {"image": view_photos(config)}
    if "text" in loaded.params:
        own = config.model.text_vocab != PUBLISHED
        batch["text"] = load_tokenizer(config)(TEXTS) if own else make_tokens(config.model.text_context)
    apply = jax.jit(lambda p, s, x: loaded.model.apply(p, s, x, train=False, key=None)[0])
    outputs = jax.device_get(apply(loaded.params, loaded.model_state, batch))
    names = ("features", "logits", "embedding", "text_embedding", "logit_scale", "logit_bias")
    return {name: np.asarray(outputs[name]) for name in names if name in outputs}


def view_photos(config: Any) -> np.ndarray:
    """Return the photos as a config evaluates them, uint8 [B, S, S, 3]."""
    from nml_jax.data.images.transforms import eval_transform

    view = eval_transform(config.augment, config.data.image_size)
    return np.stack([view({"image": pixels}, None)["image"] for pixels in draw_photos()])


def make_tokens(context: int) -> np.ndarray:
    """Draw ids of CLIP's vocabulary int32 [3, context]: start, words, end, padding."""
    text = np.random.default_rng(1).integers(1, 49_000, (3, context), np.int32)
    text[:, 0] = 49_406
    for row, end in zip(text, (3, 5, context - 1), strict=True):
        row[end], row[end + 1 :] = 49_407, 0
    return text


# ---- with the other libraries ----------------------------------------------------------------------------------------


def open_all(folder: Path, file: Path = FILE) -> None:
    """Open every folder, compare, and write the file."""
    mend = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "models" / "weights" / "golden.py"))).timm
    timm = mend()
    import open_clip
    import torch
    import transformers

    about = {"timm": timm.__version__, "open_clip": open_clip.__version__, "torch": torch.__version__,
             "transformers": transformers.__version__}  # fmt: skip
    cases = {}
    for path in sorted(path for path in folder.iterdir() if (path / "README.md").is_file()):
        ours = load_file(folder / f"{path.name}.safetensors")
        opened = open_timm if (path / "config.json").is_file() else open_open_clip
        cases[path.name] = opened(path, ours, folder / "photos")
        print(path.name, cases[path.name]["differences"])
        if worst := {k: x for k, x in cases[path.name]["differences"].items() if not x <= BAR}:
            raise SystemExit(f"{path.name}: {worst}")
    file.write_text(json.dumps({"versions": about, "cases": cases}, indent=1) + "\n")


def open_timm(path: Path, ours: dict[str, np.ndarray], photos: Path) -> dict[str, Any]:
    """Open a folder in timm, with its own and other heads, and in transformers."""
    import timm
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, TimmWrapperForImageClassification

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    keys = check_bits(model.state_dict(), load_file(path / "model.safetensors"))
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    images = [Image.open(file).convert("RGB") for file in sorted(photos.iterdir())]
    x = torch.stack([transform(image) for image in images])
    headless = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0).eval()
    other = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=7).eval()
    wrapped = TimmWrapperForImageClassification.from_pretrained(path).eval()
    processor = AutoImageProcessor.from_pretrained(path)
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        found = {
            "features": features, "logits": model(x), "features, num_classes=0": headless(x),
            "features, num_classes=7": other.forward_head(other.forward_features(x), pre_logits=True),
            "logits, transformers": wrapped(**processor(images, return_tensors="pt")).logits,
        }  # fmt: skip
        assert other(x).shape == (len(images), 7)
    assert [wrapped.config.id2label[i] for i in range(3)] == json.loads((path / "config.json").read_text())[
        "label_names"
    ]
    return {"config": read(path / "config.json"), "keys": keys, "data_config": plain(data),
            "differences": compare(found, ours)}  # fmt: skip


def open_open_clip(path: Path, ours: dict[str, np.ndarray], photos: Path) -> dict[str, Any]:
    """Open a folder in open_clip. Texts are those of the folder's tokenizer or, without one, of drawn tokens."""
    import open_clip
    import torch
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{path}")
    model.eval()
    tensors = load_file(path / "open_clip_model.safetensors")
    keys = check_bits(model.state_dict(), tensors)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{path}")
    assert tokenizer(TEXTS).shape == (3, model.context_length)
    x = torch.stack([transform(Image.open(file).convert("RGB")) for file in sorted(photos.iterdir())])
    with torch.inference_mode():
        own = (path / "tokenizer.json").is_file()
        text = tokenizer(TEXTS) if own else torch.from_numpy(make_tokens(model.context_length)).long()
        found = {
            "embedding": model.encode_image(x, normalize=True),
            "text_embedding": model.encode_text(text, normalize=True),
            "logit_scale": model.logit_scale.exp(),
        } | ({"logit_bias": model.logit_bias.detach()} if model.logit_bias is not None else {})  # fmt: skip
    return {"config": read(path / "open_clip_config.json"), "keys": keys,
            "data_config": plain(model.visual.preprocess_cfg), "differences": compare(found, ours)}  # fmt: skip


def check_bits(state: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """Check that a loaded model holds the file's tensors and no others; return their shapes, as in "8x3x7x7"."""
    held = {name: x.numpy() for name, x in state.items() if not name.endswith("attn_mask")}
    if held.keys() != tensors.keys():
        raise SystemExit(f"names differ: {sorted(held.keys() ^ tensors.keys())[:5]}")
    if wrong := [name for name in held if held[name].tobytes() != tensors[name].tobytes()]:
        raise SystemExit(f"bits differ: {wrong[:5]}")
    return {name: "x".join(map(str, x.shape)) for name, x in held.items()}


def compare(found: dict[str, Any], ours: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the largest difference of each output to ours, in standard deviations of ours."""
    out = {}
    for name, value in found.items():
        want = ours[name.partition(",")[0]]
        assert value.shape == want.shape, name
        scale = want.std() if want.ndim else abs(want)
        if want.ndim:  # the inputs matter
            assert np.abs(want[0] - want[-1]).max() > 0.1 * scale, name
        out[name] = float(f"{np.abs(value.numpy() - want).max() / scale:.3g}")
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values, default=str))


if __name__ == "__main__":
    {"write": write, "open": open_all}[sys.argv[1]](*map(Path, sys.argv[2:]))
