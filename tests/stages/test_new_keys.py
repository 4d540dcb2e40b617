"""Test that a key missing in a stored config has its default, so that older runs are skipped, claimed and loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from nml_jax import inputs, load_model, models, settings
from nml_jax.errors import UserError
from nml_jax.runs.finished import read_finished
from nml_jax.runs.record import read_config, read_record
from nml_jax.runs.rows import read_rows
from nml_jax.stages import runner
from tests.scenes import digits_experiment
from tests.scenes.digits_experiment import launch

CELL = "noise=0.3,seed=0"
STAGES = ("pretrain", "extract", "tune")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return the folder of an experiment with one finished run, older than the keys below."""
    workdir = tmp_path_factory.mktemp("finished") / "digits"
    launch(workdir)
    return workdir


@pytest.fixture
def workdir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "digits"))


@pytest.fixture
def add_keys(monkeypatch) -> Callable[[], None]:
    """Add a key to a section, a section, and a key at the top, as a later version of configs/common.py would."""
    before = common.get_config

    def get_config() -> ConfigDict:
        config = before().copy_and_resolve_references()
        with config.unlocked():
            config.augment.grey, config.tune.penalty, config.flavour = 0.0, (1.0, 2.0), "plain"
            config.model.adapter = ConfigDict({"width": 8})
        return config.lock()

    def add() -> None:
        monkeypatch.setattr(common, "get_config", get_config)
        monkeypatch.setattr(settings, "default_config", lambda: settings.to_json(get_config()))

    return add


def hash_inputs(folder: Path) -> None:
    """Turn a record into one of the older version, which wrote a hash of each stage's inputs."""
    record, config = read_record(folder), read_config(folder)
    for name, own in record["stages"].items():
        stage = runner.find_stage(name)
        part = settings.select_keys(config, stage.keys)
        files = {path: inputs.hash_content(Path(path)) for path in inputs.list_paths(part)}
        upstream = {up: record["stages"].get(up, {}).get("output", "") for up in stage.upstream}
        own["inputs"] = settings.hash_json([part, files, stage.version, upstream])
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("version", ["hashes", "inputs"])
def test_a_run_made_before_a_key_existed_is_skipped_and_loaded(
    workdir: Path, add_keys: Callable[[], None], monkeypatch, capsys, version: str
):
    before, build, widths = load_model(workdir / CELL), models.build, []
    if version == "hashes":
        hash_inputs(workdir / CELL)
    add_keys()
    launch(workdir, dry_run=True)
    assert f"{CELL}: done" in capsys.readouterr().out
    for _ in range(2):  # the second time config.json has the new keys
        launch(workdir)
        said = capsys.readouterr().err
        assert [f"{stage} is done, skipped" in said for stage in STAGES] == [True] * 3
    assert read_config(workdir / CELL)["augment"]["grey"] == 0.0

    def build_with_new_key(config: ConfigDict, **how):
        widths.append(config.adapter.width)
        return build(config, **how)

    monkeypatch.setattr(models, "build", build_with_new_key)
    after = load_model(workdir / CELL)
    assert widths == [8]
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("version", ["hashes", "inputs"])
def test_another_value_than_the_default_runs_its_stages_again(
    workdir: Path, add_keys: Callable[[], None], capsys, version: str
):
    if version == "hashes":
        hash_inputs(workdir / CELL)
    add_keys()
    with pytest.raises(UserError, match=r"augment\.grey is 0\.0 there, 1\.0 here"):
        launch(workdir, **{"augment.grey": 1.0})
    launch(workdir, **{"tune.penalty": (3.0,)})  # the section of a stage that only reports read may change
    said = capsys.readouterr().err
    assert "tune.penalty changed: tune runs again, extract and pretrain stay" in said
    assert "extract is done, skipped" in said
    assert "tune finished" in said
    launch(workdir, **{"tune.penalty": (3.0,)})
    assert "tune is done, skipped" in capsys.readouterr().err
    config = digits_experiment.config(**{"model.adapter.width": 16, "tune.penalty": (3.0,)})
    cell = settings.expand_sweep(config, {"noise": 0.3, "seed": 0})[CELL]
    done = [stage for stage in STAGES if runner.is_done(stage, cell, workdir / CELL)]
    assert done == ["tune"]


def test_a_default_that_changes_is_another_value(workdir: Path, monkeypatch):
    """Test that only missing keys take today's default. Keys that exist keep their value."""
    cell = settings.expand_sweep(digits_experiment.config(), {"noise": 0.3, "seed": 0})[CELL]
    later = settings.fill_defaults({})
    later["tune"]["alphas"] = [5.0]
    monkeypatch.setattr(settings, "default_config", lambda: later)
    assert runner.is_done("tune", cell, workdir / CELL)
    with cell.unlocked():
        cell.tune.alphas = (5.0,)
    assert not runner.is_done("tune", cell, workdir / CELL)


def test_an_axis_of_another_sweep_is_no_difference(workdir: Path, capsys):
    """Test that a folder takes a config that does not sweep what others of the folder do; its value then holds."""
    path = workdir / "experiment.json"
    shared = json.loads(path.read_text())
    del shared["config"]["optimizer.b2"]  # as if the folder's first experiment had swept it
    path.write_text(json.dumps(shared))
    launch(workdir)
    assert "pretrain is done, skipped" in capsys.readouterr().err
    assert json.loads(path.read_text())["config"]["optimizer.b2"] == 0.999
    with pytest.raises(UserError, match=r"optimizer\.b2 is 0\.999 there, 0\.9 here"):
        launch(workdir, **{"optimizer.b2": 0.9})


def test_heads_are_only_added(workdir: Path, capsys):
    """Test that other lists of heads train what is new, keep what is there, and report what is asked for."""
    head = workdir / CELL / "heads" / "digits"
    before = {path.name: path.stat().st_mtime_ns for path in head.iterdir()}
    rows = {row.method for row in read_rows(workdir / CELL) if row.stage == "tune"}
    launch(workdir, **{"tune.methods": ("ridge", "linear"), "tune.shares": (0.5, 1.0)})
    now = {row.method for row in read_rows(workdir / CELL) if row.stage == "tune"}
    assert now == {"ridge", "linear"}
    assert {path.name: path.stat().st_mtime_ns for path in head.iterdir() if path.name in before} == before
    assert len([*head.iterdir()]) == len(before) + 3  # ridge twice, and linear on half of the rows
    launch(workdir)
    assert {row.method for row in read_rows(workdir / CELL) if row.stage == "tune"} == rows
    assert {path.name: path.stat().st_mtime_ns for path in head.iterdir() if path.name in before} == before
    capsys.readouterr()
    launch(workdir)
    assert "tune is done, skipped" in capsys.readouterr().err
    launch(workdir, **{"tune.epochs": 3})  # another setting: all again, and what is not asked for is gone
    assert len([*head.iterdir()]) == len(before)


def test_a_head_that_was_lost_is_trained_again(workdir: Path):
    head = next(iter((workdir / CELL / "heads" / "digits").glob("linear*")))
    head.unlink()
    launch(workdir)
    assert head.exists()


def test_runs_of_before_and_after_do_not_differ_in_the_key(workdir: Path, add_keys: Callable[[], None]):
    add_keys()
    later = Path(shutil.copytree(workdir / CELL, workdir / "noise=0.3,seed=1"))
    (later / "config.json").write_text(json.dumps(settings.fill_defaults(read_config(later)) | {"name": "later"}))
    (old, new), left_out = read_finished([workdir])
    assert not left_out
    assert old.value("augment.grey") == 0.0
    assert {key for key in old.config if old.value(key) != new.value(key)} == {"name"}


def test_defaults_are_those_of_common_whatever_else_is_called_configs(tmp_path: Path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "common.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    settings.default_config.cache_clear()
    assert settings.default_config() == settings.to_json(common.get_config())


def test_defaults_fill_gaps_only(monkeypatch):
    monkeypatch.setattr(settings, "default_config", lambda: {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": [4]})
    assert settings.fill_defaults({}) == {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": [4]}
    stored = {"a": 5, "b": {"c": None}, "g": 6}
    assert settings.fill_defaults(stored) == {"a": 5, "b": {"c": None, "d": {"e": 3}}, "f": [4], "g": 6}
