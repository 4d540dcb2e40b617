"""Several files that are read as one set: lists, patterns, folders of shards, saved Hugging Face data sets."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from nml_jax import inputs
from nml_jax.data.features.files import open_features
from nml_jax.errors import UserError

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = np.arange(20) % 2
CUTS = ((0, 7), (7, 8), (8, 20))


def write_shards(folder: Path, labels: np.ndarray = Y) -> Path:
    """Write three files of tables, the later ones with their columns in another order."""
    folder.mkdir()
    for i, (a, b) in enumerate(CUTS):
        columns = {"id": np.arange(a, b), **{f"f{j}": X[a:b, j] for j in range(3)}, "label": labels[a:b]}
        names = list(columns)[:: -1 if i else 1]
        pq.write_table(pa.table({name: columns[name] for name in names}), folder / f"part-{i}.parquet")
    (folder / "_SUCCESS").write_text("")
    return folder


def check_whole(found) -> None:
    """Check that a set holds all rows, in order, however they are read."""
    assert (len(found), found.dim, found.columns) == (20, 3, ("f0", "f1", "f2"))
    np.testing.assert_array_equal(found.labels, Y)
    np.testing.assert_array_equal(found.read()[:, 0], X)
    for size in (1, 5, 7, 100):
        blocks = list(found.blocks(size))
        assert [start for start, _ in blocks] == list(range(0, 20, size))
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks])[:, 0], X)
    index = np.array([19, 0, 7, 7, 6, 8])
    np.testing.assert_array_equal(found.rows(index)[:, 0], X[index])
    with pytest.raises(IndexError, match="19"):
        found.rows(np.array([20]))


def test_folder_pattern_and_list_are_one_set(tmp_path: Path):
    folder = write_shards(tmp_path / "shards")
    listed = ";".join(f"{folder}/part-{i}.parquet" for i in range(3))
    sets = [open_features(spec) for spec in (str(folder), f"{folder}/part-*.parquet", listed)]
    for found in sets:
        check_whole(found)
    assert len({found.fingerprint for found in sets}) == 1
    assert sets[0].path == folder
    before = sets[0].row_hashes
    (folder / "part-1.parquet").rename(folder / "part-9.parquet")
    moved = open_features(str(folder))
    assert moved.fingerprint != sets[0].fingerprint
    assert sorted(moved.row_hashes) == sorted(before)
    assert inputs.list_files(str(folder)) == [f"{folder}/part-{i}.parquet" for i in (0, 2, 9)]


def test_a_pattern_of_tests_is_several_tests(tmp_path: Path):
    folder = write_shards(tmp_path / "shards")
    assert inputs.split_specs(f"{folder}; {folder}/part-[01].parquet") == [
        str(folder), f"{folder}/part-0.parquet", f"{folder}/part-1.parquet"
    ]  # fmt: skip
    np.savez(tmp_path / "a[1].npz", features=X, labels=Y)  # a name with brackets is no pattern
    assert len(open_features(f"{tmp_path}/a[1].npz")) == 20


def test_labels_of_several_files(tmp_path: Path):
    np.savez(tmp_path / "a.npz", features=X, labels=np.array(["cat", "dog"])[Y])
    np.savez(tmp_path / "b.npz", features=X, labels=np.array(["dog ", "eel"])[Y])
    found = open_features(f"{tmp_path}/a.npz;{tmp_path}/b.npz")
    assert sorted(set(found.labels.tolist())) == ["cat", "dog", "eel"]
    np.savez(tmp_path / "c.npz", features=X)
    bare = open_features(f"{tmp_path}/a.npz;{tmp_path}/c.npz", labelled=False)
    assert (len(bare), len(bare.labels)) == (40, 0)


def refuse(spec: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_features(str(spec))


def test_files_that_do_not_fit_together(tmp_path: Path):
    np.savez(tmp_path / "a.npz", features=X, labels=Y)
    np.savez(tmp_path / "wide.npz", features=np.c_[X, X], labels=Y)
    np.savez(tmp_path / "bool.npz", features=X, labels=Y > 0)
    np.savez(tmp_path / "views.npz", features=np.stack([X, X], 1), labels=Y)
    refuse(f"{tmp_path}/a.npz;{tmp_path}/wide.npz", "6 features per row, .* 3")
    refuse(f"{tmp_path}/a.npz;{tmp_path}/bool.npz", "true and false")
    refuse(f"{tmp_path}/a.npz;{tmp_path}/views.npz", "2 views of each row")
    refuse(f"{tmp_path}/no-*.npz", "matches no file")


def test_folders_that_are_no_set(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    refuse(folder, "without feature files")
    for name in ("train-0.npz", "test-0.npz"):
        np.savez(folder / name, features=X, labels=Y)
    refuse(folder, "several splits: test and train")
    (tmp_path / "hive" / "label=a").mkdir(parents=True)
    refuse(tmp_path / "hive", "a column .label=a.")


def save_hugging_face(folder: Path) -> None:
    """Save a data set as `datasets` does: Arrow streams, and the names of classes in the metadata of the schema."""
    folder.mkdir(parents=True)
    feature = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    table = pa.table({"embedding": pa.array(list(X)), "label": Y}).replace_schema_metadata(metadata)
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (table[:12], table[12:]), strict=True):
        with pa.ipc.new_stream(folder / name, table.schema) as out:
            out.write_table(part)
    (folder / "dataset_info.json").write_text(json.dumps({"features": feature}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_saved_hugging_face_data_sets(tmp_path: Path):
    save_hugging_face(tmp_path / "all" / "train")
    (tmp_path / "all" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    found = open_features(f"{tmp_path}/all/train")
    assert (len(found), found.class_names, found.path.name) == (20, ("cat", "dog"), "train")
    np.testing.assert_array_equal(found.read()[:, 0], X)
    np.testing.assert_array_equal(found.labels, Y)
    refuse(tmp_path / "all", "name one of its folders: .*all/train")


def test_json_lines(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    rows = [{"f0": 1, "f1": [1, 2], "label": "a"}, {"f0": 2.5, "f1": [1.5, 2], "label": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.testing.assert_array_equal(open_features(str(path)).read()[:, 0], [[1, 2], [1.5, 2]])
    path.write_text('{"f0": 1, "label": 0}\n{"f0": "x", "label": 1}\n')
    refuse(path, "x.jsonl")
    path.write_text('{"f0": 1, "label": 0}\n{"label": 1}\n')
    with pytest.raises(UserError, match="rows 1"):
        open_features(str(path)).read()
    row = '{"f0": 1, "label": 0}'
    for at, text in {1: f"null\n{row}\n", 2: f"{row}\n null \n{row}\n", 3: f"\r\n{row}\r\n\tnull"}.items():
        path.write_text(text)  # Arrow would end the process
        refuse(path, f"line {at} is null, not an object")
    packed = tmp_path / "x.jsonl.gz"
    for start in ("null", 'null, "f0": 1}', "null}", "\n\n null]"):
        for file, write in ((path, path.write_bytes), (packed, lambda data: packed.write_bytes(gzip.compress(data)))):
            write(f"{start}\n{row}\n".encode())
            refuse(file, "is null, not an object")
    path.write_text('{"f0": 1, "x":\nnull, "label": 0}\n{"f0": 2, "label": 1,\n "x":\nnull}\n')
    np.testing.assert_array_equal(open_features(str(path)).read()[:, 0], [[1], [2]])


def test_first_version_of_feather_and_damage(tmp_path: Path):
    (tmp_path / "x.feather").write_bytes(b"FEA1" + bytes(50))
    refuse(tmp_path / "x.feather", "version 1 of Feather")
    (tmp_path / "y.arrow").write_bytes(b"ARROW1" + bytes(50))
    refuse(tmp_path / "y.arrow", "cannot read .*y.arrow")
