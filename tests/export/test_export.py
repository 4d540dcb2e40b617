"""Test exported folders: what they hold, that they appear whole or not at all, and what is refused.

`golden_export.json` is what timm, open_clip and transformers said of such folders; see golden_export.py.
"""

import errno
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from nml_jax import load_model, models, noise
from nml_jax.assembly import encoder
from nml_jax.assembly.fingerprint import describe_preprocessing
from nml_jax.errors import UserError
from nml_jax.export import folder
from nml_jax.export.__main__ import main
from nml_jax.export.formats import choose_format, make_package
from nml_jax.export.origin import Origin
from nml_jax.models import published
from nml_jax.models.describe import describe_tower
from nml_jax.models.weights import nml, openclip, timm
from nml_jax.training.pretrained import Loaded
from tests.scenes import leaving

GOLDEN = json.loads(Path(__file__).with_name("golden_export.json").read_text("utf-8"))["cases"]
CASES = leaving.TINY | leaving.CLIPS
ALL = CASES | leaving.FULL
LEDGER = noise.Ledger.from_labels([0, 1, 1], [0, 1, 0], num_classes=2, kind="symmetric", asked=0.3, seed=5)


def make_origin(**overrides: Any) -> Origin:
    """Random weights of a config, without a folder."""
    config = leaving.make_config(**overrides)
    num_classes = 0 if config.model.name.startswith("clip") else 3
    model = models.build(config.model, num_classes=num_classes, image_size=config.data.image_size)
    full = config.model.name in [values["model.name"] for values in leaving.FULL.values()]
    halves = lambda x: np.broadcast_to(np.float32(0.5), x.shape)  # noqa: E731  draws of a full size take long
    weights = jax.tree.map(halves, model.shapes) if full else leaving.make_weights(model)
    loaded = Loaded(model, *weights, 3, {"num_classes": num_classes})
    return Origin(loaded, config, "raw", Path("run"), Path("run"), leaving.CLASSES[:num_classes], LEDGER)


@functools.cache
def open_case(name: str) -> Origin:
    return make_origin(**ALL[name])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Return one of two runs that differ in their seed, with two checkpoints and moving averages."""
    home = tmp_path_factory.mktemp("runs") / "leaving"
    vit = leaving.TINY["vit"] | {"train.ema": 0.9, "runtime.keep": 2}
    for seed in (1, 0):
        out = leaving.make_run(home / f"noise=0.3,seed={seed}", seed=seed, steps=(2, 3), **vit)
    return out


def export(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# ---- what other libraries expect ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_folder_is_what_the_libraries_opened(name: str):
    """Config, names, shapes and preprocessing are those that the libraries loaded strictly; the bits come back."""
    origin = open_case(name)
    package, golden = make_package(origin, choose_format(origin.config)), GOLDEN[name]
    assert package.config == golden["config"]
    assert {key: "x".join(map(str, x.shape)) for key, x in package.tensors.items()} == golden["keys"]
    assert all(difference <= 5e-4 for difference in golden["differences"].values())
    seen, theirs = describe_preprocessing(origin.config), golden["data_config"]
    assert theirs.get("crop_pct", 1.0) == seen["crop"]
    assert all(theirs[key] == seen[key] for key in ("mean", "std", "interpolation"))
    assert seen["size"] == (theirs["input_size"][-1] if "input_size" in theirs else np.max(theirs["size"]))
    read = timm if package.library == "timm" else openclip
    trees = read.import_weights(package.tensors, origin.loaded.model.shapes)
    assert same_bits(trees, (origin.loaded.params, origin.loaded.model_state))


@pytest.mark.parametrize(("name", "kind"), [*((name, "usual") for name in ALL), *((name, "nml") for name in CASES)])
def test_an_exported_folder_is_the_same_encoder_again(name: str, kind: str, tmp_path: Path):
    """What configs/published.py reads of the folder is the network and the preprocessing of the run."""
    origin = open_case(name)
    package = make_package(origin, choose_format(origin.config) if kind == "usual" else "nml")
    (tmp_path / package.config_name).write_text(json.dumps(package.config))
    again = leaving.make_config(**published.read_keys(tmp_path))
    before, now = (describe_tower(of.model, of.data.image_size) for of in (origin.config, again))
    assert before == now
    assert describe_preprocessing(origin.config) == describe_preprocessing(again)
    assert published.read_class_names(tmp_path) == origin.class_names


def same_bits(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b))


@pytest.mark.parametrize(
    ("case", "change", "word"),
    [
        ("resnet", {"model.stem": "small"}, "model.stem=small"),
        ("resnet", {"model.width": 16}, "model.width=16"),
        ("resnet", {"model.blocks": (1, 1, 1)}, "model.blocks=(1, 1, 1)"),
        ("vit", {"model.epsilon": 1e-5}, "model.epsilon=1e-05"),
        ("vit", {"augment.antialias": False}, "augment.antialias=False"),
        ("clip_timm", {"model.blocks": (1, 1, 1, 1)}, "layers=(1, 1, 1, 1)"),
        ("clip_resnet", {"model.blocks": (1, 1, 1)}, "model.blocks=(1, 1, 1)"),
        ("clip_vit", {"augment.crop": "random_resized"}, "augment.test_crop=0.875"),
    ],
)
def test_what_has_no_constructor_elsewhere_is_refused_by_its_key(case: str, change: dict[str, Any], word: str):
    origin = make_origin(**CASES[case] | change)
    with pytest.raises(UserError) as e:
        make_package(origin, choose_format(origin.config))
    assert word in e.value.cause
    assert "--format=nml" in e.value.cure
    package = make_package(origin, "nml")
    assert same_bits(nml.import_weights(package.tensors), (origin.loaded.params, origin.loaded.model_state))
    assert package.config["keys"]["model.name"] == origin.config.model.name


def test_pooling_and_squashed_images_in_the_words_of_open_clip():
    changed = {"model.pool": "gap", "augment.resize": "squash"}
    package = make_package(make_origin(**CASES["clip_vit"] | changed), "open_clip")
    assert package.config["preprocess_cfg"]["resize_mode"] == "squash"
    assert package.config["model_cfg"]["vision_cfg"]["pool_type"] == "avg"


def test_a_format_of_another_kind_of_model_is_refused():
    with pytest.raises(UserError, match=r"--format=open_clip, but model\.name=vit_ti is an encoder of images"):
        make_package(make_origin(**CASES["vit"]), "open_clip")


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_same_weights_give_the_same_bytes(run: Path, tmp_path: Path):
    assert [export(run, tmp_path / name) for name in ("a", "b")] == [0, 0]
    names = ["README.md", "config.json", "model.safetensors", "noise.json"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert noise.Ledger.read(tmp_path / "a" / "noise.json") == noise.Ledger.read(run / "noise.json")


@pytest.mark.parametrize(("flags", "step", "weights"), [((), 3, "raw"), (("--step=2", "--weights=ema"), 2, "ema")])
def test_weights_and_step_are_those_asked_for(run: Path, tmp_path: Path, flags, step: int, weights: str):
    assert export(run, tmp_path / "out", *flags) == 0
    loaded = load_model(run, step=step, weights=weights)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    trees = timm.import_weights(tensors, loaded.model.shapes)
    assert same_bits(trees, (loaded.params, loaded.model_state))
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"at step {step}, pre-trained with 25 % wrong labels (symmetric)" in card
    assert ("moving average" in card) == (weights == "ema")
    assert ("| 0.5 | 0.55 ± 0.071 | 2 |" in card) == (step == 3), "scores are of the last step"
    assert ("No scores" in card) == (step == 2)


def test_the_card_says_what_the_weights_are(run: Path, tmp_path: Path):
    assert export(run, tmp_path / "out", "--license=apache-2.0") == 0
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "library_name: timm" in front
    assert 'license: "apache-2.0"' in front
    ledger = noise.Ledger.read(run / "noise.json")
    for words in (
        *("| rate asked | 0.3 |", "| rate realised | 0.25: 1 of 4 records |", ledger.noisy_sha256, "photos"),
        *("local-dir:FOLDER", "TimmWrapperForImageClassification", "published.py:FOLDER", "`abc1234`"),
        *("19,635 parameters; 24 features, 3 classes", "| interpolation | bicubic |", "ant, bee, cat\\|dog"),
    ):
        assert words in body, words
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    assert config["label_names"] == list(leaving.CLASSES)


def test_no_folder_is_replaced_and_none_is_left_half_written(run: Path, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    for out, words in ((tmp_path / "there", "exists already"), (tmp_path / "no" / "out", "there is no folder")):
        assert export(run, out) == 2
        assert words in capsys.readouterr().err

    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("save_file", "write_json", "write_atomic"):
        with monkeypatch.context() as patch:
            patch.setattr(folder, name, fill)
            assert export(run, tmp_path / "out") == 2
        assert "No space left on device" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert export(tmp_path / "there", tmp_path / "out") == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_what_a_killed_export_left_is_deleted_by_the_next(run: Path, tmp_path: Path):
    """A part whose process is at work is left alone, and so is what only looks like a part."""
    left, busy, other = (tmp_path / f".out.{x * 32}.part" for x in ("a", "b", "no"))
    for path in (left, busy, other):
        path.mkdir()
        (path / "model.safetensors").touch()
    with folder._lock(busy):
        assert export(run, tmp_path / "out") == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([busy.name, other.name, "out"])
    assert export(run, tmp_path / "out2") == 0
    assert busy.is_dir(), "it is another folder's"


def test_captions_leave_with_their_tokenizer(tmp_path: Path):
    """Both formats bring along what is not CLIP's own vocabulary, and the config that reads them finds it."""
    origin = open_case("clip_bytes")
    captions = ["A red  square", "a &amp; b", "caf\N{LATIN SMALL LETTER E WITH ACUTE}s, and more than twelve bytes"]
    want = encoder.load_tokenizer(origin.config)(captions)
    for kind in ("open_clip", "nml"):
        package = make_package(origin, kind)
        for name, content in {package.config_name: package.config, **package.files}.items():
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / name).write_text(json.dumps(content))
        again = leaving.make_config(**published.read_keys(tmp_path / kind))
        assert again.data.tokenizer == str(tmp_path / kind / "tokenizer.json")
        np.testing.assert_array_equal(encoder.load_tokenizer(again)(captions), want)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "open_clip" / "tokenizer.json"))
    start, *_, end = theirs.encode("a red square").ids  # as transformers encodes it
    assert (start, end) == (256, 257)
    with pytest.raises(UserError, match="tokenizer has 258 tokens, the model 300"):
        make_package(make_origin(**CASES["clip_bytes"] | {"model.text_vocab": 300}), "open_clip")


def test_a_kind_that_the_config_does_not_know_is_refused():
    from configs import image_folder

    assert image_folder.get_config("vit").model.patch == 4
    with pytest.raises(UserError, match="image_folder has no model 'swin'"):
        image_folder.get_config("swin")
