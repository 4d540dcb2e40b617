import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from nml_jax.data.class_names import clean_name, simplify_group
from nml_jax.prepare.__main__ import main
from nml_jax.prepare.pairs import shards
from tests.prepare.pairs.sources import (
    build,
    contents,
    keys,
    pair,
    picture,
    stored,
    tar,
    write_csv,
    write_table,
)


def test_names_of_sources(tmp_path):
    """Check that keys distinguish the sources, whatever their folder, and escape names that are not UTF-8."""
    latin = os.fsdecode(b"caf\xe9.tar")
    for folder, name in (("a", "0.tar"), ("b", "0.tar"), ("c/sub", latin)):
        tar(tmp_path / "src" / folder / name, pair("k", 0))
    sources = [tmp_path / "src" / name for name in ("a", "b", f"c/sub/{latin}")]
    build(sources, tmp_path / "out")
    found = [key for split in ("a", "b", "train") for key in keys(tmp_path / "out", split)]
    assert found == ["a/0.tar/k", "b/0.tar/k", "c/sub/caf\\xe9.tar/k"]
    (tmp_path / "src").rename(tmp_path / "moved")
    build([tmp_path / "moved" / path.relative_to(tmp_path / "src") for path in sources], tmp_path / "out2")
    assert contents(tmp_path / "out") == contents(tmp_path / "out2")


def test_folders_of_files_are_splits_of_their_names(tmp_path, capsys):
    for place in ("src/train", "src/val", "other/train"):
        tar(tmp_path / place / "0.tar", pair("k", 0))
    src = tmp_path / "src"
    splits = [
        ([src / "train", src / "val"], {"train": 1, "val": 1}, True),
        ([src / "train", src / "val", tmp_path / "other" / "train"], {"train": 2, "val": 1}, True),
        ([src / "train", tmp_path / "other" / "train"], {"train": 2}, False),
        ([src / "val"], {"train": 1}, False),
        ([src], {"train": 1, "val": 1}, False),
    ]
    for i, (sources, expected, noticed) in enumerate(splits):
        manifest, _ = build(sources, tmp_path / f"out{i}")
        assert {split: about["records"] for split, about in manifest["splits"].items()} == expected
        assert ("each folder is one split: train, val" in capsys.readouterr().err) == noticed


def test_stray_files_in_a_folder_are_listed(tmp_path):
    src = tmp_path / "src"
    tar(src / "tars" / "0.TAR", pair("k", 0))
    tar(src / "tars" / "deep" / "1.tar", pair("k", 0))
    for name in ("1.tar.gz", "2.zip", "notes.txt", "0_stats.json", ".hidden"):
        (src / "tars" / name).write_bytes(b"")
    (src / "tables" / "images" / "a").mkdir(parents=True)
    (src / "tables" / "images" / "a" / "0.JPG").write_bytes(picture(0))
    tar(src / "tables" / "images" / "a" / "lost.tar", [])
    write_csv(src / "tables" / "0.CSV", [["image", "caption"], ["images/a/0.JPG", "x"]])
    for name in ("photo.jpg", "notes.txt", "labels.db"):
        (src / "tables" / name).write_bytes(b"")
    (src / "readme.md").write_bytes(b"")
    manifest, refused = build(src, tmp_path / "out")
    assert (keys(tmp_path / "out", "tars"), keys(tmp_path / "out", "tables")) == (["tars/0.TAR/k"], ["tables/0.CSV/0"])
    no = "neither a tar nor a table"
    assert refused == [
        ("readme.md", "", no),
        ("tables/images/a/lost.tar", "", no),
        ("tables/labels.db", "", no),
        ("tars/1.tar.gz", "", f"{no}: decompress it first"),
        ("tars/2.zip", "", f"{no}: decompress it first"),
        ("tars/deep", "", no),
        ("tars/notes.txt", "", no),
    ]
    assert manifest["refused_files"] == {no: 7}


def test_splits_labels_and_groups(tmp_path):
    src = tmp_path / "src"
    for split in ("noto", "twemoji"):
        for shard in range(2):
            pairs = [pair(f"{i}", i, f"{split} {i}", concept=i, n=i % 11) for i in range(20 * shard, 20 * shard + 20)]
            tar(src / split / f"{shard}.tar", [member for members in pairs for member in members])
    tar(src / "noto" / "2.tar", pair("a", 0, "no concept", n=0) + pair("b", 0, "no n", concept=0))
    options = {"label": "n", "group": "concept", "parts": {"train": 0.7, "new": 0.3}}
    manifest, refused = build(src, tmp_path / "out", **options)
    assert refused == [("noto/2.tar", "a", "no field 'concept'"), ("noto/2.tar", "b", "no field 'n'")]
    assert manifest["classes"] == [str(i) for i in range(11)]  # by value: "10" comes last
    parts = {split: keys(tmp_path / "out", split) for split in manifest["splits"]}
    assert list(parts) == ["noto_train", "noto_new", "twemoji_train", "twemoji_new"]
    train, new = ({int(key.split("/")[-1]) for key in parts[f"noto_{part}"]} for part in ("train", "new"))
    assert train | new == set(range(40))
    assert not train & new
    assert 20 <= len(train) <= 36
    assert [key.replace("noto", "twemoji") for key in parts["noto_new"]] == parts["twemoji_new"]
    labels = np.load(tmp_path / "out" / "supervision" / "noto_new.npy")
    assert labels.dtype == np.int32
    assert labels.tolist() == [i % 11 for i in sorted(new)]
    assert [r["label"] for r in stored(tmp_path / "out", "noto_new")] == labels.tolist()
    assert sum(manifest["splits"]["noto_new"]["per_class"].values()) == len(new)
    assert tfds.builder_from_directory(tmp_path / "out").info.supervised_keys == ("image", "label")


def test_shares_of_the_parts_and_stability():
    parts = (("a", 0.7), ("b", 0.2), ("c", 0.1))
    found = [shards.choose_part(str(i), parts) for i in range(20_000)]
    for name, share in parts:
        assert abs(found.count(name) / 20_000 - share) < 0.015  # over four standard deviations
    assert "".join(found[:16]) == PARTS


PARTS = "cacaaaacaaaccaba"


def test_label_column_of_a_table(tmp_path):
    for i in "123":
        (tmp_path / f"{i}.png").write_bytes(picture(1))
    rows = [
        ["1.png", "x", "zebra"],
        ["1.png", "y", "cat"],
        ["2.png", "x", "cat"],
        ["3.png", "x", " "],
        ["4.png", "x", "dog"],
    ]
    write_csv(tmp_path / "x.csv", [["image", "caption", "class"], *rows])
    manifest, _ = build(tmp_path / "x.csv", tmp_path / "out", label="class")
    assert (manifest["classes"], manifest["dropped_classes"]) == (["cat", "zebra"], ["dog"])
    assert manifest["splits"]["train"]["per_class"] == {"cat": 1, "zebra": 1}
    assert [r["label"] for r in stored(tmp_path / "out")] == [1, 0]
    again = "another row with this image came before"  # with another class: it is not known which one holds
    assert manifest["refused"] == {again: 1, "no field 'class'": 1, "unreadable": 1}


def test_spellings_of_a_label_are_one_class(tmp_path, capsys):
    labels = ["caf\u00e9", "cafe\u0301", "caf\u00e9\u00a0", "ant", " ant ", "Ant", "ice cream", "ice  cream"]
    src = write_table(tmp_path, [[f"{i}.png", "x", label] for i, label in enumerate(labels)])
    assert main(["image_text", str(src), str(tmp_path / "out"), "--label=label", "--workers=1"]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert manifest["splits"]["train"]["per_class"] == {"Ant": 1, "ant": 2, "café": 3, "ice  cream": 1, "ice cream": 1}
    said = capsys.readouterr()
    assert "field 'label', classes: names that look alike stay apart: 'Ant' and 'ant', 'ice  cream'" in said.err
    assert "  5 classes: 'Ant' 1, 'ant' 2, 'café' 3, 'ice  cream' 1, 'ice cream' 1\n" in said.out


@pytest.mark.parametrize(
    ("labels", "per_class"),
    [
        (["2", "2.0", "02", "10"], {"2": 3, "10": 1}),
        (["2", "2.0", "02", "x"], {"02": 1, "2": 1, "2.0": 1, "x": 1}),
        (["007", "010", "007"], {"007": 2, "010": 1}),
    ],
)
def test_numbers_are_one_class_if_all_are_numbers(tmp_path, capsys, labels, per_class):
    src = write_table(tmp_path, [[f"{i}.png", "x", label] for i, label in enumerate(labels)])
    assert build(src, tmp_path / "out", label="label")[0]["splits"]["train"]["per_class"] == per_class
    assert ("'02' and '2', '02' and '2.0'" in capsys.readouterr().err) == ("x" in per_class)


def test_spellings_of_a_group_fall_into_one_part(tmp_path, capsys):
    groups = [group for i in range(20) for group in (f"caf\u00e9{i}", f"cafe\u0301{i}", f" caf\u00e9{i}\u00a0")]
    groups += [group for i in range(20) for group in (f"{i}", f"0{i}.0")] + ["Ant", "ant"]
    src = write_table(tmp_path, [[f"{i}.png", "x", group] for i, group in enumerate(groups)])
    build(src, tmp_path / "out", group="label", parts={"a": 0.5, "b": 0.5})
    parts = [{clean_name(groups[int(key.split("/")[1])]) for key in keys(tmp_path / "out", f"train_{p}")} for p in "ab"]
    values = [{simplify_group(name) for name in part} for part in parts]
    assert not values[0] & values[1]
    assert len(values[0] | values[1]) == 42
    assert "field 'label', groups: names that look alike stay apart: 'Ant' and 'ant';" in capsys.readouterr().err


def test_spellings_of_a_split_are_one(tmp_path):
    for i, name in enumerate(("caf\u00e9", "cafe\u0301")):
        tar(tmp_path / "src" / name / f"{i}.tar", pair("k", i))
    assert {s: e["records"] for s, e in build(tmp_path / "src", tmp_path / "out")[0]["splits"].items()} == {"café": 2}


def test_classes_without_a_training_pair_are_dropped(tmp_path, capsys):
    for split, labels in (("train", "ab"), ("test", "abcc")):
        (tmp_path / "src" / split).mkdir(parents=True)
        write_table(tmp_path / "src" / split, [[f"{i}.png", f"{split} {i}", c] for i, c in enumerate(labels)])
    (tmp_path / "src" / "train" / "1.png").write_bytes(b"broken")  # the only b
    manifest, refused = build(tmp_path / "src", tmp_path / "out", label="label")
    assert (manifest["classes"], manifest["dropped_classes"]) == (["a"], ["b", "c"])
    reason = "its class has no usable image in the training split"
    assert manifest["refused"] == {"not an image": 1, reason: 3}
    assert ("test/x.csv", "3", f"{reason}: c") in refused
    assert {split: entry["per_class"] for split, entry in manifest["splits"].items()} == {
        "test": {"a": 1},
        "train": {"a": 1},
    }
    assert "building again without classes that have no training image: 'b', 'c'" in capsys.readouterr().err
    write_table(tmp_path / "src" / "train", [["0.png", "x", "a"], ["1.png", "x", "b"], ["2.png", "x", "c"]])
    write_table(tmp_path / "src" / "test", [["0.png", "x", "a"]])
    manifest, _ = build(tmp_path / "src", tmp_path / "out2", label="label")
    assert (manifest["dropped_classes"], manifest["missing_classes"]) == ([], {"test": ["b", "c"]})


def test_equal_texts_of_two_splits_are_counted(tmp_path, capsys):
    a = [("0", ["same", "own"]), ("1", ["same", "other", "same"]), ("2", ["alone"])]
    b = [("0", ["other", "same"]), ("1", ["b"]), ("2", ["Same"])]
    for split, pairs in (("a", a), ("b", b), ("c", [("0", ["c"])])):
        tar(tmp_path / "src" / split / "0.tar", [m for key, some in pairs for m in pair(key, 0, captions=some)])
    assert main(["image_text", str(tmp_path / "src"), str(tmp_path / "out"), "--workers=1"]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    counts = {"texts": 2, "captions": {"a": 4, "b": 2}, "pairs": {"a": 2, "b": 1}}
    assert manifest["equal_texts"] == [{"splits": ["a", "b"], **counts}]
    said = "equal texts in a and b: 2; pairs with them: 2 of 3 in a, 1 of 3 in b\n"
    assert said in capsys.readouterr().out


def test_folders_of_systems_are_no_splits(tmp_path):
    src = tmp_path / "src"
    tar(src / "train" / "0.tar", [*pair("k", 0), ("__MACOSX/k.jpg", b"?"), ("@eaDir/k.txt", b"?"), ("k.cls", b"1")])
    for name in ("@eaDir", "__MACOSX", "lost+found", "train/@eaDir", "train/$RECYCLE.BIN"):
        tar(src / name / "1.tar", pair("k", 1))
    for name in ("Thumbs.db", "train/desktop.ini", "train/.DS_Store", "train/0_stats.json"):
        (src / name).write_bytes(b"x")
    manifest, refused = build(src, tmp_path / "out")
    assert refused == []
    assert list(manifest["splits"]) == ["train"]
    system = "belongs to the system, not to the data"
    left_out = {system: 7, "hidden": 1, "beside a source: images of a table, or metadata": 1}
    assert manifest["seen"]["files"] == {"sources": 1, "refused": 0, "left_out": left_out}
    assert sum(left_out.values()) + 1 == sum(len(files) for _, _, files in os.walk(src))
    assert manifest["seen"]["members"] == {".cls": 1, ".jpg": 1, ".json": 1, ".txt": 1, system: 2}


def test_labels_are_sorted_by_value(tmp_path):
    """Check integers in a column with missing values: Arrow returns them as floats."""
    table = {"image": [picture(i) for i in range(5)], "caption": ["x"] * 5, "n": [10.0, 2.0, 1.0, float("nan"), 2.5]}
    for end, numbers in ((4, ["1", "2", "10"]), (5, ["1", "2", "2.5", "10"])):
        pq.write_table(pa.table(table).slice(0, end), tmp_path / "x.parquet")
        manifest, refused = build(tmp_path / "x.parquet", tmp_path / f"out{end}", label="n")
        assert manifest["classes"] == numbers
        assert refused == [("x.parquet", "3", "no field 'n'")]
