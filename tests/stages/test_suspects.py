"""Wrong labels in a feature file: the stage diagnose lists them, the stage tune leaves them out, and a command does."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

import nml_jax
from nml_jax import suspects
from nml_jax.assembly.suspects import judge_rows
from nml_jax.data.features.files import open_features
from nml_jax.errors import UserError
from nml_jax.runs.rows import read_rows
from nml_jax.stages import diagnose
from nml_jax.tuning.head_file import load
from tests.stages.test_features import CLASSES, blobs, launch

WRONG = 12  # of 120 labels


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Return a folder with a training file whose labels are partly wrong, and two clean tests."""
    folder = tmp_path_factory.mktemp("files")
    for name, n, seed in (("train", 120, 0), ("test", 90, 1), ("far", 60, 2)):
        features, labels = blobs(n, seed)
        if name == "train":
            np.save(folder / "clean.npy", labels)
            codes = np.searchsorted(CLASSES, labels)
            codes = nml_jax.corrupt_labels(codes, num_classes=3, kind="pair", rate=WRONG / n, seed=0)
            labels = np.array(CLASSES)[codes]
        columns = {f"f{i}": features[:, i] for i in range(features.shape[1])}
        table = pa.table({"sample_id": [f"{name}-{i}" for i in range(n)], **columns, "label": labels})
        pyarrow.csv.write_csv(table, folder / f"{name}.csv")
    return folder


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory) -> Path:
    named = {f"features.{key}": str(files / f"{name}.csv") for key, name in
             (("train", "train"), ("test", "test"), ("ood", "far"))}  # fmt: skip
    workdir = tmp_path_factory.mktemp("run") / "features"
    own = {"stages": ("features", "tune", "diagnose", "report"), "tune.methods": ("lbfgs",), "tune.suspects": "drop",
           "diagnose.rows": 40, "diagnose.folds": 2}  # fmt: skip
    return launch(workdir, **named, **own)


def find_wrong(files: Path) -> list[int]:
    return np.flatnonzero(np.load(files / "clean.npy") != open_features(str(files / "train.csv")).labels).tolist()


def test_diagnose_lists_the_wrong_labels_with_their_ids(files: Path, run: Path):
    lines = list(csv.DictReader((run / "suspects.csv").read_text().splitlines()))
    assert list(lines[0]) == ["row", "id", "given_label", "likely_label", "confidence"]
    assert sorted(int(line["row"]) for line in lines) == find_wrong(files)
    clean = np.load(files / "clean.npy")
    for line in lines:
        assert line["id"] == f"train-{line['row']}"
        assert line["likely_label"] == clean[int(line["row"])] != line["given_label"]
    (entry,) = json.loads((run / "label_errors.json").read_text())
    assert (entry["rows"], entry["suspects"]) == (120, WRONG)
    assert entry["interval"][0] < WRONG / 120 < entry["interval"][1]
    assert sum(pair["share"] for pair in entry["pairs"]) == pytest.approx(1, abs=0.03)
    assert entry["pairs"][0]["given"] != entry["pairs"][0]["likely"]


def test_runs_of_earlier_versions_stay_done_but_a_lost_list_is_written_again(tmp_path: Path):
    (tmp_path / "diagnosis.json").write_text("[]")
    assert diagnose.STAGE.intact(tmp_path)
    (tmp_path / "label_errors.json").write_text("[]")
    assert not diagnose.STAGE.intact(tmp_path)
    (tmp_path / "suspects.csv").write_text("row\n")
    assert diagnose.STAGE.intact(tmp_path)


def test_heads_are_trained_with_and_without_the_suspects(run: Path):
    rows = [row for row in read_rows(run) if row.stage == "tune" and row.metric == "accuracy"]
    assert {(row.suspects, row.n_train) for row in rows} == {("keep", 120), ("drop", 120 - WRONG)}
    heads = sorted(path.name for path in (run / "heads" / "features").iterdir())
    assert heads == ["lbfgs,seed=0.safetensors", "lbfgs,suspects=drop,seed=0.safetensors"]
    assert load(run / "heads" / "features" / heads[1]).about["n_train"] == 120 - WRONG


def test_the_report_compares_them_on_the_tests(run: Path):
    text = (run.parent / "report.html").read_text()
    for words in ("With and without the suspects", "suspects dropped", "Wrong labels", "suspects.csv",
                  "12 are more likely wrong than right", "tune.suspects = drop"):  # fmt: skip
        assert words in text


def test_relabelled_heads_have_all_rows(files: Path, tmp_path: Path):
    named = {f"features.{key}": str(files / f"{name}.csv") for key, name in (("train", "train"), ("test", "test"))}
    options: dict[str, Any] = {**named, "tune.methods": ("lbfgs",), "tune.suspects": "relabel"}
    run = launch(tmp_path / "w", **options)
    rows = [row for row in read_rows(run) if row.stage == "tune" and row.metric == "accuracy"]
    assert {(row.suspects, row.n_train) for row in rows} == {("keep", 120), ("relabel", 120)}


def test_rows_of_a_run_without_suspects_are_written_as_before(files: Path, tmp_path: Path):
    run = launch(tmp_path / "w", **{"features.train": str(files / "train.csv"), "tune.methods": ("lbfgs",)})
    assert not [line for line in (run / "rows.jsonl").read_text().splitlines() if "suspects" in json.loads(line)]
    with pytest.raises(UserError, match="choose one of keep, drop, relabel"):
        launch(tmp_path / "v", (), **{"features.train": str(files / "train.csv"), "tune.suspects": "delete"})


def test_the_command_writes_the_same_suspects(files: Path, run: Path, tmp_path: Path, capsys):
    assert suspects.main([str(files / "train.csv"), "--out", str(tmp_path / "s.csv")]) == 0
    assert (tmp_path / "s.csv").read_text() == (run / "suspects.csv").read_text()
    assert "12 of 120 labels are suspects; about 10." in capsys.readouterr().err
    assert suspects.main([str(files / "train.csv")]) == 0
    assert capsys.readouterr().out == (run / "suspects.csv").read_text()
    for out, message in ((files / "train.csv", "would replace"), (tmp_path / "no" / "s.csv", "no folder")):
        assert suspects.main([str(files / "train.csv"), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err


def test_a_part_of_a_large_file_keeps_its_row_numbers(files: Path, capsys):
    whole = open_features(str(files / "train.csv"))
    codes = np.searchsorted(CLASSES, whole.labels)
    found = judge_rows(whole, codes, CLASSES, most=90)
    assert "90 of 120 rows are judged" in capsys.readouterr().err
    assert found.judged.sum() == 90
    assert {suspect.row for suspect in found.suspects} == set(find_wrong(files)) & set(np.flatnonzero(found.judged))
