"""Test reading of weights from files and folders: layouts, types, shards and what is wrong with them."""

import functools
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.common import get_config
from nml_jax.errors import UserError
from nml_jax.models import build
from nml_jax.models.weights import files, openclip, timm
from nml_jax.models.weights.state_dict import find_places
from tests.models.weights.compare import assert_equal

CONVNEXT = {"name": "convnext_t", "blocks": (1, 2), "widths": (4, 8)}
CLIP = {
    **{"name": "clip_vitb16", "depth": 2, "dim": 16, "heads": 2, "patch": 8, "embed_dim": 6},
    **{"text_context": 5, "text_vocab": 9, "text_width": 8, "text_heads": 2, "text_depth": 1},
}


def make_model(num_classes: int = 3, **keys):
    config = get_config().model
    config.update(keys)
    return build(config, num_classes=num_classes, image_size=32)


@functools.cache
def draw() -> dict[str, np.ndarray]:
    """Return a ConvNeXt's state dict."""
    params, state = make_model(**CONVNEXT).shapes
    rng = np.random.default_rng(0)
    places = find_places(params, state, timm.choose_names(params)).values()
    return {place.name: rng.standard_normal(place.shape, np.float32) for place in places}


def assert_read(path: Path, want=None) -> None:
    """Check that what is read has the tensors of `want` under timm's names."""
    model = make_model(**CONVNEXT)
    assert_equal(timm.export_weights(*files.read_weights(path, model.shapes)), draw() if want is None else want)


def write_shards(folder: Path, tensors: dict[str, np.ndarray], parts: int = 3) -> None:
    names, weight_map = sorted(tensors), {}
    for i in range(parts):
        file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
        save_file({name: tensors[name] for name in names[i::parts]}, folder / file)
        weight_map |= dict.fromkeys(names[i::parts], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("name", ["model.safetensors", "open_clip_model.safetensors", "anything.safetensors"])
def test_a_folder_with_one_file(tmp_path: Path, name: str):
    save_file(draw(), tmp_path / name)
    assert_read(tmp_path)
    assert_read(tmp_path / name)


def test_shards_are_read_by_their_index(tmp_path: Path):
    write_shards(tmp_path, draw())
    assert_read(tmp_path)
    assert_read(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_narrow_types_are_widened(tmp_path: Path, dtype):
    narrow = {name: x.astype(dtype) for name, x in draw().items()}
    save_file(narrow, tmp_path / "w.safetensors")
    assert_read(tmp_path, {name: x.astype(np.float32) for name, x in narrow.items()})


def test_buffers_and_the_prefix_of_parallel_training_are_left_out(tmp_path: Path):
    more = {"relative_position_index": np.zeros(3, np.int64), "bn.num_batches_tracked": np.array(3)}
    save_file({f"module.{name}": x for name, x in (draw() | more).items()}, tmp_path / "w.safetensors")
    assert_read(tmp_path)


FACEBOOK = (
    (r"stem\.", "downsample_layers.0."),
    (r"stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"conv_dw", "dwconv"),
    (r"mlp\.fc", "pwconv"),
    (r"head\.norm", "norm"),
    (r"head\.fc", "head"),
)


def test_the_layout_of_facebooks_convnext(tmp_path: Path):
    """The names are those of facebookresearch/ConvNeXt, models/convnext.py."""
    theirs = {}
    for name, x in draw().items():
        for pattern, replacement in FACEBOOK:
            name = re.sub(f"^{pattern}" if pattern[0] in "s" else pattern, replacement, name)
        theirs[name] = x
    assert {"downsample_layers.0.0.weight", "stages.1.1.dwconv.bias", "norm.weight", "head.bias"} < theirs.keys()
    save_file(theirs, tmp_path / "w.safetensors")
    assert_read(tmp_path)


def test_the_layout_of_transformers_clip(tmp_path: Path):
    """q, k and v are apart there, and the projections are transposed; the names are those of CLIPModel."""
    model = make_model(**CLIP)
    rng = np.random.default_rng(0)
    want = {
        n: rng.standard_normal(x.shape, np.float32) for n, x in openclip.export_weights(*zeros(model.shapes)).items()
    }
    theirs = {}
    for name, x in want.items():
        tower, rest = ("vision", name.removeprefix("visual.")) if name.startswith("visual.") else ("text", name)
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*)", rest)
        if block:
            start, rest = f"{tower}_model.encoder.layers.{block[1]}.", block[2]
            if rest.startswith("attn.in_proj"):
                for part, own in zip("qkv", np.split(x, 3), strict=True):
                    theirs[f"{start}self_attn.{part}_proj.{rest.removeprefix('attn.in_proj_')}"] = own.copy()
                continue
            for ours, other in (
                ("attn.out", "self_attn.out"),
                ("ln_", "layer_norm"),
                ("c_fc", "fc1"),
                ("c_proj", "fc2"),
            ):
                rest = rest.replace(ours, other)
            theirs[start + rest] = x
            continue
        named = {
            "proj": "visual_projection.weight",
            "text_projection": "text_projection.weight",
            "logit_scale": "logit_scale",
            "class_embedding": "vision_model.embeddings.class_embedding",
            "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
            "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
            "positional_embedding": f"{tower}_model.embeddings.position_embedding.weight",
        }
        for ours, other in (
            ("ln_pre", "pre_layrnorm"),
            ("ln_post", "post_layernorm"),
            ("ln_final", "final_layer_norm"),
        ):
            named |= {f"{ours}.{leaf}": f"{tower}_model.{other}.{leaf}" for leaf in ("weight", "bias")}
        theirs[named[rest]] = x.T.copy() if rest in ("proj", "text_projection") else x
    theirs["text_model.embeddings.position_ids"] = np.arange(5)
    save_file(theirs, tmp_path / "model.safetensors")
    assert_equal(openclip.export_weights(*files.read_weights(tmp_path, model.shapes)), want)


def zeros(shapes):
    return tuple(jnp_zeros(tree) for tree in shapes)


def jnp_zeros(tree):
    return {k: jnp_zeros(x) if isinstance(x, dict) else np.zeros(x.shape, np.float32) for k, x in tree.items()}


def spoil(folder: Path, how: str) -> str:
    """Make a folder that cannot be read, and return what the error says of it."""
    folder.mkdir(exist_ok=True)
    tensors = dict(draw())
    match how:
        case "missing shard":
            write_shards(folder, tensors)
            (folder / "model-00002-of-00003.safetensors").unlink()
            return "index.json names model-00002-of-00003.safetensors, which is not there"
        case "truncated shard":
            write_shards(folder, tensors)
            shard = folder / "model-00002-of-00003.safetensors"
            shard.write_bytes(shard.read_bytes()[:-1])
            return "cannot read .*model-00002-of-00003.safetensors"
        case "broken index":
            (folder / "model.safetensors.index.json").write_text("[]")
            return "cannot read .*index.json as an index of shards"
        case "pickle":
            (folder / "pytorch_model.bin").write_bytes(b"\x80")
            return "pytorch_model.bin is a pickle"
        case "npz":
            (folder / "BiT-M-R50x1.npz").write_bytes(b"PK")
            return r"BiT-M-R50x1.npz holds weights in a form that is not read \(.npz\)"
        case "nothing":
            return "holds no .safetensors file"
        case "several":
            save_file(tensors, folder / "a.safetensors")
            save_file(tensors, folder / "b.safetensors")
            return r"holds 2 .safetensors files \(a.safetensors, b.safetensors\) and no index"
        case "NaN":
            tensors["stages.1.blocks.1.gamma"] = np.full(8, np.nan, np.float32)
            save_file(tensors, folder / "w.safetensors")
            return "the weights hold NaN or infinity: stages.1.blocks.1.gamma"
        case "another size":
            tensors["stages.0.blocks.0.mlp.fc1.weight"] = np.zeros((20, 4), np.float32)
            save_file(tensors, folder / "w.safetensors")
            return r"stages.0.blocks.0.mlp.fc1.weight is \(20, 4\) and not \(16, 4\)"
    raise ValueError(how)


FAULTS = (
    *("missing shard", "truncated shard", "broken index", "pickle", "npz", "nothing", "several", "NaN"),
    "another size",
)


@pytest.mark.parametrize("how", FAULTS)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, how: str):
    said = spoil(tmp_path / "folder", how)
    with pytest.raises(UserError, match=said) as e:
        files.read_weights(tmp_path / "folder", make_model(**CONVNEXT).shapes)
    assert "\n" not in e.value.cause
    if how in ("pickle", "npz"):  # the file itself is refused as the folder is
        (file,) = (tmp_path / "folder").iterdir()
        with pytest.raises(UserError, match=said):
            files.read_weights(file, make_model(**CONVNEXT).shapes)
    if how == "pickle":
        assert "weights_only=True" in e.value.cure


def test_a_folder_that_does_not_exist(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        files.find_files(tmp_path / "nowhere")


def test_tensors_are_read_when_they_are_needed(tmp_path: Path, monkeypatch):
    """No more than one tensor at a time is in memory beside the result."""
    save_file(draw(), tmp_path / "w.safetensors")
    tensors = files.open_tensors(tmp_path)
    assert {name: x.shape for name, x in tensors.items()} == {name: x.shape for name, x in draw().items()}
    assert all(isinstance(x, files.StoredTensor) for x in tensors.values())
    (tmp_path / "w.safetensors").unlink()
    with pytest.raises(UserError, match="cannot read"):
        np.asarray(tensors["stem.0.bias"])


def test_classes_of_a_folder_are_counted_by_its_head(tmp_path: Path):
    save_file(draw(), tmp_path / "w.safetensors")
    assert files.count_classes(tmp_path) == 3
    save_file({name: x for name, x in draw().items() if "head.fc" not in name}, tmp_path / "w.safetensors")
    assert files.count_classes(tmp_path) is None
