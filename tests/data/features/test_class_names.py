"""Test that labels of files that number their classes differently are matched by name."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml_jax.data.features.files import Features, encode, find_classes, open_features, translate_labels
from nml_jax.errors import UserError

NAMES = ["cat", "dog", "eel"]
WORDS = np.array(NAMES * 4)
X = np.random.default_rng(0).normal(size=(len(WORDS), 3)).astype(np.float32)


def open_words(path: Path, names: list[str], words: np.ndarray = WORDS) -> Features:
    """Write a file whose labels number `words` by their place in `names`, which its metadata hold; open it."""
    codes = np.array([names.index(word) for word in words])
    if path.suffix == ".npz":
        np.savez(path, x=X[: len(words)], y=codes, class_names=names)
        return open_features(str(path))
    feature = {"names": names, "_type": "ClassLabel"}
    info = json.dumps({"info": {"features": {"y": feature, "e": {"_type": "Sequence"}}}})
    table = pa.table({"e": list(X[: len(words)]), "y": codes})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), path)
    return open_features(str(path))


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_classes_are_matched_by_name(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture):
    train = open_words(tmp_path / f"train.{suffix}", NAMES)
    assert (train.class_names, train.labels.tolist()) == (tuple(NAMES), [0, 1, 2] * 4)
    assert translate_labels(train, open_words(tmp_path / f"same.{suffix}", [*NAMES, "fox"])).tolist() == [0, 1, 2] * 4
    assert "by name" not in capsys.readouterr().err
    for names in (NAMES[::-1], ["fox", "dog", "cat", "eel"]):
        other = open_words(tmp_path / f"other.{suffix}", names)
        assert other.labels.tolist() != train.labels.tolist()
        assert translate_labels(train, other).tolist() == [0, 1, 2] * 4
    assert f"other.{suffix}: its classes are matched to those of {train.path} by name" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=rf"other\.{suffix} has the classes 'fox', which .*train\.{suffix} does not name"
    ):
        translate_labels(train, open_words(tmp_path / f"other.{suffix}", ["fox", *NAMES], np.array(["cat", "fox"])))


def test_names_of_classes_beside_words_and_bare_numbers(tmp_path: Path, capsys: pytest.CaptureFixture):
    numbers = open_words(tmp_path / "numbers.parquet", NAMES)
    categories = pa.array(WORDS[::-1].tolist()).dictionary_encode()
    pq.write_table(pa.table({"e": list(X), "y": categories}), tmp_path / "words.parquet")
    words = open_features(f"{tmp_path}/words.parquet")
    assert (words.class_names, words.labels.tolist()) == ((), WORDS[::-1].tolist())
    assert translate_labels(numbers, words).tolist() == [2, 1, 0] * 4
    other = open_words(tmp_path / "other.parquet", NAMES[::-1])
    assert translate_labels(words, other).tolist() == WORDS.tolist()
    classes = find_classes(words.labels)
    assert encode(translate_labels(words, other), classes, "test").tolist() == [0, 1, 2] * 4
    np.savez(tmp_path / "bare.npz", x=X, y=[0, 1, 2] * 4)
    bare = open_features(f"{tmp_path}/bare.npz")
    capsys.readouterr()
    assert translate_labels(numbers, bare).tolist() == translate_labels(bare, numbers).tolist() == [0, 1, 2] * 4
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{bare.path} does not name its classes: its numbers are taken as those of {numbers.path}"]
    np.savez(tmp_path / "text.npz", x=X, y=[*"012"] * 4)
    text = open_features(f"{tmp_path}/text.npz")
    assert translate_labels(numbers, text).tolist() == [*"012"] * 4  # which `encode` takes as numbers


def test_a_class_label_without_a_name_is_no_label(tmp_path: Path):
    open_words(tmp_path / "x.parquet", NAMES)
    table = pq.read_table(tmp_path / "x.parquet")
    pq.write_table(table.set_column(1, "y", pa.array([0, 1, -1] * 4)), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="4 labels have no name among the 3 classes in its metadata, as in row 2: -1"):
        open_features(f"{tmp_path}/x.parquet")
    assert not len(open_features(f"{tmp_path}/x.parquet", labelled=False).labels)


NONE = '{"info": {"features": {"y": {"_type": "ClassLabel", "names": null}}}}'


@pytest.mark.parametrize("info", ["", "{", "[]", NONE, '{"info": null}', "[" * 100_000])
def test_metadata_without_names(tmp_path: Path, info: str):
    table = pa.table({"e": list(X), "y": [0, 1, 2] * 4}).replace_schema_metadata({"huggingface": info})
    pq.write_table(table, tmp_path / "x.parquet")
    found = open_features(f"{tmp_path}/x.parquet")
    assert (found.class_names, found.labels.tolist()) == ((), [0, 1, 2] * 4)
