"""Test features from files: what a run does with them, what it writes, which files it rejects."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from configs import features as experiment
from nml_jax import main, predict
from nml_jax.assembly import feature_files, feature_sets
from nml_jax.data.features.files import open_features
from nml_jax.data.features.sets import Subset
from nml_jax.errors import UserError
from nml_jax.runs.heads import read_confusion
from nml_jax.runs.rows import read_rows
from nml_jax.stages import tune
from nml_jax.tuning import head_file
from tests.scenes import programs

D, CLASSES = 12, ("ant", "bee", "cat")
SMALL = {
    "seed": 0, "sweep.seed": (), "stages": ("features", "tune"), "tune.epochs": 12, "tune.batch": 16,
    "tune.lrs": (0.05,), "tune.cs": (0.1, 1.0),
    "tune.methods": ("lbfgs", "linear", "nmtune"), "tune.presets": ("paper",), "tune.width": 2,
}  # fmt: skip


def blobs(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % len(CLASSES))
    features = rng.normal(size=(n, D)) + 8 * np.eye(len(CLASSES), D)[codes] + shift
    return features.astype(np.float32), np.array(CLASSES)[codes]


def launch(folder: Path, force: tuple[str, ...] = (), **overrides) -> Path:
    config: ConfigDict = experiment.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(SMALL | overrides)
    main.launch(config, folder, pinned={"seed": 0}, force=force)
    return folder / "seed=0"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, n, seed, shift in (("train", 90, 0, 0.0), ("test", 60, 1, 0.0), ("far", 45, 2, 0.5)):
        features, labels = blobs(n, seed, shift)
        np.savez(folder / f"{name}.npz", features=features, labels=labels)
    return folder


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "features"
    named = {f"features.{key}": str(files / f"{name}.npz") for key, name in
             (("train", "train"), ("test", "test"), ("ood", "far"))}  # fmt: skip
    return launch(workdir, **named)


def test_the_config_runs_on_three_files(files: Path, tmp_path: Path, capsys, monkeypatch):
    """Run all its stages, with the two quickest of its methods and three seeds. The diagnosis also trains NMTune."""
    opened: Counter[str] = Counter()

    def count(spec: str, **how):
        opened[spec] += 1
        return open_features(spec, **how)

    monkeypatch.setattr(feature_files.files, "open_features", count)
    feature_files._open_once.cache_clear()
    config = experiment.get_config()
    assert config.stages == ("features", "tune", "diagnose", "report")
    with config.unlocked():
        config.sweep.seed, config.tune.methods = (0, 1, 2), ("lbfgs", "mlp")
        config.features.train, config.features.test, config.features.ood = (
            str(files / f"{name}.npz") for name in ("train", "test", "far")
        )
    main.launch(config, tmp_path / "w", pinned={})
    said = capsys.readouterr()
    assert said.out.count("MLP  ") == 2  # a line for each test
    assert "Use the L-BFGS probe" in said.out
    assert "python -m nml_jax.predict" in said.out
    assert said.err.count("diagnose finished") == 3
    assert "first estimate: about 0:" in said.err
    rows = [row for seed in range(3) for row in read_rows(tmp_path / "w" / f"seed={seed}") if row.method == "mlp"]
    assert (
        len({json.dumps(row.hyper) for row in rows}) == 1
    )  # the seeds share a setting, and how long validation let it
    assert rows[0].hyper.keys() == {"lr", "weight_decay", "C", "epochs", "temperature"}
    counts = ", ".join(f"{name!r} 20" for name in CLASSES)
    assert said.err.count(f"test: 3 classes: {counts}\n") == 1  # the seeds share the files,
    assert said.err.count("first verdict: L-BFGS probe") == 2  # and so the verdict on each of two tests
    assert said.err.count("training rows: nearest class mean") == 1
    found = [json.loads((tmp_path / "w" / f"seed={seed}" / "diagnosis.json").read_text()) for seed in range(3)]
    assert found[0] == found[1] == found[2]  # one file, diagnosed once
    assert opened == {
        str(files / f"{name}.npz"): 1 for name in ("train", "test", "far")
    }  # once for all stages and seeds
    text = (tmp_path / "w" / "report.html").read_text()
    assert f"3 classes: {counts}".replace("'", "&#39;") in text
    for words in ("every method chooses among 3 settings", found[0][0]["verdict"], "Macro-F1 and mean per class, with"):
        assert words in text


def test_the_quick_part_is_the_probe_beside_its_baselines(files: Path, tmp_path: Path, capsys):
    config = experiment.get_config("quick")
    with config.unlocked():
        config.features.train, config.features.test = (str(files / f"{name}.npz") for name in ("train", "test"))
    main.launch(config, tmp_path / "w", pinned={}, dry_run=True)
    said = capsys.readouterr().out
    assert "train: 90 rows × 12 features, 3 classes" in said
    assert "5 trainings in all, about 0:0" in said
    main.launch(config, tmp_path / "w", pinned={})
    said = capsys.readouterr().err
    assert "first verdict: L-BFGS probe 100.0 % on test; chance 33.3 %, always 'ant' 33.3 %" in said
    assert "training rows: nearest class mean 100.0 % (leave-one-out), Fisher ratio" in said
    assert "cross-validated" not in said
    assert {row.method for row in read_rows(tmp_path / "w" / "seed=0") if row.stage == "tune"} == {"lbfgs"}
    assert not (tmp_path / "w" / "seed=0" / "suspects.csv").exists()  # an empty one would say that there are none
    page = (tmp_path / "w" / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "the nearest class mean, without any training, is right on 100.0 % of the training rows" in page
    assert "Spectrum of the features" in page
    assert "cross-validation" not in page
    with pytest.raises(ValueError, match="no part 'fast'"):
        experiment.get_config("fast")


def test_a_run_leaves_rows_of_every_split(run: Path):
    rows = read_rows(run)
    assert {row.stage for row in rows} == {"features", "tune"}
    spectra = {(row.split, row.domain) for row in rows if row.stage == "features"}
    assert spectra == {("train", "id"), ("test", "id"), ("far", "ood")}
    scores = {(row.method, row.preset, row.split): row.value for row in rows if row.metric == "accuracy"}
    heads = {("lbfgs", None), ("linear", None), ("nmtune", "paper")}
    assert set(scores) == {(*head, split) for head in heads for split in ("test", "far")}
    assert min(scores.values()) > 0.8  # the blobs are eight deviations apart
    assert {row.n_test for row in rows if row.split == "far" and row.stage == "tune"} == {45}
    for row in (row for row in rows if row.metric == "accuracy"):
        confusion = read_confusion(run, row)
        assert confusion is not None
        assert (confusion.sum(), confusion.trace() / confusion.sum()) == (row.n_test, row.value)
    assert {row.n_train for row in rows if row.stage == "tune"} == {90}
    assert {row.noise_realised for row in rows} == {None}  # unknown
    assert {row.model for row in rows} == {"black box"}
    read = json.loads((run / "features.json").read_text())
    assert read["classes"] == list(CLASSES)
    assert [split["per_class"] for split in read["splits"]] == [[30, 30, 30], [20, 20, 20], [15, 15, 15]]


def test_the_recorded_spectrum_is_that_of_the_file(run: Path, files: Path):
    s = np.linalg.svd(np.load(files / "far.npz")["features"].astype(np.float64), compute_uv=False)
    p = s / s.sum()
    wanted = ("features", "sve", "far", "paper")
    rows = read_rows(run)
    (row,) = [row for row in rows if (row.stage, row.metric, row.split, row.spectrum_mode) == wanted]
    assert row.value == pytest.approx(-(p * np.log(p)).sum(), abs=1e-9)


def test_saved_heads_predict_what_the_rows_say(run: Path, files: Path):
    scores = {(row.method, row.split): row.value for row in read_rows(run) if row.metric == "accuracy"}
    for method, name in (("lbfgs", "lbfgs,seed=0"), ("linear", "linear,seed=0"), ("nmtune", "nmtune,paper,seed=0")):
        head = head_file.load(run / "heads" / "features" / f"{name}.safetensors")
        assert head.classes == CLASSES
        for split in ("test", "far"):
            data = np.load(files / f"{split}.npz")
            predicted = np.array(head.classes)[head.outputs(data["features"])[1].argmax(1)]
            assert (predicted == data["labels"]).mean() == pytest.approx(scores[method, split])


def test_predict_on_the_command_line(run: Path, files: Path, tmp_path: Path, capsys):
    head = run / "heads" / "features" / "nmtune,paper,seed=0.safetensors"
    out = tmp_path / "out.csv"
    assert predict.main([str(head), str(files / "far.npz"), "--out", str(out), "--proba"]) == 0
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert lines[0] == ["row", "prediction", *CLASSES]
    odds = np.array([line[2:] for line in lines[1:]], float)
    assert odds.shape == (45, 3)
    np.testing.assert_allclose(odds.sum(1), 1, atol=1e-5)
    assert [line[1] for line in lines[1:]] == [CLASSES[i] for i in odds.argmax(1)]
    scores = {(row.method, row.split): row.value for row in read_rows(run) if row.metric == "accuracy"}
    assert f"{100 * scores['nmtune', 'far']:.2f} %" in capsys.readouterr().err


def test_predict_needs_no_labels_and_rejects_another_width(run: Path, tmp_path: Path, capsys):
    head = run / "heads" / "features" / "linear,seed=0.safetensors"
    for width, code in ((D, 0), (D + 1, 2)):
        np.save(tmp_path / f"{width}.npy", np.zeros((3, width), np.float32))
        assert predict.main([str(head), str(tmp_path / f"{width}.npy")]) == code
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "row,prediction"
    assert "13 features per row, the head takes 12" in said.err
    assert predict.main([str(tmp_path / "none.safetensors"), str(tmp_path / "12.npy")]) == 2


def test_nothing_is_done_twice_and_another_content_is_noticed(run: Path, files: Path, tmp_path: Path, capsys):
    named = {"features.train": str(tmp_path / "a.npz"), "features.test": str(files / "test.npz")}
    (tmp_path / "a.npz").write_bytes((files / "train.npz").read_bytes())
    launch(tmp_path / "w", **named)
    launch(tmp_path / "w", **named)
    assert "tune is done, skipped" in capsys.readouterr().err
    features, labels = blobs(90, 7)
    np.savez(tmp_path / "a.npz", features=features, labels=labels)
    launch(tmp_path / "w", **named)
    assert "skipped" not in capsys.readouterr().err


def test_without_a_test_file_a_part_of_the_training_file_is_held_out(files: Path, tmp_path: Path):
    cell = launch(tmp_path / "w", **{"features.train": str(files / "train.npz"), "tune.methods": ("linear",)})
    rows = [row for row in read_rows(cell) if row.stage == "tune"]
    assert {(row.split, row.domain, row.n_train, row.n_test) for row in rows} == {("holdout", "id", 63, 27)}


@pytest.mark.parametrize(("share", "solved"), [(0.1, 16), (0.2, 32)])
def test_a_file_larger_than_its_share_of_memory_is_streamed(
    run: Path, files: Path, tmp_path: Path, monkeypatch, share: float, solved: int
):
    """Test shards of half of what memory holds: the statistics are equal, the scores similar, the order differs."""
    monkeypatch.setattr(feature_sets, "read_memory_limit", lambda: 10 * 64 * 4 * D)
    named = {"features.train": str(files / "train.npz"), "features.test": str(files / "test.npz")}
    cell = launch(tmp_path / "w", **named, **{"features.memory": share})
    rows = {row.method: row for row in read_rows(cell) if row.metric == "accuracy"}
    assert rows["lbfgs"].n_train == solved  # a quarter of the rows that fit, because it needs more memory
    assert rows["nmtune"].n_train == rows["linear"].n_train == 90
    assert min(row.value for row in rows.values()) > 0.8
    whole = head_file.load(run / "heads" / "features" / "linear,seed=0.safetensors").state["input"]
    parts = head_file.load(cell / "heads" / "features" / "linear,seed=0.safetensors").state["input"]
    for name in ("mean", "scale"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-5)
    same = [np.array_equal(parts[name], whole[name]) for name in ("mean", "scale")]
    assert all(same) == (share == 0.2)  # 90 rows in memory for 128 rows; or streamed, in float64


def test_a_table_may_have_its_columns_in_any_order(tmp_path: Path):
    features, labels = blobs(90, 0)
    for name, order, rows in (("train", range(D), slice(60)), ("test", range(D - 1, -1, -1), slice(60, 90))):
        head = ",".join(f"f{i}" for i in order)
        lines = [
            ",".join(map(str, x[list(order)])) + f",{y}" for x, y in zip(features[rows], labels[rows], strict=True)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join([f"{head},label", *lines]) + "\n")
    named = {f"features.{name}": str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    cell = launch(tmp_path / "w", **named, **{"tune.methods": ("ridge",)})
    (row,) = [row for row in read_rows(cell) if row.metric == "accuracy"]
    assert row.value > 0.9
    taken = json.loads((cell / "features.json").read_text())["columns"]
    assert {tuple(of["taken"]) for of in taken.values()} == {tuple(f"f{i}" for i in range(D))}


def test_a_gallery_of_one_row_per_class(tmp_path: Path, capsys):
    """Test that without rows to hold out, the middle of each grid is taken, and that the report says so."""
    rng = np.random.default_rng(0)
    for name, n in (("train", 6), ("test", 24)):
        y = np.arange(n) % 6
        np.savez(tmp_path / f"{name}.npz", features=8 * np.eye(6, D)[y] + rng.normal(size=(n, D)), labels=y)
    named = {f"features.{name}": str(tmp_path / f"{name}.npz") for name in ("train", "test")}
    for seed in range(3):
        config = experiment.get_config()
        with config.unlocked():
            config.update_from_flattened_dict(SMALL | named | {
                "seed": seed, "tune.methods": ("lbfgs", "linear"), "tune.lrs": (0.5, 0.02, 0.1), "tune.cs": (1.0, 0.1),
                "stages": ("features", "tune", "diagnose", "report"), "features.label": "labels"})  # fmt: skip
        main.launch(config, tmp_path / "w", pinned={"seed": seed})
    rows = read_rows(tmp_path / "w" / "seed=0")
    hypers = {row.method: row.hyper for row in rows if row.metric == "accuracy"}
    assert hypers["lbfgs"] == {"C": 1.0, "unvalidated": 1.0}
    assert hypers["linear"] == {"lr": 0.1, "weight_decay": hypers["linear"]["weight_decay"], "unvalidated": 1.0}
    said = capsys.readouterr().out
    assert "with one training row of each class none was left to choose settings by" in said
    text = (tmp_path / "w" / "report.html").read_text()
    assert "No method could choose a setting" in text
    assert "no claim, no validation" in text
    assert "every method chooses among" not in text
    assert "cannot be cross-validated: fewer than two classes have 4 rows" in text


def test_a_method_that_diverges_is_left_out_and_the_others_go_on(files: Path, tmp_path: Path, capsys):
    named = {"features.train": str(files / "train.npz"), "features.test": str(files / "test.npz"),
             "tune.methods": ("lbfgs", "mlp"), "tune.lrs": (1e30,), "tune.steps": 4}  # fmt: skip
    cell = launch(tmp_path / "w", **named, stages=("features", "tune", "report"))
    rows = [row for row in read_rows(cell) if row.stage == "tune"]
    assert {row.method for row in rows if row.metric == "accuracy"} == {"lbfgs"}
    assert [(row.method, row.value) for row in rows if row.metric == "diverged"] == [("mlp", 1.0)]
    assert tune.STAGE.intact(cell)
    said = "Training diverged, and there is no head to compare: MLP in 1 of 1 run."
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "w" / "report.html").read_text()
    with pytest.raises(UserError, match="training of every head diverged"):
        launch(tmp_path / "v", **named | {"tune.methods": ("mlp",)})


def test_an_interrupted_stage_keeps_what_is_finished(files: Path, tmp_path: Path, monkeypatch):
    named = {"features.train": str(files / "train.npz"), "features.test": str(files / "test.npz"),
             "tune.methods": ("ridge", "lbfgs"), "tune.shared": False}  # fmt: skip
    whole = launch(tmp_path / "whole", **named)
    fit, asked = tune.select.fit_seeds, []

    def stopping(*args, method, **how):
        asked.append(method)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return fit(*args, method=method, **how)

    monkeypatch.setattr(tune.select, "fit_seeds", stopping)
    with pytest.raises(KeyboardInterrupt):
        launch(tmp_path / "w", **named)
    cell = launch(tmp_path / "w", **named)
    assert asked == ["ridge", "lbfgs", "lbfgs"]
    assert read_rows(cell) == [*read_rows(whole)]
    assert not (cell / "tuning").exists()


def test_the_report_names_the_head_and_the_command_that_applies_it(run: Path, files: Path, tmp_path: Path, capsys):
    main.launch(_make_reporting_config(files), run.parent, pinned={"seed": 0})
    said = capsys.readouterr().out
    path = run / "heads" / "features" / "lbfgs,seed=0.safetensors"
    command = f"python -m nml_jax.predict {path}"
    assert command in said
    assert command in (run.parent / "report.html").read_text()
    assert predict.main([str(path), str(files / "far.npz"), "--out", str(tmp_path / "out.csv")]) == 0


def _make_reporting_config(files: Path) -> ConfigDict:
    config = experiment.get_config()
    named = {f"features.{key}": str(files / f"{name}.npz") for key, name in
             (("train", "train"), ("test", "test"), ("ood", "far"))}  # fmt: skip
    with config.unlocked():
        config.update_from_flattened_dict(SMALL | named | {"stages": ("report",)})
    return config


def test_views_shares_and_noise(files: Path, tmp_path: Path):
    features, labels = blobs(90, 0)
    rng = np.random.default_rng(0)
    views = features[:, None] + 0.1 * rng.normal(size=(90, 2, D)).astype(np.float32)
    path = tmp_path / "views.safetensors"
    codes = np.searchsorted(CLASSES, labels)
    safetensors.numpy.save_file({"features": views, "labels": codes}, path, {"class_names": json.dumps(CLASSES)})
    cell = launch(
        tmp_path / "w",
        **{"features.train": str(path), "tune.methods": ("nmtune",), "tune.presets": ("code",)},
        **{"tune.shares": (0.5, 1.0), "tune.noises": (0.0, 0.3)},
    )
    rows = [row for row in read_rows(cell) if row.metric == "accuracy"]
    found = {(row.train_share, row.downstream_noise): (row.n_train, row.preset, row.views) for row in rows}
    assert found == {(s, r): (n, "code", 2) for s, n in ((0.5, 32), (1.0, 63)) for r in (0.0, 0.3)}
    names = {p.name for p in (cell / "heads" / "features").iterdir()}
    assert names == {f"nmtune,code{share}{noise},seed=0.safetensors" for share in ("", ",share=0.5")
                     for noise in ("", ",noise=0.3")}  # fmt: skip
    head = head_file.load(cell / "heads" / "features" / "nmtune,code,seed=0.safetensors")
    assert head.classes == CLASSES  # names, although the labels are numbers


def test_labels_typed_file_by_file_and_other_names_of_splits(tmp_path: Path):
    """Test a table that lacks the one word that makes the labels of the training file text."""
    features, labels = blobs(90, 0)
    codes = np.searchsorted(CLASSES, labels)
    words = np.where(codes == 2, "other", codes.astype(str))
    np.savez(tmp_path / "train.npz", features=features, labels=words)
    np.savez(tmp_path / "mean.npz", features=features[codes < 2] + 0.01, labels=codes[codes < 2])
    files = {"features.train": str(tmp_path / "train.npz"), "features.test": str(tmp_path / "mean.npz")}
    cell = launch(tmp_path / "w", **files, **{"tune.methods": ("lbfgs",)})
    (row,) = [row for row in read_rows(cell) if row.metric == "accuracy"]
    assert row.value > 0.9
    assert row.split != "mean"  # that name belongs to the average


def test_a_scale_is_part_of_the_saved_head(tmp_path: Path, capsys):
    features, labels = blobs(90, 0)
    stored = np.clip(10 * features + 100, 0, 255).astype(np.uint8)
    codes = np.searchsorted(CLASSES, labels)
    for name, rows in (("train", slice(0, 60)), ("test", slice(60, 90))):
        path, names = tmp_path / f"{name}.safetensors", {"class_names": json.dumps(CLASSES)}
        safetensors.numpy.save_file({"features": stored[rows], "labels": codes[rows]}, path, names)
    files = {"features.train": str(tmp_path / "train.safetensors"), "features.test": str(path), "features.scale": 0.1}
    for standardize in (True, False):
        workdir = tmp_path / f"standardize={standardize}"
        cell = launch(workdir, **files, **{"tune.methods": ("lbfgs",), "tune.standardize": standardize})
        (row,) = [row for row in read_rows(cell) if row.metric == "accuracy"]
        assert row.value > 0.9
        capsys.readouterr()
        assert predict.main([str(cell / "heads" / "features" / "lbfgs,seed=0.safetensors"), str(path)]) == 0
        assert f"{100 * row.value:.2f} %" in capsys.readouterr().err  # labels are numbers, classes are names


def save_arrays(folder: Path, **arrays) -> str:
    np.savez(folder / "made.npz", **arrays)
    return str(folder / "made.npz")


BAD = {
    "lengths": (lambda x, y: {"features": x, "labels": y[:-1]}, "90 rows of features and 89 labels"),
    "nan": (lambda x, y: {"features": np.where(np.arange(90)[:, None] == 17, np.nan, x), "labels": y}, "rows 17"),
    "one class": (lambda x, y: {"features": x, "labels": np.full(90, "ant")}, "labels are 'ant'"),
    "objects": (lambda x, y: {"features": x, "labels": y.astype(object)}, "object"),
    "width": (lambda x, y: {"features": x[:, :-1], "labels": y}, "11"),
    "no labels": (lambda x, y: {"features": x}, "label"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case: str, files: Path, tmp_path: Path):
    make, cause = BAD[case]
    made = save_arrays(tmp_path, **make(*blobs(90, 0)))
    with pytest.raises(UserError, match=cause) as e:
        launch(tmp_path / "w", **{"features.train": made, "features.test": str(files / "test.npz")})
    assert "\n" not in e.value.cause + e.value.cure


def test_classes_that_training_never_saw(files: Path, tmp_path: Path):
    features, labels = blobs(90, 0)
    known = save_arrays(tmp_path, features=features[labels != "cat"], labels=labels[labels != "cat"])
    with pytest.raises(UserError, match="20 of 60 rows have classes that training never saw: 'cat'"):
        launch(tmp_path / "w", **{"features.train": known, "features.test": str(files / "test.npz")})


def test_constant_features_and_a_class_with_one_row_are_no_mistake(tmp_path: Path):
    features, labels = blobs(90, 0)
    features[:, 3] = 1e6
    labels[0] = "dodo"
    made = save_arrays(tmp_path, features=features, labels=labels)
    cell = launch(tmp_path / "w", **{"features.train": made})
    assert all(np.isfinite(row.value) for row in read_rows(cell))
    assert {row.value > 0.8 for row in read_rows(cell) if row.metric == "accuracy"} == {True}


def test_exit_code_and_two_lines_on_the_command_line(files: Path, tmp_path: Path):
    (tmp_path / "cut.npz").write_bytes((files / "train.npz").read_bytes()[:500])
    done = programs.run(
        [sys.executable, "-m", "nml_jax.main", "--config=configs/features.py", f"--workdir={tmp_path / 'w'}",
         f"--config.features.train={tmp_path / 'cut.npz'}"],
        cwd=Path(__file__).parents[2], env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    cause, cure = done.stderr.strip().splitlines()[-2:]
    assert "cut.npz" in cause
    assert cure.startswith("  cure: ")
    assert not (tmp_path / "w").exists()


def test_a_subset_reads_what_the_whole_has(files: Path):
    whole = open_features(str(files / "train.npz"))
    index = np.array([3, 5, 40, 41, 89])
    part = Subset(whole, index)
    np.testing.assert_array_equal(part.read(), whole.read()[index])
    np.testing.assert_array_equal(part.rows(np.array([4, 0])), whole.read()[[89, 3]])
    blocks = list(part.blocks(30))
    assert [start for start, _ in blocks] == [0, 2, 4]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), part.read())
