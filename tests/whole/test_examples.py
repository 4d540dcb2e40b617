"""Run the examples. Code that needs PyTorch is only compiled."""

import csv
import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from nml_jax.data.features.files import check_alike, open_features

TEXTS = [f'text {i}, "quoted" ü' for i in range(7)]
NAMES = ["dog", "cat", "dog", "cow", "cat", "dog", "cow"]


@pytest.fixture
def example(root: Path) -> ModuleType:
    return load_module(root / "examples" / "export_features.py")


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_texts(path: Path, rows: list[tuple[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("text", "label"), *rows])
    return str(path)


def check_refused(capsys: pytest.CaptureFixture, words: str, program: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        program.main(arguments)
    assert re.search(f"error: .*{words}.*\n  cure: ", capsys.readouterr().err)


def test_the_file_and_the_classes_of_an_earlier_one(example: ModuleType, tmp_path: Path, capsys):
    texts, names = example.read_texts(Path(write_texts(tmp_path / "a.csv", list(zip(TEXTS, NAMES, strict=True)))))
    assert (texts, names) == (TEXTS, NAMES)
    features = np.random.default_rng(0).standard_normal((7, 3), np.float32)
    train, test = tmp_path / "train.safetensors", tmp_path / "test.safetensors"
    example.save(SimpleNamespace(out=train, like=None), features, names)
    found = open_features(str(train))
    np.testing.assert_array_equal(found.read()[:, 0], features)
    assert found.class_names == ("cat", "cow", "dog")
    assert found.labels.tolist() == [2, 0, 2, 1, 0, 2, 1]
    example.save(SimpleNamespace(out=test, like=train), features[:2], ["dog", "cow"])
    assert open_features(str(test)).labels.tolist() == [2, 1]
    check_alike(found, open_features(str(test)))
    with pytest.raises(SystemExit, match=r"^2$"):
        example.save(SimpleNamespace(out=test, like=train), features[:1], ["hen"])
    assert "no classes hen" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "test.safetensors", "train.safetensors"]


def test_a_table_without_texts(example: ModuleType, tmp_path: Path, capsys):
    (tmp_path / "texts.csv").write_text("sentence,label\nhello,1\n")
    for words in ("columns text and label", r"texts.csv cannot be read"):
        with pytest.raises(SystemExit, match=r"^2$"):
            example.read_texts(tmp_path / "texts.csv")
        assert words in capsys.readouterr().err
        (tmp_path / "texts.csv").unlink(missing_ok=True)


@pytest.mark.parametrize("command", ["timm", "open_clip", "hf"])
def test_every_subcommand_explains_itself(example: ModuleType, command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="0"):
        example.main([command, "--help"])
    assert "OUT" in capsys.readouterr().out


def test_sentences_as_features(root: Path, tmp_path: Path, capsys):
    program = load_module(root / "examples" / "text_features.py")
    rows = [(f"word{i} word{i % 3} again", "ab"[i % 2]) for i in range(20)]
    for folder in ("train", "other"):
        (tmp_path / folder).mkdir()
    train, test = write_texts(tmp_path / "train" / "d.csv", rows), write_texts(tmp_path / "other" / "e.csv", rows[:5])
    program.main([f"{tmp_path}/out", train, test, "--dim", "4"])
    found = [open_features(f"{tmp_path}/out/{name}.safetensors") for name in "de"]
    assert [(len(each), each.dim, each.class_names) for each in found] == [(20, 4, ("a", "b")), (5, 4, ("a", "b"))]
    np.testing.assert_array_equal(found[0].read()[:5], found[1].read())
    same = write_texts(tmp_path / "other" / "d.csv", rows[:5])
    words = r"d\.csv and a file before it would both become d\.safetensors"
    check_refused(capsys, words, program, [f"{tmp_path}/new", train, same])
    check_refused(capsys, r"none\.csv cannot be read", program, [f"{tmp_path}/new", f"{tmp_path}/none.csv"])
    check_refused(capsys, "--dim must be at least 1, got 0", program, [f"{tmp_path}/new", train, "--dim", "0"])
    check_refused(
        capsys,
        "empty vocabulary",
        program,
        [f"{tmp_path}/new", write_texts(tmp_path / "e.csv", [("", "a"), (" ", "b")])],
    )
    assert not (tmp_path / "new").exists()
    few = write_texts(tmp_path / "few.csv", [("one two", "a"), ("two three", "b"), ("four", "a")])
    program.main([f"{tmp_path}/few", few])  # asks for 256 features
    assert open_features(f"{tmp_path}/few/few.safetensors").dim == 3
    assert "3 features, not 256" in capsys.readouterr().err
