"""Test predictions of texts: with the encoder and tokenizer that a head was tuned on, pairs, and the own classifier."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nml_jax import load_model, predict, runtime, settings
from nml_jax.assembly.fingerprint import describe_encoder
from nml_jax.assembly.open_encoder import open_encoder
from nml_jax.data.text.batches import load_tokenizer
from nml_jax.export import __main__ as export
from nml_jax.models.heads.mlp import Form
from nml_jax.tuning.head_file import TunedHead
from tests.export import golden_texts
from tests.scenes import leaving

WORDS = ("hello", "world", "in the", "a text", "A", "b")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Return a folder with a run of a text encoder with a head, its exported folder, and a table of pairs."""
    home = tmp_path_factory.mktemp("texts")
    leaving.make_run(home / "run", **golden_texts.make_case("bert", home))
    assert export.main([str(home / "run"), str(home / "out")]) == 0
    rng = np.random.default_rng(0)
    lines = ["id\tsentence1\tsentence2\tlabel"]
    for i in range(90):
        first, second = (" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(2))
        lines.append(f"row {i}\t{first}\t{second}\t{rng.choice(leaving.CLASSES)}")
    (home / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return home


def read_pairs(home: Path) -> list[list[str]]:
    return [line.split("\t") for line in (home / "pairs.tsv").read_text().splitlines()[1:]]


def compute(home: Path, texts: list[tuple[str, ...]], name: str) -> np.ndarray:
    """Compute an output of the run's model of texts, each alone among the others, all of one length."""
    loaded = load_model(home / "run")
    tokenizer = load_tokenizer(settings.from_json(loaded.meta["config"]), loaded.model)
    batch = tokenizer(texts).make_batch(np.arange(len(texts)), len(texts), 12)
    return np.asarray(loaded.model.apply(loaded.params, {}, batch, train=False, key=None)[0][name])


def save_head(home: Path, texts: int, **about: Any) -> tuple[Path, np.ndarray]:
    opened = open_encoder(home / "run", runtime.make_mesh())
    told = {**describe_encoder(opened.config, opened.encoder), "layer": "block0", "texts": texts, **about}
    kernel = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    params = {"classifier": {"kernel": kernel, "bias": np.zeros(3, np.float32)}}
    path = home / f"head{texts}.safetensors"
    TunedHead(Form(False), params, {}, leaving.CLASSES, {"method": "lbfgs", "encoder": told}).save(path)
    return path, kernel


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("encoder", ["run", "out"])
def test_pairs_are_predicted_in_their_order_by_a_run_and_by_its_folder(home: Path, encoder: str, capsys, tmp_path):
    head, kernel = save_head(home, 2)
    arguments = [str(head), str(home / "pairs.tsv"), f"--encoder={home / encoder}", "--proba", "--keep=id,sentence2",
                 f"--out={tmp_path / 'out.csv'}"]  # fmt: skip
    assert predict.main(arguments) == 0
    rows, cells = read_csv(tmp_path / "out.csv"), read_pairs(home)
    logits = compute(home, [(a, b) for _, a, b, _ in cells], "block0") @ kernel
    odds = np.exp(logits - logits.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    assert [row["id"] for row in rows] == [line[0] for line in cells]
    assert [row["sentence2"] for row in rows] == [line[2] for line in cells]
    assert [row["prediction"] for row in rows] == [leaving.CLASSES[c] for c in logits.argmax(1)]
    found = [[float(row[name]) for name in leaving.CLASSES] for row in rows]
    np.testing.assert_allclose(found, odds, atol=1e-5)
    right = np.mean([leaving.CLASSES[c] == line[3] for c, line in zip(logits.argmax(1), cells, strict=True)])
    assert f"accuracy on the labels in the file: {100 * right:.2f} %" in capsys.readouterr().err


def test_the_own_classifier_reads_single_texts(home: Path, tmp_path: Path):
    arguments = ["own", str(home / "pairs.tsv"), f"--encoder={home / 'run'}", "--columns=sentence1",
                 f"--out={tmp_path / 'out.csv'}"]  # fmt: skip
    assert predict.main(arguments) == 0
    logits = compute(home, [(line[1],) for line in read_pairs(home)], "logits")
    want = [leaving.CLASSES[c] for c in logits.argmax(1)]
    assert [row["prediction"] for row in read_csv(tmp_path / "out.csv")] == want


@pytest.mark.parametrize(
    ("texts", "arguments", "words"),
    [
        (1, [], "tuned on one text, and a row here has 'sentence1' and 'sentence2'"),
        (2, ["--columns=sentence1"], "tuned on pairs of texts, and a row here has 'sentence1'"),
        (2, ["--keep=nothing"], "has no column 'nothing'"),
        (2, ["--keep=prediction"], "has a column of that name"),
        (2, ["--label=sort"], "has no column 'sort'"),
        (2, ["--columns=a,b"], "has no column 'a'"),
    ],
)
def test_bad_tables(home: Path, texts: int, arguments: list[str], words: str, capsys, tmp_path: Path):
    head, _ = save_head(home, texts)
    out = tmp_path / "out.csv"
    assert (
        predict.main([str(head), str(home / "pairs.tsv"), f"--encoder={home / 'run'}", f"--out={out}", *arguments]) == 2
    )
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_another_tokenizer_or_length_is_another_encoder(home: Path, capsys):
    for key, value in (("tokenizer", "0" * 64), ("length", 64)):
        opened = open_encoder(home / "run", runtime.make_mesh())
        seen = describe_encoder(opened.config, opened.encoder)["preprocessing"] | {key: value}
        head, _ = save_head(home, 2, preprocessing=seen)
        assert predict.main([str(head), str(home / "pairs.tsv"), f"--encoder={home / 'run'}"]) == 2
        assert f"preprocessing: {key} was {value}" in capsys.readouterr().err
    head, _ = save_head(home, 2)
    assert predict.main([str(head), str(home / "nowhere.tsv"), f"--encoder={home / 'run'}"]) == 2
    assert "does not exist" in capsys.readouterr().err
