"""Test a stage as a value: what it needs to count as done, and what it removes."""

import dataclasses
from pathlib import Path

from nml_jax.runs.rows import Row, write_rows
from nml_jax.stages import runner
from nml_jax.stages.stage import Outputs


def make_row(stage: str, task: str) -> Row:
    return Row(
        run="r", stage=stage, step=1, weights="raw", noise_kind="symmetric", noise_asked=0.0, noise_realised=0.0,
        noise_seed=0, seed=0, objective="supervised", model="resnet18", metric="accuracy", value=0.5, task=task,
        split="test", domain="id",
    )  # fmt: skip


def test_each_stage_of_the_table_is_called_as_the_table_says():
    for name in runner.STAGES:
        stage = runner.find_stage(name)
        assert stage.name == name
        assert set(stage.upstream) <= set(runner.STAGES[: runner.STAGES.index(name)])


def test_what_a_stage_leaves_is_all_needed_unless_its_rows_decide(tmp_path: Path):
    stage = dataclasses.replace(runner.find_stage("diagnose"), outputs=Outputs(("a.json", "b")))
    (tmp_path / "a.json").write_text("")
    assert not stage.intact(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").write_text("")
    assert stage.intact(tmp_path)
    stage.forget(tmp_path)
    assert [*tmp_path.iterdir()] == []
    stage.forget(tmp_path)  # again, with nothing to remove

    of_rows = Outputs(("b",), lambda run, rows: [run / row.task for row in rows])
    stage = dataclasses.replace(stage, outputs=of_rows)
    assert stage.intact(tmp_path)
    write_rows(tmp_path, "diagnose", [make_row(stage="diagnose", task="b")])
    write_rows(tmp_path, "tune", [make_row(stage="tune", task="another stage's")])
    assert not stage.intact(tmp_path)
    (tmp_path / "b").mkdir()
    assert stage.intact(tmp_path)


def test_going_on_with_other_threads_is_told(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(runner.runtime, "describe_environment", lambda: {"threads": "2"})
    begun = {"stages": {"pretrain": {"inputs": {}, "threads": [2]}}}
    assert runner._list_threads(tmp_path, begun, begun["stages"]["pretrain"]) == {"threads": [2]}
    assert not capsys.readouterr().err
    begun = {"stages": {"pretrain": {"inputs": {}, "threads": [8]}}}
    assert runner._list_threads(tmp_path, begun, begun["stages"]["pretrain"]) == {"threads": [8, 2]}
    assert "begun with 8 CPU thread(s) for an operation, it goes on with 2" in capsys.readouterr().err
    finished = {"stages": {"pretrain": {"output": "", "environment": {"threads": "8"}}}}
    assert runner._list_threads(tmp_path, finished, {}) == {"threads": [2]}  # of the next stage
    assert "NPROC=8" in capsys.readouterr().err
    monkeypatch.setattr(runner.runtime, "describe_environment", dict)  # of a GPU
    assert runner._list_threads(tmp_path, finished, {}) == {}
