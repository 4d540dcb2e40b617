"""Test predictions of images: with the encoder that a head was tuned on, and by an encoder's own classifier."""

import csv
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from nml_jax import load_model, predict, runtime, settings
from nml_jax.assembly.fingerprint import describe_encoder
from nml_jax.assembly.open_encoder import open_encoder
from nml_jax.data.images.transforms import eval_transform
from nml_jax.export import __main__ as export
from nml_jax.models.heads.mlp import Form
from nml_jax.tuning.head_file import TunedHead
from tests.scenes import leaving

VIT = leaving.TINY["vit"]
SIZES = [(40, 50), (61, 33), (32, 32), (90, 35), (33, 33)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return leaving.make_run(tmp_path_factory.mktemp("runs") / "leaving" / "noise=0.3,seed=0", **VIT)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of five photos in the folders of two classes, and two other files."""
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        path = tmp_path / "photos" / ("ant" if i < 3 else "bee") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_text("no image")
    return tmp_path / "photos"


def compute(run: Path, photos: Path) -> dict[str, np.ndarray]:
    """The model's outputs of the photos, in the order of their names."""
    loaded = load_model(run)
    config = settings.from_json(loaded.meta["config"])
    view = eval_transform(config.augment, config.data.image_size)
    files = sorted(photos.glob("*/*.png"))
    images = np.stack([view({"image": np.asarray(Image.open(file))}, None)["image"] for file in files])
    return jax.device_get(loaded.model.apply(loaded.params, loaded.model_state, {"image": images},
                                             train=False, key=None)[0])  # fmt: skip


def save_head(path: Path, dim: int, **about: Any) -> Path:
    kernel = np.random.default_rng(1).normal(size=(dim, 3)).astype(np.float32)
    params = {"classifier": {"kernel": kernel, "bias": np.zeros(3, np.float32)}}
    TunedHead(Form(False), params, {}, leaving.CLASSES, {"method": "lbfgs", **about}).save(path)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def describe(run: Path, layer: str = "features") -> dict[str, Any]:
    opened = open_encoder(run, runtime.make_mesh())
    return {**describe_encoder(opened.config, opened.encoder), "layer": layer}


def call(*arguments: object) -> int:
    return predict.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("layer", ["features", "block0"])
def test_a_head_takes_the_layer_that_it_was_tuned_on(run: Path, photos: Path, tmp_path: Path, layer: str, capsys):
    head, out = save_head(tmp_path / "h.safetensors", 24, encoder=describe(run, layer)), tmp_path / "p.csv"
    assert call(head, photos, f"--encoder={run}", "--out", out) == 0
    rows, outputs = read_csv(out), compute(run, photos)
    assert [row["file"] for row in rows] == ["ant/0.png", "ant/1.png", "ant/2.png", "bee/3.png", "bee/4.png"]
    kernel = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32)
    best = [leaving.CLASSES[c] for c in (outputs[layer] @ kernel).argmax(1)]
    assert [row["prediction"] for row in rows] == best
    said = capsys.readouterr().err
    right = np.mean([row["file"].startswith(f"{row['prediction']}/") for row in rows])
    assert f"accuracy on the labels in the file: {100 * right:.2f} %" in said
    assert "1 files are left out, which are no images by their suffix, such as notes.txt" in said
    assert "not checked" not in said


def test_an_encoder_scores_with_its_own_classifier(run: Path, photos: Path, tmp_path: Path):
    for _ in range(2):  # the second time the file is there, which `own` is not
        assert call("own", photos, f"--encoder={run}", "--out", tmp_path / "p.csv", "--proba") == 0
    logits = compute(run, photos)["logits"]
    odds = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    rows = read_csv(tmp_path / "p.csv")
    assert [row["prediction"] for row in rows] == [leaving.CLASSES[c] for c in logits.argmax(1)]
    np.testing.assert_allclose([[float(row[c]) for c in leaving.CLASSES] for row in rows], odds, rtol=1e-3)


def test_another_encoder_is_refused(run: Path, photos: Path, tmp_path: Path, capsys):
    told = describe(run)
    changes = (
        ({"weights": "0" * 64}, "weights: SHA-256 was 000000000000 and is"),
        ({"preprocessing": told["preprocessing"] | {"crop": 0.9}}, "preprocessing: crop was 0.9 and is 1.0"),
        ({"network": told["network"] | {"heads": 4}}, "network: heads was 4 and is 2"),
        ({"layer": "stage1"}, "has no layer 'stage1'"),
    )
    for change, words in changes:
        head = save_head(tmp_path / "h.safetensors", 24, encoder=told | change)
        assert call(head, photos, f"--encoder={run}", "--out", tmp_path / "p.csv") == 2
        said = capsys.readouterr().err
        assert words in said
        assert "cure" in said
    assert not (tmp_path / "p.csv").exists()


def test_a_head_without_a_record_is_applied_and_that_is_said(run: Path, photos: Path, tmp_path: Path, capsys):
    head = save_head(tmp_path / "h.safetensors", 24)
    assert call(head, photos, f"--encoder={run}", "--out", tmp_path / "p.csv") == 0
    assert f"whether {run} is that one was not checked" in capsys.readouterr().err
    narrow = save_head(tmp_path / "h.safetensors", 5)
    assert call(narrow, photos, f"--encoder={run}", "--out", tmp_path / "p.csv") == 2
    assert "has 24 features per row, the head takes 5" in capsys.readouterr().err


def test_damaged_images_and_wrong_inputs_are_refused_by_name(run: Path, photos: Path, tmp_path: Path, capsys):
    head, out = save_head(tmp_path / "h.safetensors", 24, encoder=describe(run)), tmp_path / "p.csv"
    (photos / "bee" / "3.png").write_bytes((photos / "bee" / "3.png").read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((head, photos, f"--encoder={run}"), "bee/3.png cannot be decoded"),
        ((head, tmp_path / "empty", f"--encoder={run}"), "holds no image"),
        ((head, tmp_path / "gone", f"--encoder={run}"), "gone does not exist"),
        ((head, head, f"--encoder={run}"), "is not a folder"),
        ((head, photos, f"--encoder={tmp_path / 'gone'}"), "gone does not exist"),
        ((head, photos, f"--encoder={photos}"), "is neither a run nor a folder of published weights"),
        ((head, photos, f"--encoder={run}", "--keep=id"), "--keep is for tables"),
        (("own", photos), "needs images"),
    ):
        assert call(*arguments, "--out", out) == 2, words
        said = capsys.readouterr().err
        assert words in said
        assert "cure: " in said
    assert not out.exists()


@pytest.mark.parametrize("kind", ["timm", "nml"])
def test_an_exported_folder_stands_in_for_its_run(run: Path, photos: Path, tmp_path: Path, kind: str, capsys):
    """A head of the run's features takes those of the exported folder: weights, network and preprocessing are equal."""
    assert export.main([str(run), str(tmp_path / "out"), f"--format={kind}"]) == 0
    head = save_head(tmp_path / "h.safetensors", 24, encoder=describe(run))
    for encoder, out in ((run, "a.csv"), (tmp_path / "out", "b.csv")):
        assert call(head, photos, f"--encoder={encoder}", "--out", tmp_path / out) == 0
        assert call("own", photos, f"--encoder={encoder}", "--out", tmp_path / f"own-{out}") == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert (tmp_path / "own-a.csv").read_text() == (tmp_path / "own-b.csv").read_text()
