"""Test applying a saved head on the command line: what it reads, what it writes, what it leaves alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from nml_jax import predict
from nml_jax.data.features import files, opened
from nml_jax.models.heads.mlp import Form
from nml_jax.tuning.head_file import TunedHead

D = 3
CLASSES = ("ant", "bee", "cat")
X = np.random.default_rng(0).normal(size=(50, D)).astype(np.float32)
ANSWER = X.argmax(1)  # the predictions of the identity


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return save_head(tmp_path / "head.safetensors")


def save_head(path: Path, method: str = "lbfgs", columns: tuple[str, ...] = (), **about: str) -> Path:
    params = {"classifier": {"kernel": np.eye(D, dtype=np.float32), "bias": np.zeros(D, np.float32)}}
    TunedHead(Form(False), params, {}, CLASSES, {"method": method, **about}, columns).save(path)
    return path


def write_table(path: Path, names: str, order: tuple[int, ...], labels: bool = True) -> Path:
    rows = [",".join([*(repr(float(row[i])) for i in order), CLASSES[c]]) for row, c in zip(X, ANSWER, strict=True)]
    rows = rows if labels else [row.rsplit(",", 1)[0] for row in rows]
    path.write_text(names + "\n" + "\n".join(rows) + "\n")
    return path


def read_predictions(path: Path) -> list[str]:
    return [line.split(",")[1] for line in path.read_text().splitlines()[1:]]


def test_columns_are_taken_by_name(tmp_path: Path, capsys: pytest.CaptureFixture):
    named = save_head(tmp_path / "named.safetensors", columns=("y", "b", "c"))
    for names, order in (("y,b,c,label", (0, 1, 2)), ("c,y,b,label", (2, 0, 1)), ("c,y,more,b,label", (2, 0, 0, 1))):
        data = write_table(tmp_path / "x.csv", names, order)
        assert predict.main([str(named), str(data), "--out", str(tmp_path / "out.csv")]) == 0
        assert read_predictions(tmp_path / "out.csv") == [CLASSES[i] for i in ANSWER]
        assert "file: 100.00 %" in capsys.readouterr().err
    unlabelled = write_table(
        tmp_path / "x.csv", "b,c,y", (1, 2, 0), labels=False
    )  # here y is a feature, despite its name
    assert predict.main([str(named), str(unlabelled)]) == 0
    assert "accuracy" not in capsys.readouterr().err
    np.save(tmp_path / "x.npy", X)  # no names, so columns go by position
    assert predict.main([str(named), str(tmp_path / "x.npy"), "--out", str(tmp_path / "out.csv")]) == 0
    assert read_predictions(tmp_path / "out.csv") == [CLASSES[i] for i in ANSWER]
    assert predict.main([str(named), str(write_table(tmp_path / "x.csv", "y,b,d,label", (0, 1, 2)))]) == 2
    assert "lacks the feature columns 'c'" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["same", "hard", "soft"])
def test_an_input_is_never_replaced(head: Path, tmp_path: Path, link: str, capsys: pytest.CaptureFixture):
    data = write_table(tmp_path / "x.csv", "a,b,c,label", (0, 1, 2))
    before = data.read_bytes(), head.read_bytes()
    for path in (data, head):
        out = path if link == "same" else tmp_path / f"link-{path.name}"
        if link != "same":
            getattr(out, "hardlink_to" if link == "hard" else "symlink_to")(path)
        assert predict.main([str(head), str(data), "--out", str(out)]) == 2
        assert f"would replace the input {path}" in capsys.readouterr().err
    assert (data.read_bytes(), head.read_bytes()) == before


def test_a_file_appears_whole_or_not_at_all(head: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(opened, "BLOCK_ROWS", 16)
    data, out = tmp_path / "x.npy", tmp_path / "out" / "p.csv"
    spoiled = X.copy()
    spoiled[40] = np.nan
    np.save(data, spoiled)
    assert predict.main([str(head), str(data), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert f"there is no folder {out.parent}" in told
    assert "workdir" not in told
    out.parent.mkdir()
    out.write_text("before")
    assert predict.main([str(head), str(data), "--out", str(out)]) == 2
    assert "1 of 16 rows in this block (of 50 in the file) hold" in capsys.readouterr().err
    assert [path.read_text() for path in out.parent.iterdir()] == ["before"]
    np.save(data, X)
    assert predict.main([str(head), str(data), "--out", str(out)]) == 0
    assert [line.split(",")[0] for line in out.read_text().splitlines()] == ["row", *map(str, range(50))]
    assert len(list(out.parent.iterdir())) == 1
    assert predict.main([str(head), str(data), "--out", str(out.parent)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_link_is_written_through_and_a_device_stays_one(head: Path, tmp_path: Path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "link.csv").symlink_to(tmp_path / "out.csv")
    assert predict.main([str(head), str(tmp_path / "x.npy"), "--out", str(tmp_path / "link.csv")]) == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert len(read_predictions(tmp_path / "out.csv")) == 50
    assert predict.main([str(head), str(tmp_path / "x.npy"), "--out", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


def test_probabilities_and_heads_without_them(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    np.save(tmp_path / "x.npy", X)
    assert predict.main([str(head), str(tmp_path / "x.npy"), "--proba"]) == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["row", "prediction", *CLASSES]
    odds = np.exp(X.astype(float)) / np.exp(X.astype(float)).sum(1, keepdims=True)
    np.testing.assert_allclose(np.array([line[2:] for line in lines[1:]], float), odds, rtol=1e-5)
    ridge = save_head(tmp_path / "ridge.safetensors", "ridge")
    assert predict.main([str(ridge), str(tmp_path / "x.npy"), "--proba"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "ridge" in said.err
    assert predict.main([str(ridge), str(tmp_path / "x.npy")]) == 0


def test_labels_by_name(tmp_path: Path):
    def names(labels: list[int]) -> list[str]:
        save_file({"x": X[: len(labels)], "y": np.array(labels)}, tmp_path / "x.safetensors",
                  {"class_names": '["ant", "bee"]'})  # fmt: skip
        return predict.label_names(files.open_features(str(tmp_path / "x.safetensors")))

    assert names([1, 0]) == ["bee", "ant"]
    assert names([-1, 0]) == ["-1", "0"]  # -1 is not a class number
    assert names([2, 0]) == ["2", "0"]


def test_a_head_of_numbers_on_a_file_that_names_them(tmp_path: Path):
    save_file({"x": X[:2], "y": np.array([1, 0])}, tmp_path / "x.safetensors", {"class_names": '["ant", "bee"]'})
    found = files.open_features(str(tmp_path / "x.safetensors"))
    assert predict.label_names(found, (0, 1)) == ["1", "0"]
    assert predict.label_names(found, ("ant", "cat")) == ["bee", "ant"]


def test_a_reader_that_is_gone(head: Path, tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros((30_000, D), np.float32))
    command = f"{sys.executable} -m nml_jax.predict {head} {tmp_path / 'x.npy'} | head -3"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=Path(__file__).parents[1],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.stdout.splitlines() == ["row,prediction", "0,ant", "1,ant"]
    assert done.returncode == predict.CLOSED
    assert done.stderr == ""


REFUSED = """error: cannot write {}: {}
  cure: give --out a file in a folder with room
"""


needs_full = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")


@pytest.mark.parametrize(
    ("to", "why"), [pytest.param("> /dev/full", "No space left on device", marks=needs_full), (">&-", "it is closed")]
)
def test_standard_output_that_cannot_be_written(head: Path, tmp_path: Path, to: str, why: str):
    np.save(tmp_path / "x.npy", X)
    command = f"{sys.executable} -m nml_jax.predict {head} {tmp_path / 'x.npy'} {to}"
    done = subprocess.run(["bash", "-c", command], cwd=Path(__file__).parents[1], capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert (done.returncode, done.stderr) == (2, REFUSED.format("standard output", why))


@needs_full
@pytest.mark.parametrize("rows", [10, 10_000])
def test_a_device_that_is_full(head: Path, tmp_path: Path, rows: int, capsys: pytest.CaptureFixture):
    """Test errors while rows are written, and when the last rows leave the buffer."""
    np.save(tmp_path / "x.npy", np.zeros((rows, D), np.float32))
    assert predict.main([str(head), str(tmp_path / "x.npy"), "--out", "/dev/full"]) == 2
    assert capsys.readouterr().err == REFUSED.format("/dev/full", "No space left on device")


def test_classes_that_the_head_does_not_know_are_reported(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    labels = np.array(CLASSES)[ANSWER]
    data, out = tmp_path / "x.npz", ["--out", str(tmp_path / "out.csv")]
    for count, text in ((0, "file: 100.00 %"), (20, "60.00 %; 20 of 50 rows count as wrong: ")):
        labels[:count] = "dog"
        np.savez(data, features=X, labels=labels)
        assert predict.main([str(head), str(data), *out]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
        assert ("'dog'" in line) == bool(count)
    np.savez(data, features=X, labels=np.arange(50))
    assert predict.main([str(head), str(data), *out]) == 0
    assert capsys.readouterr().err == "labels are not used: the head knows none of their classes, such as '0'\n"


def test_labels_may_be_spelled_in_another_way(tmp_path: Path, capsys: pytest.CaptureFixture):
    params = {"classifier": {"kernel": np.eye(D, dtype=np.float32), "bias": np.zeros(D, np.float32)}}
    path, data = tmp_path / "head.safetensors", tmp_path / "x.npz"
    for classes, spelled in (
        (("caf\u00e9", "bee", "cat"), ("cafe\u0301", "bee\u00a0", " cat")),
        ((1, 2, 10), ("01", "2.0", "10")),
    ):
        TunedHead(Form(False), params, {}, classes, {"method": "lbfgs"}, ()).save(path)
        np.savez(data, features=X, labels=np.array(spelled)[ANSWER])
        assert predict.main([str(path), str(data), "--out", str(tmp_path / "out.csv")]) == 0
        assert "accuracy on the labels in the file: 100.00 %\n" in capsys.readouterr().err


def test_bad_labels_do_not_prevent_predictions(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    labels = np.array(CLASSES)[ANSWER]
    data, out = tmp_path / "x.npz", tmp_path / "out.csv"
    for arrays in ({"y": labels.astype(object)}, {"y": labels, "label": labels}, {"y": labels[:-1]}):
        np.savez(data, features=X, **arrays)
        assert predict.main([str(head), str(data), "--out", str(out)]) == 0
        assert read_predictions(out) == labels.tolist()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("labels are not used: ")


def test_columns_are_kept(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    ids = [f"0{i}" if i else "=1+1" for i in range(50)]
    out = tmp_path / "out.csv"
    rows = [
        json.dumps({"id": a, "n": i if i else None, "e": row})
        for i, (a, row) in enumerate(zip(ids, X.tolist(), strict=True))
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    with pa.ipc.new_file(tmp_path / "x.arrow", (table := pa.table({"id": ids, "e": list(X)})).schema) as file:
        file.write_table(table)
    (tmp_path / "x.csv").write_text(
        "a,b,c,id\n" + "\n".join(f"{','.join(map(str, row))},{i}" for row, i in zip(X, ids, strict=True))
    )
    np.savez(tmp_path / "x.npz", features=X, id=np.array(ids))
    for name in ("x.jsonl", "x.arrow", "x.csv", "x.npz"):
        assert predict.main([str(head), str(tmp_path / name), "--out", str(out), "--keep=id"]) == 0
        lines = [line.split(",") for line in out.read_text().splitlines()]
        assert lines[0] == ["row", "id", "prediction"]
        assert [line[1] for line in lines[1:]] == ["'=1+1", *ids[1:]]
        assert [line[2] for line in lines[1:]] == [CLASSES[i] for i in ANSWER]
    assert predict.main([str(head), f"{tmp_path}/x.jsonl", "--out", str(out), "--keep=n,id"]) == 0
    assert [line.split(",")[:3] for line in out.read_text().splitlines()[1:3]] == [["0", "", "'=1+1"], ["1", "1", "01"]]
    twice = f"{tmp_path}/x.jsonl;{tmp_path}/x.arrow"
    assert predict.main([str(head), twice, "--out", str(out), "--keep=id"]) == 0
    assert [line.split(",")[1] for line in out.read_text().splitlines()[1:]] == 2 * ["'=1+1", *ids[1:]]
    for name, words in (("text", "no column 'text'"), ("row", "the output has a column of that name")):
        assert predict.main([str(head), f"{tmp_path}/x.csv", f"--keep={name}"]) == 2
        assert words in capsys.readouterr().err


def test_the_label_of_training_is_remembered(tmp_path: Path, capsys: pytest.CaptureFixture):
    data = write_table(tmp_path / "x.csv", "a,b,c,animal", (0, 1, 2))
    for about, told in (({"label": "animal"}, True), ({}, False), ({"label": "gone"}, False)):
        path = save_head(tmp_path / "named.safetensors", columns=("a", "b", "c"), **about)
        assert predict.main([str(path), str(data)]) == 0
        assert ("accuracy on the labels in the file: 100.00 %" in capsys.readouterr().err) is told
