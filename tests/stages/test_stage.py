"""Test a stage as a value: what it needs to count as done, and what it removes."""

import dataclasses
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import common
from nml_jax import settings
from nml_jax.errors import UserError
from nml_jax.runs.record import check_files, read_config, read_record, write_record
from nml_jax.runs.rows import Row, write_rows
from nml_jax.stages import experiment, runner
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


def test_an_edited_file_of_training_stays_unproved_after_a_start_that_was_killed(tmp_path: Path, monkeypatch, mesh):
    """A start that dies between its beginning and its end must not forget the hash of what it found."""
    metrics, whole = tmp_path / "metrics.jsonl", tmp_path / "whole"

    def train(config, workdir, mesh):
        if not metrics.exists():
            metrics.write_text("1\n")
        whole.touch()
        return "result"

    def die(config, workdir, mesh):
        raise KeyboardInterrupt

    outputs = Outputs(("metrics.jsonl", "whole"), grown=("metrics.jsonl",))
    stage = dataclasses.replace(runner.find_stage("pretrain"), keys=("seed",), outputs=outputs, run=train)
    monkeypatch.setattr(runner, "find_stage", lambda name: stage)

    def run():
        return runner.run("pretrain", ConfigDict({"seed": 0}), tmp_path, mesh)

    assert run()
    check_files(tmp_path, read_record(tmp_path))
    metrics.write_text("2\n")  # by another hand
    whole.unlink()  # so that the stage runs again, and goes on from what it finds
    stage = dataclasses.replace(stage, run=die)
    with pytest.raises(KeyboardInterrupt):
        run()
    stage = dataclasses.replace(stage, run=train)
    assert run()
    with pytest.raises(UserError, match=r"metrics\.jsonl has changed since the stage pretrain wrote it"):
        check_files(tmp_path, read_record(tmp_path))
    metrics.write_text("1\n")  # the cure
    check_files(tmp_path, read_record(tmp_path))


def test_a_stage_that_begins_again_says_why(tmp_path: Path, monkeypatch, mesh, capsys):
    stage = dataclasses.replace(
        runner.find_stage("diagnose"), run=lambda config, workdir, mesh: "", outputs=Outputs(()), upstream=()
    )
    monkeypatch.setattr(runner, "find_stage", lambda name: stage)
    config, labels = common.get_config(), tmp_path / "labels.npy"
    config.features.train = str(labels)
    for content in ("a", "a", "b"):
        labels.write_text(content)
        runner.run("diagnose", config, tmp_path, mesh)
    said = capsys.readouterr().err
    assert said.count("begins again") == 1
    assert "diagnose begins again: the content of a file changed" in said
    stage = dataclasses.replace(stage, version=stage.version + 1)
    config.diagnose.folds += 1
    runner.run("diagnose", config, tmp_path, mesh)
    assert "diagnose begins again: its config and the program changed" in capsys.readouterr().err


def test_files_of_one_name_are_not_one_run(tmp_path: Path):
    def make(file: str) -> tuple[ConfigDict, dict[str, ConfigDict]]:
        config = common.get_config()
        config.sweep.conditions = (("human", (("noise_kind", "labels"), ("noise_file", file))),)
        return config, settings.expand_sweep(config)

    config, cells = make("first/labels.npy")
    (name,) = cells
    experiment.open_run(tmp_path, name, cells[name])
    experiment.check_files(tmp_path, *make("other/labels.npy"))  # nothing was done there
    write_record(tmp_path / name, {**read_record(tmp_path / name), "stages": {"pretrain": {"output": "x"}}})
    experiment.check_files(tmp_path, config, cells)
    with pytest.raises(UserError, match=r"is of noise_file=first/labels\.npy, and not of other/labels\.npy"):
        experiment.check_files(tmp_path, *make("other/labels.npy"))
    experiment.check_files(tmp_path, *make("other/labels.npy"), force=("pretrain",))


@pytest.mark.parametrize(
    ("key", "value", "adopted"), [("tune.methods", ("lbfgs",), True), ("tune.epochs", 7, False), ("seed", 3, False)]
)
def test_a_report_alone_is_of_the_lists_of_its_own_config(tmp_path: Path, key, value, adopted: bool, capsys):
    """Two studies share a folder: the config in it is that of the later one."""
    config, stage = common.get_config(), runner.find_stage("tune")
    folder = experiment.open_run(tmp_path, "run", config)
    inputs = runner.collect_inputs(stage, settings.to_json(config), read_record(folder))
    write_record(folder, {**read_record(folder), "stages": {"tune": {"inputs": inputs, "output": "x"}}})
    other = common.get_config()
    other.update_from_flattened_dict({key: value, "stages": ("report",)})
    experiment.adopt_runs(tmp_path, {"run": other})
    written = settings.to_json(settings.from_json(read_config(folder)))
    other.stages = config.stages
    assert written == settings.to_json(other if adopted else config)
    said = "the rows of tune are of other lists than this config's in 1 of 1 runs"
    assert (said in " ".join(capsys.readouterr().err.split())) == adopted
    assert written["stages"] == settings.to_json(config)["stages"], "they tell whether the run is finished"
    experiment.adopt_runs(tmp_path, {"another": other})
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize("stages", [{"later": {"output": "x"}}, {"tune": {"output": "x"}}])
def test_a_report_alone_leaves_runs_that_it_cannot_judge(tmp_path: Path, stages):
    config = common.get_config()
    folder = experiment.open_run(tmp_path, "run", config)
    write_record(folder, {**read_record(folder), "stages": stages})
    before = (folder / "config.json").read_bytes()
    experiment.adopt_runs(tmp_path, {"run": config})
    assert (folder / "config.json").read_bytes() == before


def test_parts_in_percent_are_inputs_of_their_own():
    """Older versions cut them elsewhere, so their runs are not done."""
    config, stage = common.get_config(), runner.find_stage("extract")
    whole = runner.collect_inputs(stage, settings.to_json(config), {"stages": {}})
    config.downstream.directories = (("a", "nowhere", "photo[:70%]", ("test",), ()),)
    config.downstream.tasks = ("a",)
    part = runner.collect_inputs(stage, settings.to_json(config), {"stages": {}})
    assert "parts in percent" not in whole["files"]
    assert part["files"]["parts in percent"] == "of every class"
