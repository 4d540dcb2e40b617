"""Test what leaves for other programs: cells of CSV files in spreadsheets, control characters at a terminal."""

import contextlib
import csv
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nml_jax import console, predict
from nml_jax.data.features.files import open_features
from nml_jax.models.heads.mlp import Form
from nml_jax.reporting.statistics.studies import COLUMNS, write_csv
from nml_jax.spreadsheet import escape_cell, restore_cell
from nml_jax.tuning.head_file import TunedHead

NAMES = (
    "=1+1",
    "-x",
    "+y",
    "@z",
    "\tt",
    "'=q",
    "'",
    "it's",
    "a=b",
    "-5",
    "7",
    "",
    "−1",
    "'+",
    "''-",
    "\ra",
    "--",
    "+-1",
)
EVIL = "cat\x1b]0;owned\x07\x1b[2J"


@pytest.mark.parametrize("name", NAMES)
def test_cells_survive_and_are_no_formulas(name: str):
    cell = escape_cell(name)
    assert restore_cell(cell) == name
    assert cell[:1] not in ("=", "+", "@", "\t", "\r")
    assert cell[:1] != "-" or float(cell) == -5


def test_different_cells_stay_different():
    assert len(set(map(escape_cell, NAMES))) == len(NAMES)
    assert escape_cell("plain") == "plain"
    assert restore_cell("'plain") == "'plain"


def save_head(path: Path, classes: tuple) -> Path:
    k = len(classes)
    params = {"classifier": {"kernel": np.eye(k, dtype=np.float32), "bias": np.zeros(k, np.float32)}}
    TunedHead(Form(False), params, {}, classes, {"method": "linear"}).save(path)
    return path


def test_predictions_are_safe_in_a_spreadsheet_and_read_back(tmp_path: Path):
    names = ("=SUM(A1)", "-x", "'@z", "plain")
    head = save_head(tmp_path / "h.safetensors", names)
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1]])
    out = tmp_path / "out.csv"
    assert predict.main([str(head), str(tmp_path / "x.npy"), "--out", str(out), "--proba"]) == 0
    lines = list(csv.reader(io.StringIO(out.read_text())))
    assert lines[0] == ["row", "prediction", "'=SUM(A1)", "'-x", "''@z", "plain"]
    assert [line[1] for line in lines[1:]] == ["'=SUM(A1)", "'-x", "''@z", "plain", "'-x"]
    found = open_features(str(out), label="prediction")
    assert found.labels.tolist() == [names[i] for i in (0, 1, 2, 3, 1)]


def test_numbers_of_classes_stay_numbers(tmp_path: Path, capsys: pytest.CaptureFixture):
    head = save_head(tmp_path / "h.safetensors", (-5, 3))
    np.save(tmp_path / "x.npy", np.eye(2, dtype=np.float32))
    assert predict.main([str(head), str(tmp_path / "x.npy")]) == 0
    assert capsys.readouterr().out == "row,prediction\n0,-5\n1,3\n"


def test_words_of_a_summary_are_escaped_and_numbers_are_not():
    import pandas as pd

    class Study:
        frame = pd.DataFrame([{**dict.fromkeys(COLUMNS, "-w"), "mean": "-0.5", "sd": "-inf", "n": 1, "seeds": "-1 2"}])

    (line,) = csv.DictReader(io.StringIO(write_csv([Study()])))  # type: ignore[list-item]
    assert (line["split"], line["task"], line["study"]) == ("'-w", "'-w", "'-w")
    assert (line["mean"], line["sd"], line["seeds"]) == ("-0.5", "-inf", "-1 2")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, "cat\\x1b]0;owned\\x07\\x1b[2J"),
        ("a\x9b31mb\x7f\r", "a\\x9b31mb\\x7f\\r"),
        ("safe\u202eevil\u2028", "safe\\u202eevil\\u2028"),
        ("\udcff", "\\udcff"),
        ("line\n\ttab − ü 猫 👩\u200d🔬", "line\n\ttab − ü 猫 👩\u200d🔬"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str, capsys: pytest.CaptureFixture):
    console.notice(text)
    console.show(text)
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\n")


def run_at_terminal(*arguments: str) -> bytes:
    """Run `predict` with a terminal as its output; return what the terminal gets."""
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "nml_jax.predict", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=Path(__file__).parents[1]) as child:
        os.close(theirs)
        out = b""
        with contextlib.suppress(OSError):  # the terminal of a program that has ended
            while part := os.read(terminal, 1 << 16):
                out += part
    os.close(terminal)
    assert child.returncode == 0, out
    return out


def test_predictions_at_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    head = save_head(tmp_path / "h.safetensors", (EVIL, "dog"))
    np.save(tmp_path / "x.npy", np.eye(2, dtype=np.float32))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert predict.main([str(head), str(tmp_path / "x.npy")]) == 0
    assert capsys.readouterr().out == "row,prediction\n0,cat\\x1b]0;owned\\x07\\x1b[2J\n1,dog\n"


@pytest.mark.slow
def test_a_terminal_gets_no_commands_from_names(tmp_path: Path, capsys: pytest.CaptureFixture):
    head = save_head(tmp_path / "h.safetensors", (EVIL, "dog"))
    data = tmp_path / f"{EVIL}.npz"
    np.savez(data, x=np.eye(2, dtype=np.float32), y=[EVIL, "dog"])
    got = run_at_terminal(str(head), str(data)).decode()
    assert "0,cat\\x1b]0;owned\\x07\\x1b[2J" in got
    assert "accuracy on the labels in the file: 100.00 %" in got
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", got)
    assert predict.main([str(head), str(data)]) == 0
    assert capsys.readouterr().out == f"row,prediction\n0,{EVIL}\n1,dog\n"  # no terminal: the name as it is
    assert predict.main([str(head), str(tmp_path / f"{EVIL}.npy")]) == 2
    assert "\x1b" not in capsys.readouterr().err
