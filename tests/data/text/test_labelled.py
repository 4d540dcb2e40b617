"""Test files of a label and a text per line, and the vocabulary that is trained on tables."""

import json
from pathlib import Path

import pytest

from nml_jax import tokenizer
from nml_jax.data.sources import load
from nml_jax.data.text.folders import TextTokenizer
from nml_jax.data.text.tables import read_table
from nml_jax.errors import UserError


def test_a_label_a_blank_and_a_text_in_utf_8_or_latin_1(tmp_path: Path):
    path = tmp_path / "TREC.train.all"
    path.write_bytes(
        "0 How far is it ?\r\n1 Was a caf\u00e9 there ?\n\n".encode() + "1 Caf\u00e9 ?\n".encode("latin-1")
    )
    table = read_table(path)
    assert dict(table) == {
        "label": ["0", "1", "1"],
        "text": ["How far is it ?", "Was a caf\u00e9 there ?", "Caf\u00e9 ?"],
    }
    assert table.place(2) == "line 4"
    path.write_text("0 good\nalone\n")
    with pytest.raises(UserError, match="line 2: 'alone' is no label, blank and text"):
        read_table(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="has no rows"):
        read_table(path)


def test_a_vocabulary_of_tables_has_their_texts_and_not_their_labels(tmp_path: Path, capsys):
    rows = [f"{text}\tzebra" for text in ("hello world", "hello words", "world of words") * 4]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    out = tmp_path / "own.json"
    assert tokenizer.main(["train", str(tmp_path / "train.tsv"), str(out), "--vocab", "530"]) == 0
    size = TextTokenizer(out, 20).size
    assert f"--config.model.vocab={size}" in capsys.readouterr().out
    merges = ["".join(pair) for pair in json.loads(out.read_text())["model"]["merges"]]
    assert any("wor" in merge for merge in merges)
    assert not any("ze" in merge for merge in merges)
    table = TextTokenizer(out, 20)([("hello",), ("hello", "world")])
    start, end = table.ids[0], table.ids[table.lengths[0] - 1]
    assert {int(start), int(end)} == {size - 2, size - 1}


def test_a_folder_of_tables_is_a_source_with_splits(tmp_path: Path):
    (tmp_path / "train.csv").write_text("text,class\na b,x\nc,y\n")
    source = load("texts", str(tmp_path), "train")
    assert source.class_names == ("x", "y")
    assert source.labels.tolist() == [0, 1]
    with pytest.raises(UserError, match="texts have labels, and no captions"):
        load("texts", str(tmp_path), "train", captions=True)
    with pytest.raises(UserError, match="holds no dev"):
        load("texts", str(tmp_path), "dev")
