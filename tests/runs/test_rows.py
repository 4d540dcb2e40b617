"""Test rows and metrics files."""

import dataclasses
import errno
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from nml_jax import console
from nml_jax.errors import UserError
from nml_jax.runs.files import write_atomic
from nml_jax.runs.heads import head_name
from nml_jax.runs.metrics import Metrics, drop_after
from nml_jax.runs.rows import Row, hash_rows, read_rows, write_rows


def row(stage: str = "tune", **fields) -> Row:
    given = {
        "run": "noise=0,seed=0", "stage": stage, "step": 10, "weights": "raw", "noise_kind": "symmetric",
        "noise_asked": 0.0, "noise_realised": 0.0, "noise_seed": 0, "seed": 0, "objective": "supervised",
        "model": "resnet18", "metric": "accuracy", "value": 0.5, "task": "digits", "split": "test", "domain": "id",
        "hyper": {"lr": 0.1},
    }  # fmt: skip
    return Row(**given | fields)


def test_rows_come_back_and_stages_replace_their_own(tmp_path):
    write_rows(tmp_path, "extract", [row("extract", metric="sve", value=1.25)])
    write_rows(tmp_path, "tune", [row(value=0.1), row(value=0.2)])
    write_rows(tmp_path, "tune", [row(value=0.3)])
    assert [(r.stage, r.value) for r in read_rows(tmp_path)] == [("extract", 1.25), ("tune", 0.3)]
    assert read_rows(tmp_path)[1] == row(value=0.3)


@pytest.mark.parametrize("line", ["{", '{"run": 1}', '{"colour": "red"}', "[]"])
def test_a_line_that_is_not_a_row_is_named(tmp_path, line: str):
    write_rows(tmp_path, "tune", [row()])
    with (tmp_path / "rows.jsonl").open("a") as f:
        f.write(line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_rows(tmp_path)


def write_schema_1(folder: Path, *rows: dict) -> list[str]:
    """Write rows as versions before schema 2 did, with meaning in strings, and return the lines."""
    known = [field.name for field in dataclasses.fields(Row) if field.name not in ("output", "wise_alpha")]
    given = [{key: getattr(row(), key) for key in known} | {"schema": 1} | fields for fields in rows]
    lines = [json.dumps(fields, ensure_ascii=False) for fields in given]
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return lines


def test_rows_of_schema_1_are_read_as_rows_of_schema_2(tmp_path):
    spectrum = {"metric": "sve", "spectrum_mode": "paper"}
    write_schema_1(
        tmp_path,
        {"layer": "features", "method": "nmtune", "preset": "code/1view,svd=0.1", "views": 1},
        {"layer": "Z", "method": "mlp", **spectrum},
        {"layer": "Z of block3", "method": "mlp", **spectrum},
        {"layer": "block3", "stage": "extract", **spectrum},
        {"metric": "macro_f1@wise=0.333333", "method": "lora", "hyper": {"lr": 0.1, "wise_alpha": 1 / 3}},
    )
    score, z, z_of_block, features, wise = read_rows(tmp_path)
    assert (score.preset, score.views, score.layer, score.output) == ("code,svd=0.1", 1, "features", None)
    assert head_name({**vars(score), "train_share": 1.0}).startswith("nmtune,code_1view,svd=0.1")
    assert [(r.layer, r.output) for r in (z, z_of_block, features)] == [
        ("features", "Z"), ("block3", "Z"), ("block3", "features"),
    ]  # fmt: skip
    assert (wise.metric, wise.wise_alpha, wise.hyper) == ("macro_f1", 1 / 3, {"lr": 0.1})
    assert {r.schema for r in read_rows(tmp_path)} == {2}


def test_lines_of_schema_1_keep_their_digest_when_another_stage_is_redone(tmp_path):
    lines = write_schema_1(tmp_path, {"stage": "extract", "layer": "features"}, {"stage": "tune", "layer": "features"})
    as_written = json.dumps(json.loads(lines[0]), ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(as_written.encode()).hexdigest()
    assert hash_rows(tmp_path, ["extract"]) == {"extract": digest}
    write_rows(tmp_path, "tune", [row(value=0.25)])
    assert (tmp_path / "rows.jsonl").read_text().splitlines()[0] == lines[0]
    assert hash_rows(tmp_path, ["extract"]) == {"extract": digest}
    assert [r.schema for r in read_rows(tmp_path)] == [2, 2]


def test_a_row_of_another_schema_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(dataclasses.asdict(row()) | {"schema": 99}) + "\n")
    with pytest.raises(UserError, match="schema 99"):
        read_rows(tmp_path)


def test_a_restart_drops_what_was_written_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    drop_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_metrics_are_written_as_json_lines_and_events(tmp_path, capsys):
    writer = Metrics(tmp_path, step=0, steps=10, batch=4, label="cell")
    writer.add_wait(1e6)
    speed = writer.progress(5, {"loss": 0.5})
    writer.write(5, {"train/loss": 0.5, **speed})
    writer.close()
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 5
    assert line["train/loss"] == 0.5
    assert line["data_wait"] == 1.0
    assert line["examples_per_s"] > 0
    assert list((tmp_path / "tensorboard").iterdir())
    shown = capsys.readouterr().err
    assert "cell  step 5/10  loss 0.5" in shown
    assert "ETA" in shown


def test_without_a_terminal_the_progress_line_is_printed_once_a_minute(tmp_path, capsys, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    writer = Metrics(tmp_path, step=0, steps=100, batch=4, label="cell")
    shown = []
    for step in range(1, 8):
        writer.progress(step, {"loss": 0.5})
        shown.append(capsys.readouterr().err.count("\n"))
        now += 25.0
    assert shown == [1, 0, 0, 1, 0, 0, 1]
    writer.close()
    assert capsys.readouterr().err == "", "the last line is already printed"


def test_the_last_progress_line_is_printed_at_the_end(tmp_path, capsys):
    writer = Metrics(tmp_path, step=0, steps=100, batch=4, label="cell")
    writer.progress(1, {})
    writer.progress(100, {})
    assert "step 100/100" not in capsys.readouterr().err
    writer.close()
    assert capsys.readouterr().err.count("step 100/100") == 1


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "a", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old"}


def test_samples_are_lines_of_steps_and_a_restart_writes_its_own_again(tmp_path):
    writer = Metrics(tmp_path, step=0, steps=10, batch=2, label="cell")
    writer.write_samples({1: [4, 2], 2: [0, 1], 3: [3, 5]})
    writer.close()
    again = Metrics(tmp_path, step=2, steps=10, batch=2, label="cell")
    again.write_samples({3: [3, 5]})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "ids": [4, 2]}, {"step": 2, "ids": [0, 1]}, {"step": 3, "ids": [3, 5]}]


def test_clock():
    assert [console.format_seconds(s) for s in (5, 65, 3661, float("nan"))] == ["0:05", "1:05", "1:01:01", "?"]
