"""Opening the files that a config names: several training files, and groups of rows that stay together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from configs import features as experiment
from nml_jax.assembly.feature_files import _name_split, count_seen, describe_groups, list_specs, match_specs, open_files
from nml_jax.assembly.suspects import read_ids
from nml_jax.data.features.files import open_features
from nml_jax.data.features.sets import FeatureSet
from nml_jax.errors import UserError
from nml_jax.stages.features import check

ROWS = 60


def write(path: Path, seed: int, patients: np.ndarray | None = None) -> str:
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"f{i}": rng.normal(size=ROWS) for i in range(3)}
    if patients is not None:
        columns["patient"] = patients
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({**columns, "label": np.arange(ROWS) % 2}), path)
    return str(path)


def open_set(seed: int = 0, **keys: str) -> FeatureSet:
    config = experiment.get_config().unlock()
    config.seed = seed
    for key, value in keys.items():
        config.features[key] = value
    check(config, None)
    return open_files(config, Path())


def test_several_training_files_and_a_folder_to_test_on(tmp_path: Path):
    for i in range(2):
        write(tmp_path / "train" / f"part-{i}.parquet", i)
        write(tmp_path / "far" / f"part-{i}.parquet", 10 + i)
    keys = {
        "train": f"{tmp_path}/train/*.parquet",
        "test": write(tmp_path / "near.parquet", 5),
        "ood": f"{tmp_path}/far",
    }
    found = open_set(**keys)
    assert [(split.name, len(split.labels)) for split in found.tests] == [("near", 60), ("far", 120)]
    assert (len(found.train.labels), found.label) == (120, "label")
    assert count_seen(found) == {"near": 0, "far": 0}
    config = experiment.get_config().unlock()
    config.features.update(keys)
    assert list(match_specs(config, found)) == list_specs(config) == list(keys.values())


def test_a_split_is_named_by_its_file_without_suffixes():
    assert _name_split(Path("a/b.jsonl.gz"), set()) == _name_split(Path("a/b.npz"), set()) == "b"
    assert _name_split(Path("a/b.csv.gz"), {"b"}) == "a/b"


def test_a_training_shard_is_no_test(tmp_path: Path):
    write(tmp_path / "train" / "a.parquet", 0)
    same = write(tmp_path / "train" / "b.parquet", 1)
    with pytest.raises(UserError, match=r"b\.parquet is the same as .*train: a test needs rows of its own"):
        open_set(train=f"{tmp_path}/train", test=same)


@pytest.mark.parametrize("text", [False, True])
def test_rows_of_a_group_are_held_out_together(tmp_path: Path, text: bool):
    patients = np.arange(ROWS) // 4
    named = np.array([f"p{i}" for i in patients]) if text else patients * 7 % 15  # numbers would be taken for features
    train = write(tmp_path / "x.parquet", 0, named)
    held = []
    for seed in range(3):
        found = open_set(seed, train=train, group="patient")
        assert found.columns == ("f0", "f1", "f2")
        test = found.tests[0]
        rows = [set(named[split.features.index].tolist()) for split in (found.train, test)]
        assert not rows[0] & rows[1]
        assert len(test.labels) == pytest.approx(0.3 * ROWS, abs=4)
        held.append(tuple(test.features.index))
        assert "15 groups in column 'patient'" in describe_groups(found, "patient")[0]
    assert len(set(held)) == 3


def test_groups_that_a_test_file_shares_are_counted(tmp_path: Path):
    train = write(tmp_path / "x.parquet", 0, np.arange(ROWS) // 4)
    other = write(tmp_path / "y.parquet", 1, np.arange(ROWS) // 4 + 12)
    bare = write(tmp_path / "z.parquet", 2)
    found = open_set(train=train, test=f"{other};{bare}", group="patient")
    lines = describe_groups(found, "patient")
    assert len(lines) == 2
    assert lines[1].startswith("12 of 60 rows of ")
    assert "such as '12': scores on them say nothing about new groups" in lines[1]
    assert describe_groups(found, "") == []


def test_bad_groups(tmp_path: Path):
    with pytest.raises(UserError, match="no column 'nobody'"):
        open_set(train=write(tmp_path / "x.parquet", 0), group="nobody")
    with pytest.raises(UserError, match="all rows have the group 1"):
        open_set(train=write(tmp_path / "y.parquet", 0, np.ones(ROWS, int)), group="patient")
    with pytest.raises(UserError, match="1 rows have no group in column 'patient', such as row 59"):
        open_set(train=write(tmp_path / "z.parquet", 0, pa.array([*range(59), None])), group="patient")


def test_ids_are_read_in_every_format(tmp_path: Path):
    """Of tables the column that is an id by its name, of an npz the array `ids`."""
    rng = np.random.default_rng(0)
    X, ids, labels = rng.normal(size=(9, 3)), [f"a{i}" for i in range(9)], ["x", "y", "x"] * 3
    lines = [{"sample_id": i, "embedding": x.tolist(), "label": y} for i, x, y in zip(ids, X, labels, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = pa.Table.from_pylist(lines)
    feather.write_feather(table, tmp_path / "a.feather")
    pq.write_table(table, tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", features=X, labels=labels, ids=ids)
    for name in ("a.jsonl", "a.feather", "a.parquet", "a.npz"):
        assert read_ids(open_features(str(tmp_path / name))) == ids, name
    np.savez(tmp_path / "b.npz", features=X, labels=labels)
    assert read_ids(open_features(str(tmp_path / "b.npz"))) is None
