"""Test the whole program: what it writes, what it skips, which input it rejects."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import nml_jax
from nml_jax import main, predict, settings
from nml_jax.errors import UserError
from nml_jax.export import __main__ as export
from nml_jax.runs import finished as finished_runs
from nml_jax.runs.banks import read_index
from nml_jax.runs.finished import read_finished
from nml_jax.runs.heads import correct_path, head_path, read_correct
from nml_jax.runs.metrics import read_metrics
from nml_jax.runs.rows import read_rows
from nml_jax.stages import experiment
from nml_jax.tasks.classification import load_task
from nml_jax.training import checkpoint, checksums
from nml_jax.tuning import head_file
from tests.scenes import digits_experiment, programs
from tests.scenes.digits_experiment import flags, launch

ROOT = Path(__file__).parent.parent
CELL = "noise=0.3,seed=0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return the folder of an experiment with one finished run. Copy it before changing it."""
    workdir = tmp_path_factory.mktemp("finished") / "digits"
    launch(workdir)
    return workdir


@pytest.fixture
def workdir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "digits"))


def run_command(*args: str, cwd: Path = ROOT, **kwargs) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "nml_jax.main", *args]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | kwargs.pop("env", {})
    return programs.run(program, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, **kwargs)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- what a run leaves behind ----------------------------------------------------------------------------------------


def test_a_run_leaves_all_its_files(finished: Path):
    run = finished / CELL
    names = {p.name for p in run.iterdir()}
    assert {"config.json", "noise.json", "metrics.jsonl", "checkpoints", "banks", "rows.jsonl", "run.json"} <= names
    assert {p.name for p in finished.iterdir()} >= {"report.html", "summary.csv"}
    page = (finished / "report.html").read_text("utf-8")
    assert "Goodput of pre-training, all runs together" in page
    counts = json.loads((run / "classes.json").read_text())
    assert set(counts) == {"train", "validation"}
    assert list(counts["train"]) == ["0", "1", "2", "3", "4"]
    assert sum(counts["train"].values()) == json.loads((run / "noise.json").read_text())["n"]
    assert f"5 classes: &#39;0&#39; {counts['train']['0']}, &#39;1&#39; {counts['train']['1']}, " in page
    assert "digits/test/" in page  # a downstream split
    assert len((run / "samples.jsonl").read_text().splitlines()) == max(row.step for row in read_rows(run))
    ledger = json.loads((run / "noise.json").read_text())
    assert ledger["count"] == round(0.3 * ledger["n"])
    rows = read_rows(run)
    assert {row.stage for row in rows} == {"pretrain", "extract", "tune"}
    tuned = [row for row in rows if row.stage == "tune" and row.metric == "accuracy"]
    assert {(row.method, row.preset, row.views) for row in tuned} == {
        ("linear", None, 1), ("lbfgs", None, 1), ("mlp", None, 1), ("nmtune", "paper", 1), ("nmtune", "code", 1),
    }  # fmt: skip
    assert {row.domain for row in tuned} == {"id", "ood"}
    assert all(0 <= row.value <= 1 for row in tuned)
    assert all(np.isfinite(row.value) for row in rows)
    (fit,) = [row for row in rows if row.metric == "noisy_fit"]
    assert fit.n_test == ledger["count"]


def test_recorded_spectra_are_those_of_the_bank(finished: Path):
    import nml_jax
    from nml_jax.data.features import banks

    features = banks.Bank(finished / CELL / "banks" / "digits" / "test").read("features")[:, 0].astype(np.float64)
    s = np.linalg.svd(features, compute_uv=False)
    (row,) = [
        row
        for row in read_rows(finished / CELL)
        if (row.stage, row.metric, row.split, row.spectrum_mode) == ("extract", "sve", "test", "paper")
    ]
    p = s[s > 0] / s.sum()
    assert row.value == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
    assert row.value == pytest.approx(nml_jax.sve(nml_jax.singular_values(features)), abs=1e-9)


def test_finished_stages_are_skipped_with_a_notice(workdir: Path, capsys):
    before = read_tree(workdir / CELL)
    launch(workdir)
    said = capsys.readouterr().err
    for stage in ("pretrain", "extract", "tune"):
        assert f"{stage} is done, skipped" in said
    assert read_tree(workdir / CELL) == before


def lose_some_rows(run: Path) -> None:
    lines = (run / "rows.jsonl").read_text().splitlines(True)
    (run / "rows.jsonl").write_text("".join(lines[: len(lines) // 2]))


def change_a_row(run: Path) -> None:
    (run / "rows.jsonl").write_text((run / "rows.jsonl").read_text().replace('"value": 0.', '"value": 0.9', 1))


@pytest.mark.parametrize(
    "damage",
    [lose_some_rows, change_a_row, *(lambda run, name=name: (run / name).unlink() for name in
                                     ("rows.jsonl", "noise.json", "spectra.json", "metrics.jsonl"))],
    ids=["some", "changed", "rows", "noise", "spectra", "metrics"],
)  # fmt: skip
def test_what_was_lost_of_a_finished_run_is_made_again(finished: Path, workdir: Path, damage: Callable[[Path], None]):
    damage(workdir / CELL)
    launch(workdir)
    before, now = read_tree(finished / CELL), read_tree(workdir / CELL)
    for name in ("rows.jsonl", "noise.json", "spectra.json"):
        assert sorted(now[name].splitlines()) == sorted(before[name].splitlines())


def test_pinning_selects_cells_and_the_rest_of_the_sweep_finds_them_done(workdir: Path, capsys):
    launch(workdir, noise=0.1)
    capsys.readouterr()
    launch(workdir, noise=None, pinned={"seed": 0}, **{"sweep.noise": (0.1, 0.3)})
    assert capsys.readouterr().err.count("pretrain is done, skipped") == 2
    assert {line.split(",")[3] for line in (workdir / "summary.csv").read_text().splitlines()[1:]} == {"10 %", "30 %"}


def test_force_redoes_a_stage_and_what_depends_on_it_only(workdir: Path, capsys):
    launch(workdir, force=("extract",))
    said = capsys.readouterr().err
    assert "pretrain is done, skipped" in said
    assert "extract finished" in said
    assert "tune is done, skipped" in said  # the same features came out


def test_force_takes_new_values_of_its_stage(workdir: Path, capsys):
    launch(workdir, force=("tune",), **{"tune.epochs": 3})
    said = capsys.readouterr().err
    assert "extract is done, skipped" in said
    assert "tune finished" in said
    launch(workdir, **{"tune.epochs": 3})
    assert "tune is done, skipped" in capsys.readouterr().err


def test_dry_run_trains_nothing(tmp_path: Path, capsys):
    launch(tmp_path / "new", dry_run=True, noise=None, seed=None)
    out = capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    assert "resolved config" not in out
    for words in (
        "overridden keys: none",
        "noise=0.1,seed=2: pretrain, extract, tune",
        "parameters",
        "FLOP per step",
        "steps",
    ):
        assert words in out
    assert "memory per device, activations" in out


def test_weights_from_a_file_start_any_stage(tmp_path: Path, finished: Path, capsys):
    from nml_jax import load_model
    from nml_jax.models.weights import timm

    loaded = load_model(finished / CELL)
    file = tmp_path / "encoder.safetensors"
    safetensors.numpy.save_file(timm.export_weights(loaded.params, loaded.model_state), file)
    launch(tmp_path / "given", init_from=str(file), stages=("extract",), noise=0.0, **{"data.num_classes": 5})
    assert f"init_from={file} does not say how it was trained; assumed: model.mean=" in capsys.readouterr().err
    of = {}
    for folder in (finished, tmp_path / "given"):
        (run,) = (p for p in folder.iterdir() if p.is_dir())
        of[folder] = {
            (row.split, row.metric, row.spectrum_mode): row.value for row in read_rows(run) if row.stage == "extract"
        }
    assert of[finished] == of[tmp_path / "given"]


# ---- interruptions ---------------------------------------------------------------------------------------------------


def test_sigterm_saves_and_exits_with_75(tmp_path: Path):
    args = flags(tmp_path / "run", **{"train.epochs": 500.0, "runtime.save_every": 400.0})
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = programs.Popen([sys.executable, "-m", "nml_jax.main", *args], cwd=ROOT, env=env, stderr=subprocess.PIPE)
    metrics = tmp_path / "run" / CELL / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert b"saved at step" in err
    assert [p.name for p in (tmp_path / "run" / CELL / "checkpoints").iterdir() if p.name.isdecimal()]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (["--config.nois=0.1"], "no key 'nois'"),
        (["--config.absolutely_nothing=0.1"], "no key 'absolutely_nothing'"),
        (
            ["--config=configs/digits.py", "--config", "configs/features.py"],
            "2 configs, configs/digits.py and configs/",
        ),
        (["--config.model.wdith=3"], "wdith"),
        (["--config.noise=much"], "much"),
        (["--config=nowhere.py"], "nowhere.py"),
        (["--config=README.md"], "README.md"),
        (["--config=configs/resnet50_in1k.py:a9"], "a9"),
        (["--config=configs/features.py:slow"], "ValueError: there is no part 'slow'; give configs/features.py, "),
        (["--bogus"], "bogus"),
        (["bogus"], "bogus"),
    ],
)
def test_mistyped_flags(args: list[str], cause: str, tmp_path: Path):
    done = run_command(*args, f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ")
    assert cause in lines[0]
    assert lines[1].startswith("  cure: ")
    assert not (tmp_path / "w").exists()


def test_a_full_disk(tmp_path: Path):
    """Limit file sizes in place of a full disk. Writes then fail below Python, in the checkpoint library."""
    limited = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 1024,) * 2);"
        "runpy.run_module('nml_jax.main', run_name='__main__', alter_sys=True)"
    )
    program, env = [sys.executable, "-c", limited, *flags(tmp_path / "run")], os.environ | {"JAX_PLATFORMS": "cpu"}
    done = programs.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: cannot write" in done.stderr
    assert "cure: free or remount" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        ({"noise": 1.5}, "noise must be in [0, 1], got 1.5"),
        ({"noise": float("nan")}, "noise must be finite, got nan"),
        ({"data.num_classes": 4}, "4"),
        ({"data.classes": (0, 99)}, "99"),
        ({"data.train": "training"}, "training"),
        ({"data.source": "directory", "data.path": "/nowhere"}, "/nowhere"),
        ({"data.source": "tfds", "data.name": "imagenet2012", "data.path": "/nowhere"}, "imagenet2012"),
        ({"train.batch": 12}, "12"),
        ({"extract.batch": 12}, "12"),
        ({"runtime.fsdp_axis": 3}, "fsdp_axis=3"),
        ({"model.name": "resnet51"}, "resnet51"),
        ({"optimizer.name": "adam"}, "adam"),
        ({"objective.name": "unsupervised"}, "unsupervised"),
        ({"noise_kind": "random"}, "random"),
        ({"noise_kind": "matrix", "noise": 0.0}, "noise_file"),
        ({"noise_kind": "matrix"}, "fixes its own rate"),
        ({"noise_kind": "asymmetric", "noise_classes": (0,)}, "class"),
        ({"downstream.tasks": ("letters",)}, "letters"),
        ({"extract.layers": ("nothing",)}, "nothing"),
        ({"extract.spectra": ("plain",)}, "plain"),
        ({"tune.methods": ("forest",)}, "forest"),
        ({"init_from": "/nowhere.safetensors"}, "/nowhere.safetensors"),
        ({"stages": ("pretrian",)}, "pretrian"),
        ({"data.validation": 0.0}, "validate"),
        ({"data.size": 3}, "3"),
    ],
)
def test_bad_values(overrides: dict, cause: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        launch(tmp_path / "w", **overrides)
    assert cause in error.value.cause
    assert "\n" not in error.value.cause
    assert error.value.cure


def test_what_cannot_run_is_refused_before_any_work(tmp_path: Path, finished: Path):
    for dry_run in (False, True):
        with pytest.raises(UserError, match=r"noise=0\.1, but .* was not pre-trained by this run"):
            launch(tmp_path / "w", init_from=str(finished / CELL), stages=("extract", "tune"), noise=None,
                   dry_run=dry_run, **{"sweep.noise": (0.0, 0.1)})  # fmt: skip
        with pytest.raises(UserError, match="holds no checkpoint, and init_from is empty"):
            launch(tmp_path / "w", stages=("extract",), dry_run=dry_run)
    with pytest.raises(UserError, match=r"nothing\.npy"):
        launch(tmp_path / "w", noise=0.0, noise_kind="labels", noise_file="nothing.npy")
    assert not (tmp_path / "w").exists()


def test_weights_of_a_run_keep_their_head_without_a_word(tmp_path: Path, finished: Path, capsys):
    launch(tmp_path / "w", init_from=str(finished / CELL), stages=("extract",), noise=0.0)
    assert "head" not in capsys.readouterr().err
    with pytest.raises(UserError, match="a head for 5 classes, and this model has 4: its logits are not known"):
        launch(tmp_path / "v", init_from=str(finished / CELL), stages=("extract",), noise=0.0,
               **{"extract.layers": ("logits",), "data.num_classes": 4, "data.classes": (0, 1, 2, 3)})  # fmt: skip


def test_human_labels_name_their_run_and_older_runs_are_found(tmp_path: Path):
    config = digits_experiment.config(noise=0.0, noise_kind="labels", noise_file="human.npy")
    (name,) = settings.expand_sweep(config, {"noise": 0.0, "seed": 0})
    assert name == "noise=labels,seed=0"
    assert experiment.find_folder(tmp_path, name, config) == tmp_path / name
    for kind, found in (("symmetric", name), ("labels", "noise=0,seed=0")):
        (tmp_path / "noise=0,seed=0").mkdir(exist_ok=True)
        (tmp_path / "noise=0,seed=0" / "config.json").write_text(json.dumps({"noise_kind": kind}))
        assert experiment.find_folder(tmp_path, name, config) == tmp_path / found


def test_none_for_every_placeholder():
    take = main._take_placeholders
    assert take(["--config.model.width=None", "--workdir=x"]) == (["--workdir=x"], ["model.width"])
    assert take(["--config.model.blocks", "None", "--dry_run"]) == (["--dry_run"], ["model.blocks"])
    assert take(["--config.model.width=None", "--config.model.width=3"]) == (["--config.model.width=3"], [])
    for kept in (["--config.noise=None"], ["--config.tune.nmtune.per_dim", "--dry_run"], ["None"]):
        assert take(kept) == (kept, [])


def test_a_dry_run_lists_all_that_is_missing(tmp_path: Path):
    named = [f"--config.features.{key}={tmp_path}/{key}.npz" for key in ("train", "test")]
    done = run_command("--config=configs/features.py", *named, "--config.tune.nmtune.top=None", "--dry_run")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for key in ("train", "test"):
        assert f"features.{key}: {tmp_path}/{key}.npz does not exist" in done.stderr
    assert "tune.nmtune.top: null" in done.stdout
    assert "resolved config" not in done.stdout


def test_a_workdir_of_another_config(workdir: Path):
    before = read_tree(workdir)
    with pytest.raises(UserError, match=r"belongs to another config: optimizer\.lr is 0\.003 there, 0\.5 here"):
        launch(workdir, **{"optimizer.lr": 0.5})
    assert read_tree(workdir) == before


def test_a_workdir_of_another_ledger(workdir: Path):
    path = workdir / CELL / "noise.json"
    ledger = json.loads(path.read_text())
    path.write_text(json.dumps(ledger | {"count": ledger["count"] + 1}))
    (workdir / CELL / "run.json").unlink()
    with pytest.raises(UserError, match="count"):
        launch(workdir)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone", "none"])
def test_a_damaged_checkpoint_is_rejected_by_name(workdir: Path, damage: str):
    checkpoints = workdir / CELL / "checkpoints"
    step = max(int(p.name) for p in checkpoints.iterdir())
    file = max((checkpoints / str(step)).rglob("d/*"), key=lambda p: p.stat().st_size)
    if damage == "flipped":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        shutil.rmtree(checkpoints / str(step))
        (checkpoints / str(step)).mkdir()
        (checkpoints / str(step) / "notes.txt").write_text("hello")
    (workdir / CELL / "run.json").unlink()
    with pytest.raises(UserError, match=str(step)):
        launch(workdir)
    shutil.rmtree(checkpoints / str(step))  # the cure
    launch(workdir)


STORED = ("config.json", "run.json", "noise.json", "spectra.json", "metrics.jsonl", "rows.jsonl")


@pytest.mark.parametrize("damage", [b"\xff\xfe{}\n{}\n", b"[" * 100_000 + b"\n{}\n", b'{"step": "x"\n{}\n', b"3\n3\n"])
@pytest.mark.parametrize("name", STORED)
def test_a_damaged_file_of_a_run_is_one_line_that_names_it(workdir: Path, name: str, damage: bytes):
    path = workdir / CELL / name
    path.write_bytes(damage)
    record = json.loads((workdir / CELL / "run.json").read_text()) if name != "run.json" else {"stages": {}}
    for own in record["stages"].values():  # as of a version that recorded no hashes
        own.pop("files")
        own.pop("rows")
    if name != "run.json":
        (workdir / CELL / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError) as e:
        read_finished([workdir])
    assert str(path) in e.value.cause
    assert "\n" not in e.value.cause
    assert e.value.cure


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("noise.json", '"asked": 0.3', '"asked": 0.2'),
        ("spectra.json", '"domain": "ood"', '"domain": "id"'),
        ("metrics.jsonl", '"train/loss": ', '"train/loss": 1'),
        ("banks/index.json", '"ood"', '"id"'),
    ],
)
def test_an_edited_file_is_no_part_of_a_report(workdir: Path, name: str, before: str, after: str):
    path = workdir / CELL / name
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(UserError, match=r"has changed since the stage .* wrote it") as e:
        read_finished([workdir])
    assert str(path) in e.value.cause
    assert ("--force=pretrain" in e.value.cure) == (name == "metrics.jsonl")


def test_an_edited_ledger_is_written_again(workdir: Path, capsys):
    path = workdir / CELL / "noise.json"
    before = path.read_text()
    path.write_text(before.replace('"asked": 0.3', '"asked": 0.2'))
    launch(workdir)
    assert "noise.json was changed; running pretrain again" in capsys.readouterr().err
    assert path.read_text() == before


def test_a_run_of_a_version_without_hashes_is_read(workdir: Path):
    path = workdir / CELL / "run.json"
    record = json.loads(path.read_text())
    for own in record["stages"].values():
        del own["files"]
    path.write_text(json.dumps(record))
    ((run,), _) = read_finished([workdir])
    assert run.noise == 0.3
    ledger = workdir / CELL / "noise.json"  # its rates also stand in the rows
    ledger.write_text(ledger.read_text().replace('"asked": 0.3', '"asked": 0.2'))
    with pytest.raises(UserError, match=r"noise\.json has changed: asked is 0\.2, and 0\.3 in the rows"):
        read_finished([workdir])


def test_flipped_right_answers_are_refused(workdir: Path):
    row = next(row for row in read_rows(workdir / CELL) if row.stage == "tune" and row.metric == "accuracy")
    path = correct_path(workdir / CELL, vars(row))
    assert read_correct(workdir / CELL, row).mean() == pytest.approx(row.value)
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match="SHA-256 differs"):
        read_correct(workdir / CELL, row)


def test_metrics_end_with_the_last_evaluation(finished: Path):
    last = read_metrics(finished / CELL)[-1]
    (row,) = (
        r for r in read_rows(finished / CELL) if (r.stage, r.metric, r.weights) == ("pretrain", "accuracy", "raw")
    )
    assert last["step"] == row.step
    assert last["validation/accuracy"] == pytest.approx(row.value, rel=1e-6)


def test_a_checkpoint_that_goes_while_it_is_read_gives_way_to_the_newest(workdir: Path, monkeypatch):
    folder = workdir / CELL / "checkpoints"
    *_, old, last = checksums.list_steps(folder)
    (folder / str(last)).rename(workdir / "saved meanwhile")
    verify = checkpoint.verify

    def replace(found: Path) -> None:
        """Imitate the run: it saves a step and deletes the one before."""
        if found.name == str(old):
            (workdir / "saved meanwhile").rename(folder / str(last))
            shutil.rmtree(found)
        verify(found)

    monkeypatch.setattr(checkpoint, "verify", replace)
    assert nml_jax.load_model(workdir / CELL).step == last
    with pytest.raises(UserError, match=f"holds no checkpoint {old}") as e:
        nml_jax.load_model(workdir / CELL, step=old)
    assert f"it has {last}" in e.value.cure


def test_a_run_that_changes_while_a_report_reads_it_is_read_again(workdir: Path, monkeypatch):
    path, calls = workdir / CELL / "run.json", []

    def read_metrics_of_a_run_at_work(run: Path):
        calls.append(run)
        if len(calls) == 1:
            path.write_text(path.read_text() + "\n")
            raise FileNotFoundError(2, "gone", "metrics.jsonl")
        return read_metrics(run)

    monkeypatch.setattr(finished_runs, "read_metrics", read_metrics_of_a_run_at_work)
    assert len(read_finished([workdir])[0]) == 1
    assert len(calls) == 2


def test_a_damaged_bank_is_rejected_by_name(workdir: Path):
    file = workdir / CELL / "banks" / "digits" / "train" / "00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"00000\.safetensors"):
        launch(workdir, force=("tune",))


# ---- outdated results ------------------------------------------------------------------------------------------------


def test_an_interrupted_run_never_continues_under_another_config(workdir: Path, tmp_path: Path):
    """Imitate a kill during a redo with new values: the old checkpoints are there, with another record."""
    launch(tmp_path / "fresh", stages=("pretrain",), **{"optimizer.lr": 0.02})
    shutil.copytree(workdir / CELL / "checkpoints", tmp_path / "kept")
    launch(workdir, force=("pretrain",), stages=("pretrain",), **{"optimizer.lr": 0.02})
    shutil.rmtree(workdir / CELL / "checkpoints")
    shutil.copytree(tmp_path / "kept", workdir / CELL / "checkpoints")
    path = workdir / CELL / "run.json"
    record = json.loads(path.read_text())
    record["stages"]["pretrain"] = {"inputs": "of the old config"}
    path.write_text(json.dumps(record))
    launch(workdir, stages=("pretrain",), **{"optimizer.lr": 0.02})
    outputs = [
        json.loads((folder / CELL / "run.json").read_text())["stages"]["pretrain"]["output"]
        for folder in (workdir, tmp_path / "fresh")
    ]
    assert outputs[0] == outputs[1]


def test_deleting_the_last_checkpoint_makes_the_run_continue_to_the_same_result(workdir: Path, capsys):
    before = json.loads((workdir / CELL / "run.json").read_text())["stages"]["pretrain"]["output"]
    checkpoints = workdir / CELL / "checkpoints"
    shutil.rmtree(checkpoints / str(max(int(p.name) for p in checkpoints.iterdir())))
    launch(workdir)
    said = capsys.readouterr().err
    assert "pretrain finished" in said
    assert "extract is done, skipped" in said
    assert json.loads((workdir / CELL / "run.json").read_text())["stages"]["pretrain"]["output"] == before


def test_a_deleted_bank_is_written_again(workdir: Path, capsys):
    shutil.rmtree(workdir / CELL / "banks" / "digits" / "train")
    launch(workdir)
    said = capsys.readouterr().err
    assert "extract finished" in said
    assert "tune is done, skipped" in said


def test_banks_without_an_index_are_found_by_their_rows(workdir: Path):
    """Imitate a run that was extracted before there was an index."""
    listed = read_index(workdir / CELL)
    assert listed
    assert list(listed.domains["digits"])[:2] == ["train", "test"]
    (workdir / CELL / "banks" / "index.json").unlink()
    assert read_index(workdir / CELL) == listed._replace(encoder={})  # rows do not say that


def test_other_weights_under_the_same_name_are_noticed(workdir: Path, tmp_path: Path, capsys):
    from nml_jax import load_model
    from nml_jax.models.weights import timm

    loaded = load_model(workdir / CELL)
    file = tmp_path / "encoder.safetensors"
    for scale in (1.0, 2.0):
        params = {
            k: ({n: scale * x for n, x in v.items()} if k == "stem_conv" else v) for k, v in loaded.params.items()
        }
        tensors = timm.export_weights(params, loaded.model_state)
        safetensors.numpy.save_file({k: np.asarray(v) for k, v in tensors.items()}, file)
        launch(tmp_path / "given", init_from=str(file), stages=("extract",), noise=0.0)
        assert "extract finished" in capsys.readouterr().err


def test_a_redone_stage_takes_the_rows_of_later_ones_with_it(workdir: Path):
    launch(workdir, force=("pretrain",), stages=("pretrain",), **{"optimizer.lr": 0.05})
    assert {row.stage for row in read_rows(workdir / CELL)} == {"pretrain"}


def test_a_mistake_claims_no_folder(tmp_path: Path):
    with pytest.raises(UserError):
        launch(tmp_path / "w", stages=("pretrain",), **{"model.name": "resnet51"})
    launch(tmp_path / "w", stages=("pretrain",))


def test_tune_alone_names_the_stage_before_it(tmp_path: Path):
    with pytest.raises(UserError, match="no features to tune on"):
        launch(tmp_path / "w", stages=("tune",))


def test_a_copy_without_git_knows_its_revision(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(main, "ROOT", tmp_path)
    assert main.find_revision() == ""
    (tmp_path / "REVISION").write_text("1a2b3c4+\n")
    assert main.find_revision() == "1a2b3c4+"


def test_a_workdir_that_is_a_file(tmp_path: Path):
    (tmp_path / "w").write_text("")
    with pytest.raises(UserError, match="is a file"):
        launch(tmp_path / "w")


def test_a_key_that_a_config_file_misspells(tmp_path: Path):
    file = tmp_path / "mine.py"
    for line, cause in (("c.optimizer.learning_rate = 1.0", "learning_rate"), ("c.name = undefined", "NameError")):
        file.write_text(
            f"from configs import common\ndef get_config():\n    c = common.get_config()\n    {line}\n    return c\n"
        )
        done = run_command(f"--config={file}", "--dry_run")
        assert done.returncode == 2, done.stderr
        assert cause in done.stderr.splitlines()[0]


def test_flags_in_any_order_and_form(tmp_path: Path):
    done = run_command(
        "--config.noise=0.7", "--config", "configs/digits.py", f"--workdir={tmp_path / 'w'}", "--dry_run"
    )
    assert done.returncode == 0, done.stderr
    assert "noise=0.7,seed=2" in done.stdout


def test_a_config_is_looked_up_here_and_then_where_the_package_is_installed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.find_config("configs/resnet50_in1k.py:a3") == str(ROOT / "configs" / "resnet50_in1k.py:a3")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").touch()
    assert main.find_config("configs/digits.py") == "configs/digits.py"
    with pytest.raises(UserError, match=r"no config file 'configs/none\.py'"):
        main.find_config("configs/none.py")
    wheel = tmp_path / "site" / "installed"
    (wheel / "configs").mkdir(parents=True)
    (wheel / "configs" / "mine.py").touch()
    monkeypatch.setattr(settings, "INSTALLED", wheel)
    assert main.find_config("configs/mine.py") == str(wheel / "configs" / "mine.py")
    assert main.find_revision() == nml_jax.__version__


def test_a_head_remembers_its_encoder_and_scores_images_as_it_did_rows(finished: Path, tmp_path: Path, capsys):
    """A head of the run, applied to the test images as files, has the accuracy of its row, with an export as well."""
    run = finished / "noise=0.3,seed=0"
    wanted = ("tune", "accuracy", "test", "mlp")
    row = next(row for row in read_rows(run) if (row.stage, row.metric, row.split, row.method) == wanted)
    head, test = head_path(run, vars(row)), load_task("digits", digits_experiment.config()).tests[0].source
    told = head_file.load(head).about["encoder"]
    assert told["layer"] == "features"
    assert told["preprocessing"]["size"] == 8
    for i in range(len(test)):
        path = tmp_path / "photos" / test.class_names[test.labels[i]] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(test.image(i))[..., 0]).save(path)
    assert export.main([str(run), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "timm's resnet18 has no model.blocks=(1, 1), model.stem=small, model.width=4: it has" in said
    assert "--format=nml" in said
    assert export.main([str(run), str(tmp_path / "out"), "--format=nml"]) == 0
    for encoder in (run, tmp_path / "out"):
        assert predict.main([str(head), str(tmp_path / "photos"), f"--encoder={encoder}", "--out", os.devnull]) == 0
        assert f"accuracy on the labels in the file: {100 * row.value:.2f} %" in capsys.readouterr().err
