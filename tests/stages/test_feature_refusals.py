"""Test which input the stages features and tune reject before anything runs, and heads that are missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import features as experiment
from nml_jax import main, predict, runtime
from nml_jax.assembly.feature_sets import fit_in_memory
from nml_jax.data.features.sets import Split
from nml_jax.errors import UserError
from nml_jax.runs.rows import read_rows
from nml_jax.stages import tune
from nml_jax.tuning import head_file

D, CLASSES = 12, ("ant", "bee", "cat")
SMALL = {"seed": 0, "sweep.seed": (), "stages": ("features", "tune"), "tune.methods": ("ridge", "knn")}


def config(**overrides):
    made = experiment.get_config()
    with made.unlocked():
        made.update_from_flattened_dict(SMALL | overrides)
    return made


def launch(folder: Path, *, dry_run: bool = False, **overrides) -> Path:
    main.launch(config(**overrides), folder, pinned={"seed": 0}, dry_run=dry_run)
    return folder / "seed=0"


def blobs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % 3)
    return (rng.normal(size=(n, D)) + 8 * np.eye(3, D)[codes]).astype(np.float32), np.array(CLASSES)[codes]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, n, seed in (("train", 90, 0), ("test", 60, 1)):
        features, labels = blobs(n, seed)
        np.savez(folder / f"{name}.npz", features=features, labels=labels)
        np.save(folder / f"{name}.npy", features)
    np.save(folder / "y.npy", blobs(90, 0)[1])
    np.save(folder / "z.npy", blobs(90, 0)[1][::-1])
    shutil.copyfile(folder / "train.npz", folder / "copy.npz")
    (folder / "link.npz").symlink_to(folder / "train.npz")
    return folder


@pytest.mark.parametrize(
    ("train", "test", "ood"),
    [
        ("train.npz", "train.npz", ""),
        ("train.npz", "test.npz", "train.npz"),
        ("train.npz", "link.npz", ""),
        ("train.npz", "copy.npz", ""),
        ("train.npz", "test.npz;test.npz", ""),
        ("train.npz", "test.npz", "test.npz"),
        ("train.npy,y.npy", "train.npy,z.npy", ""),
    ],
)
def test_one_file_in_two_places(files: Path, tmp_path: Path, monkeypatch, train: str, test: str, ood: str):
    monkeypatch.chdir(files)
    named = {"features.train": train, "features.test": test, "features.ood": ood}
    with pytest.raises(UserError, match=r"is the same as .*rows of its own") as e:
        launch(tmp_path / "w", **named)
    assert "\n" not in e.value.cause + e.value.cure
    assert not (tmp_path / "w").exists()
    if test != "copy.npz":  # a dry run does not compare contents
        with pytest.raises(UserError, match="is the same as"):
            launch(tmp_path / "w", dry_run=True, **named)


@pytest.mark.parametrize("where", ["train", "test"])
def test_constant_features_are_reported_with_the_name_of_their_file(files: Path, tmp_path: Path, where: str):
    np.savez(tmp_path / "ones.npz", features=np.ones((60, D)), labels=blobs(60, 1)[1])
    named = {f"features.{key}": str(files / f"{key}.npz") for key in ("train", "test")}
    with pytest.raises(UserError, match=r"ones\.npz: every feature is constant"):
        launch(tmp_path / "w", **named | {f"features.{where}": str(tmp_path / "ones.npz")})


def test_one_feature_has_no_spectrum_in_the_mode_code(tmp_path: Path):
    features, labels = blobs(90, 0)
    np.savez(tmp_path / "one.npz", features=features[:, :1], labels=labels)
    named = {"features.train": str(tmp_path / "one.npz")}
    with pytest.raises(UserError, match=r"one\.npz has one feature.*code") as e:
        launch(tmp_path / "w", **named)
    assert "extract.spectra" in e.value.cure
    assert read_rows(launch(tmp_path / "w", **named, **{"extract.spectra": ("paper",)}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tune.norm", "foo"),
        ("tune.shares", (1.0, 1.0)),
        ("tune.shares", (0.5, 0.50000001)),
        ("tune.shares", (0.0, 1.0)),
        ("tune.shares", ("all",)),
        ("tune.shares", ()),
        ("tune.noises", (0.1, 1.1)),
        ("tune.noises", (0.0, 0.0)),
        ("tune.noise_kind", "some"),
        ("tune.ks", (0,)),
        ("tune.noisytune", float("nan")),
        ("tune.validation", 0.0),
    ],
)
def test_settings_of_heads_in_a_dry_run(files: Path, tmp_path: Path, key: str, value):
    named = {"features.train": str(files / "train.npz"), "tune.methods": ("mlp",)}
    with pytest.raises(UserError, match=key.split(".")[-1]) as e:
        launch(tmp_path / "w", dry_run=True, **named | {key: value})
    assert "\n" not in e.value.cause + e.value.cure
    tune.check(config(**named, **{"tune.noises": (0.0, 0.1, 0.2)}), runtime.make_mesh())


def test_a_head_that_is_gone_is_made_again(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    named = {"features.train": str(files / "train.npz"), "tune.seeds": 2}
    cell = launch(tmp_path / "w", **named)
    heads = cell / "heads" / "features"
    assert sorted(path.name for path in heads.iterdir()) == ["ridge,seed=0.safetensors", "ridge,seed=1.safetensors"]
    assert tune.STAGE.intact(cell)
    (heads / "ridge,seed=1.safetensors").unlink()
    assert not tune.STAGE.intact(cell)
    launch(tmp_path / "w", **named)
    assert "tune is done" not in capsys.readouterr().err
    assert tune.STAGE.intact(cell)


def test_a_head_knows_the_columns_of_its_table(tmp_path: Path):
    features, labels = blobs(90, 0)
    names = [f"f{i}" for i in range(D)]
    for file, order in (("train.csv", range(D)), ("other.csv", range(D - 1, -1, -1))):
        rows = zip(features, labels, strict=True)
        lines = [["7", *(repr(float(row[i])) for i in order), label] for row, label in rows]
        lines = [["index", *(names[i] for i in order), "label"], *lines]
        (tmp_path / file).write_text("\n".join(map(",".join, lines)) + "\n")
    cell = launch(tmp_path / "w", **{"features.train": str(tmp_path / "train.csv"), "tune.methods": ("ridge",)})
    path = cell / "heads" / "features" / "ridge,seed=0.safetensors"
    assert head_file.load(path).columns == tuple(names)
    outs = [tmp_path / f"{name}.out" for name in ("train", "other")]
    for out in outs:
        assert predict.main([str(path), str(out.with_suffix(".csv")), "--out", str(out)]) == 0
    assert outs[0].read_text() == outs[1].read_text()
    assert {row.split for row in read_rows(cell)} == {"train", "holdout"}
    (columns,) = json.loads((cell / "features.json").read_text())["columns"].values()
    assert columns == {"label": "label", "taken": names, "left_out": ["index"]}


def test_memory_and_blocks_of_wide_rows():
    class Wide:
        views, dim = 1, 1 << 33

        def __len__(self) -> int:
            return 10

        def blocks(self, size: int):
            assert size == 1
            yield 0, np.zeros((1, 1, 2))

    assert fit_in_memory(0.1, Wide(), 128) == 128
    (block,) = Split("test", "id", Wide(), np.zeros(10, int)).blocks()
    assert block[0].shape == (1, 2)
