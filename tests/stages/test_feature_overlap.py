"""Test what a run says of what it reads: test rows that training has, columns, views, names of classes."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import features as experiment
from nml_jax import main
from nml_jax.errors import UserError
from nml_jax.runs.rows import read_rows
from nml_jax.stages import features as stage

D = 4
SMALL = {"seed": 0, "sweep.seed": (), "stages": ("features", "tune", "report"), "tune.methods": ("ridge",)}
NAMES = ["ant", "bee", "cat"]


def launch(folder: Path, **overrides) -> Path:
    config = experiment.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(SMALL | {f"features.{key}": str(value) for key, value in overrides.items()})
    main.launch(config, folder, pinned={"seed": 0})
    return folder / "seed=0"


def blobs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % 3)
    return (rng.normal(size=(n, D)) + 8 * np.eye(3, D)[codes]).astype(np.float32), codes


def write_parquet(path: Path, features: np.ndarray, codes: np.ndarray, names: list[str]) -> Path:
    """Write a table as Hugging Face's datasets do, with the classes in the order of `names`."""
    numbers = np.array([names.index(NAMES[code]) for code in codes])
    table = pa.table(
        {"sample_id": np.arange(len(codes)), "text": ["x"] * len(codes), "e": list(features), "y": numbers}
    )
    info = {"info": {"features": {"y": {"names": names, "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)
    return path


def read_facts(page: Path) -> dict[str, str]:
    """Return the facts at the end of a report, without markup."""
    found = re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", page.read_text(), re.DOTALL)
    return {key: re.sub(r"<.*?>", "", value).replace("&#39;", "'") for key, value in found}


def test_rows_of_training_and_columns_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    features, codes = blobs(90, 0)
    train = write_parquet(tmp_path / "train.parquet", features, codes, NAMES)
    new, new_codes = blobs(40, 1)
    both = np.concatenate([new, features[:7]]), np.concatenate([new_codes, codes[:7]])
    test = write_parquet(tmp_path / "test.parquet", *both, ["cat", "ant", "bee"])
    cell = launch(tmp_path / "w", train=train, test=test)
    said = capsys.readouterr().err
    assert f"7 of 47 rows of {test} are bit-equal to training rows" in said
    assert f"{test}: its classes are matched to those of {train} by name" in said
    scores = {row.split: row.value for row in read_rows(cell) if row.metric == "accuracy"}
    assert scores["test"] > 0.95
    read = json.loads((cell / "features.json").read_text())
    assert read["classes"] == NAMES
    assert read["seen_in_training"] == {"test": 7}
    facts = read_facts(tmp_path / "w" / "report.html")
    used = "label 'y'; features 'e'; left out 'sample_id' (by its name), 'text'"
    assert facts[f"columns of {train}"] == facts[f"columns of {test}"] == used
    assert facts["test rows bit-equal to training rows"] == "test: 7 of 47"


@pytest.mark.parametrize("where", ["test", "ood"])
def test_a_test_file_of_training_rows_is_refused(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch):
    rows, codes = blobs(90, 0)
    np.savez(tmp_path / "train.npz", features=rows, labels=codes)
    write_parquet(tmp_path / "part.parquet", rows[50:20:-1], codes[50:20:-1], NAMES)
    named = {"train": tmp_path / "train.npz", where: tmp_path / "part.parquet"}
    with pytest.raises(UserError, match=r"all 30 rows of .*part\.parquet are bit-equal to training rows") as e:
        launch(tmp_path / "w", **named)
    assert "\n" not in e.value.cause + e.value.cure
    assert not (tmp_path / "w").exists()
    monkeypatch.setattr(stage, "LARGE", 10)  # rows of large files are compared later, but before any training
    with pytest.raises(UserError, match="all 30 rows of"):
        launch(tmp_path / "w", **named)
    assert not (tmp_path / "w" / "seed=0" / "heads").exists()


def test_held_out_rows_that_stand_in_the_file_twice(tmp_path: Path, capsys: pytest.CaptureFixture):
    features, codes = blobs(60, 0)
    np.savez(tmp_path / "train.npz", features=np.concatenate([features] * 2), labels=np.concatenate([codes] * 2))
    cell = launch(tmp_path / "w", train=tmp_path / "train.npz")
    (seen,) = json.loads((cell / "features.json").read_text())["seen_in_training"].values()
    assert 0 < seen < 36
    assert f"{seen} of 36 rows of the held-out part of {tmp_path}/train.npz are bit-equal" in capsys.readouterr().err


def test_equal_rows_of_a_few_whole_numbers_are_not_refused(tmp_path: Path):
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        features = rng.integers(0, 2, (200, 2))
        np.savez(tmp_path / f"{name}.npz", features=features, labels=features[:, 0])
    cell = launch(tmp_path / "w", train=tmp_path / "train.npz", test=tmp_path / "test.npz")
    assert json.loads((cell / "features.json").read_text())["seen_in_training"] == {"test": 200}


def test_features_of_an_array_that_count_up_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    features, codes = blobs(60, 0)
    features[:, 2] = np.arange(60)
    np.savez(tmp_path / "train.npz", features=features, labels=codes)
    launch(tmp_path / "w", train=tmp_path / "train.npz")
    assert capsys.readouterr().err.count("train.npz: features 2 of each row count up") == 1


def test_views_stand_in_the_report(tmp_path: Path):
    for name, seed in (("train", 0), ("test", 1)):
        features, codes = blobs(60, seed)
        views = np.stack([features, features + 0.1, features - 0.1], 1)
        np.savez(tmp_path / f"{name}.npz", features=views, labels=codes)
    launch(tmp_path / "w", train=tmp_path / "train.npz", test=tmp_path / "test.npz")
    views = read_facts(tmp_path / "w" / "report.html")["views"]
    assert views == "; ".join(f"{name}: 3 of each row, and only the first is scored" for name in ("train", "test"))
