"""Test the stage finetune: what it writes, that its results are ordinary checkpoints, how it continues."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from nml_jax import load_model, runtime, settings
from nml_jax.assembly import encoder
from nml_jax.data.sources.source import Subset
from nml_jax.errors import NonFinite, Preempted, UserError
from nml_jax.export import __main__ as export
from nml_jax.models.weights import nml
from nml_jax.noise import corrupt_labels
from nml_jax.runs.heads import correct_path, read_correct
from nml_jax.runs.rows import Row, read_rows, write_rows
from nml_jax.stages import finetune, finetune_search
from nml_jax.tasks.classification import load_task
from tests.scenes import digits_experiment
from tests.scenes.meshes import mesh_of

CELL = "noise=0.3,seed=0"
TUNING = {
    "stages": ("pretrain", "finetune"), "model.blocks": (1,), "train.epochs": 1.0, "optimizer.warmup_epochs": 0.0,
    "finetune.epochs": 1.0, "finetune.lrs": (1e-2,), "finetune.rank": 2, "finetune.targets": ("resnet_conv",),
    "finetune.wise": (0.0, 1.0), "finetune.head_init": "fresh",
}  # fmt: skip

FRESH = finetune_search.Heads(None, None)
CLIP = {"model.name": "clip", "model.tower": "vit_ti", "model.patch": 4, "model.dim": 8, "model.depth": 1,
        "model.heads": 2, "model.embed_dim": 6, "model.text_width": 8, "model.text_depth": 1, "model.text_heads": 2,
        "model.text_context": 40, "model.text_vocab": 258, "finetune.head_init": "zeroshot"}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """Use a mesh of two devices, which compiles faster than eight."""
    mesh = mesh_of(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "make_mesh", lambda *_: mesh)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return the folder of an experiment with one finished run. Copy it before changing it."""
    workdir = tmp_path_factory.mktemp("tuned") / "digits"
    digits_experiment.launch(workdir, **TUNING)
    return workdir


def setting(method: str, terms: str = "none") -> str:
    return f"finetune/digits/{method},terms={terms},share=1,seed=0"


def values(rows: list[Row], **where) -> dict:
    """Map (split, metric, share of the tuned weights) to the values of rows with these fields."""
    return {
        (row.split, row.metric, row.wise_alpha): row.value
        for row in rows
        if row.stage == "finetune" and all(getattr(row, k) == v for k, v in where.items())
    }


def test_every_method_with_every_set_of_terms_is_scored_on_every_test(finished: Path):
    rows = [row for row in read_rows(finished / CELL) if row.stage == "finetune"]
    assert {(row.method, row.preset) for row in rows} == {(m, p) for m in ("lora", "full") for p in (None, "paper")}
    splits = {(row.split, row.domain) for row in rows}
    assert {domain for _, domain in splits} == {"id", "ood"}
    # Settings × tests × metrics × (result, two ends of the curve).
    assert len(rows) == 4 * len(splits) * 6 * 3
    for row in rows:
        assert (row.task, row.train_share, row.head_seed, row.views, row.noise_asked) == ("digits", 1.0, 0, None, 0.3)
        assert (row.n_train, row.n_test) == (719, 177)
        assert row.value >= (-1 if row.metric == "mcc" else 0)
        assert row.value <= 1 or row.metric == "log_loss"
        assert row.hyper == {"lr": 1e-2, "weight_decay": 1e-4}
        assert row.wise_alpha in (None, 0, 1)


def test_the_curve_goes_from_the_common_start_to_the_result(finished: Path):
    rows = read_rows(finished / CELL)
    starts = []
    for method in ("lora", "full"):
        found = values(rows, method=method, preset=None)
        for split, metric, share in found:
            if share is None:
                assert found[split, metric, None] == found[split, metric, 1]
        starts.append({key: value for key, value in found.items() if key[2] == 0})
    assert starts[0] == starts[1]
    assert found != {key: starts[1].get((*key[:2], 0), value) for key, value in found.items()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_result_is_an_ordinary_checkpoint(finished: Path, method: str):
    run = finished / CELL
    before, after = load_model(run), load_model(run / setting(method, "paper"))
    assert after.meta["num_classes"] == 5
    assert after.meta["class_names"] == ["5", "6", "7", "8", "9"]
    conv, norm = (
        [np.array_equal(*(np.asarray(m.params["stage1_block0"][part][leaf]) for m in (before, after)))
         for part, leaf in parts]
        for parts in ((("conv1", "kernel"), ("conv2", "kernel")), (("bn1", "scale"), ("bn1", "bias")))
    )  # fmt: skip
    assert conv == [False, False]
    assert norm == [method == "lora"] * 2  # not a target, so it is frozen
    (test,) = [test for test in load_task("digits", digits_experiment.config()).tests if test.split == "test"]
    images = np.stack([np.asarray(test.source[i]["image"]) for i in range(len(test.source))])
    images = np.broadcast_to(images.reshape(*images.shape[:3], -1), (*images.shape[:3], 3))
    logits = jax.jit(lambda p, s: after.model.apply(p, s, {"image": images}, train=False, key=None)[0]["logits"])(
        after.params, after.model_state
    )
    accuracy = (np.asarray(logits).argmax(1) == test.source.labels).mean()
    found = values(read_rows(run), method=method, preset="paper")
    assert accuracy == pytest.approx(found["test", "accuracy", None], abs=1e-12)
    assert not [p.name for p in (run / setting(method)).iterdir() if p.name in ("training", "search")]


def test_a_setting_is_exported_with_its_factors_merged(finished: Path, tmp_path: Path):
    """The folder holds the weights of the merged model, with the task's classes, and the card the setting's scores."""
    run = finished / CELL / setting("lora", "paper")
    assert export.main([str(run), str(tmp_path / "out"), "--format=nml"]) == 0
    loaded, tensors = load_model(run), load_file(tmp_path / "out" / "model.safetensors")
    params, _ = nml.import_weights(tensors)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), params, loaded.params))
    assert json.loads((tmp_path / "out" / "nml_config.json").read_text())["class_names"] == ["5", "6", "7", "8", "9"]
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    accuracy = values(read_rows(finished / CELL), method="lora", preset="paper")["test", "accuracy", None]
    assert "fine-tuned on the task `digits`, pre-trained with" in card
    assert f"| digits | test | id | lora paper | accuracy | {accuracy:.4g} |" in card


def test_a_finished_stage_is_skipped_until_its_results_are_gone(finished: Path, tmp_path: Path, capsys, monkeypatch):
    run = Path(shutil.copytree(finished, tmp_path / "digits")) / CELL
    digits_experiment.launch(run.parent, **TUNING)
    assert "finetune is done, skipped" in capsys.readouterr().err
    assert finetune.STAGE.intact(run)
    whole, trained, train = values(read_rows(run)), [], finetune_search.train

    def count(setup, method, terms, *rest):
        trained.append((method, terms))
        return train(setup, method, terms, *rest)

    monkeypatch.setattr(finetune_search, "train", count)
    (lora,) = [row for row in read_rows(run) if (row.method, row.preset, row.split, row.metric, row.wise_alpha) ==
               ("lora", None, "test", "accuracy", None)]  # fmt: skip
    for gone in (run / setting("lora") / "checkpoints", correct_path(run, vars(lora))):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        assert not finetune.STAGE.intact(run)
        digits_experiment.launch(run.parent, **TUNING)
        assert "finetune is done" not in capsys.readouterr().err
        assert finetune.STAGE.intact(run)
        assert values(read_rows(run)) == whole
    assert trained == [("lora", "none")] * 2  # and nothing else
    finetune.STAGE.forget(run)
    assert not (run / "finetune").exists()
    assert not (run / "correct" / "finetune").exists()


def test_wrong_labels_are_those_of_heads_and_train_nothing_else_anew(finished: Path, tmp_path: Path, monkeypatch):
    run = Path(shutil.copytree(finished, tmp_path / "digits")) / CELL
    whole = values(read_rows(run), method="lora", preset=None)
    given, train = [], finetune_search.train

    def note(setup, method, terms, lr, rows, *rest):
        given.append((setup.noise, Subset(setup.task.train, rows)))
        return train(setup, method, terms, lr, rows, *rest)

    monkeypatch.setattr(finetune_search, "train", note)
    wrong = {"finetune.noises": (0.0, 0.25), "finetune.methods": ("lora",), "finetune.terms": ("none",)}
    digits_experiment.launch(run.parent, **TUNING, **wrong)
    ((noise, source),) = given  # what was there is not trained again
    labels = source.labels_clean
    same = corrupt_labels(labels, num_classes=5, kind="symmetric", rate=0.25, seed=0)  # as heads draw them
    np.testing.assert_array_equal(source.labels, same)
    assert (noise, (source.labels != labels).sum()) == (0.25, round(0.25 * 719))
    found = read_rows(run)
    assert values(found, downstream_noise=0.0).items() <= whole.items()
    assert len(values(found, downstream_noise=0.25)) == len(values(found, downstream_noise=0.0))
    tuned = load_model(run / "finetune/digits/lora,terms=none,share=1,noise=0.25,seed=0")
    assert tuned.meta["downstream_noise"] == 0.25


def test_which_test_rows_are_right_is_on_record(finished: Path):
    run = finished / CELL
    scored = [
        row for row in read_rows(run) if (row.stage, row.metric, row.wise_alpha) == ("finetune", "accuracy", None)
    ]
    assert len({(row.method, row.preset) for row in scored}) == 4
    for row in scored:
        right = read_correct(run, row)
        assert right is not None
        assert right.mean() == pytest.approx(row.value)


def test_stopped_and_started_again_gives_the_same_rows(finished: Path, tmp_path: Path, monkeypatch):
    """Stop in the middle of the second setting, and check that the first is not trained again."""
    run = Path(shutil.copytree(finished, tmp_path / "digits")) / CELL
    whole = values(read_rows(run))
    record = json.loads((run / "run.json").read_text())
    output = record["stages"]["finetune"].pop("output")  # as if it had not finished
    (run / "run.json").write_text(json.dumps(record))
    write_rows(run, "finetune", [])
    for name in (setting("lora", "paper"), setting("full"), setting("full", "paper")):
        shutil.rmtree(run / name)
    read, trained = finetune_search.pipeline.train, []

    def stopping(source, reading, *, start_step, **how):
        trained.append(start_step)
        for k, batch in enumerate(read(source, reading, start_step=start_step, **how), start_step):
            if k == 3 and len(trained) == 1:  # step 4; it is read LAG later
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(finetune_search.pipeline, "train", stopping)
    with pytest.raises(Preempted, match="step 6"):
        digits_experiment.launch(run.parent, **TUNING)
    assert (run / setting("lora", "paper") / "training" / "6").is_dir()
    digits_experiment.launch(run.parent, **TUNING)
    assert trained == [0, 6, 0, 0]
    assert values(read_rows(run)) == whole
    assert json.loads((run / "run.json").read_text())["stages"]["finetune"]["output"] == output


# ---- the choice of a learning rate, and of a start -------------------------------------------------------------------


def setup(folder: Path, **overrides) -> finetune_search.FinetuneSetup:
    config = digits_experiment.config(**{"finetune.targets": ("resnet_conv",), **overrides})
    with config.unlocked():
        config.noise_seed = 0
    config = finetune_search.make_training_config(config, 0)
    task = load_task("digits", config)
    model = encoder.build(config, num_classes=0)
    weights = jax.device_get(model.init(jax.random.key(0), model.spec))
    frozen = encoder.Encoder(model, *weights, 0, None, "")
    rows = np.arange(len(task.train))
    mesh = runtime.make_mesh()
    return finetune_search.FinetuneSetup(
        config=config, mesh=mesh, frozen=frozen, weights=weights, task=task, rows=rows, share=1.0, folder=folder
    )


def test_the_rate_is_that_of_highest_accuracy_on_held_out_rows(tmp_path: Path, monkeypatch):
    here, calls = setup(tmp_path), []
    found = {0.1: (0.5, 3.0), 0.2: (0.7, 2.0), 0.3: (0.7, 1.0), 0.4: (0.0, math.inf)}

    def train(setup, method, terms, lr, rows, head, folder):
        calls.append((lr, len(rows), folder.relative_to(tmp_path).as_posix()))
        return lr

    monkeypatch.setattr(finetune_search, "train", train)
    monkeypatch.setattr(finetune_search, "validate", lambda setup, trial, source: found[trial()])
    name = "full,terms=none,share=1,seed=0"
    n = len(here.rows)
    assert finetune_search.choose_and_train(here, "full", "none", tuple(found), FRESH) == 0.3
    kept = n - round(0.2 * n)
    assert calls == [(lr, kept, f"{name}/search/lr={lr:g}") for lr in found] + [(0.3, n, name)]
    calls.clear()
    finetune_search.choose_and_train(here, "full", "none", (0.1,), FRESH)
    assert calls == [(0.1, n, name)]  # there is nothing to choose
    monkeypatch.setattr(finetune_search, "validate", lambda *_: (0.0, math.inf))
    with pytest.raises(UserError, match="diverged at every rate"):
        finetune_search.choose_and_train(here, "full", "none", (0.1, 0.2), FRESH)


def test_a_trial_that_diverges_is_left_out(capsys):
    def trial():
        raise NonFinite("train/loss is nan at step 3")

    here = SimpleNamespace(config=SimpleNamespace(tune=SimpleNamespace(metric="task")), task=SimpleNamespace(metric=""))
    assert finetune_search.validate(here, trial, SimpleNamespace(num_classes=5)) == (-math.inf, math.inf)  # type: ignore[arg-type]
    assert "train/loss is nan" in capsys.readouterr().err


def test_zero_shot_weights_are_the_scaled_descriptions_of_the_classes(tmp_path: Path):
    here = setup(tmp_path, **CLIP)
    head = finetune_search.make_initial_heads(here).final
    assert head is not None
    kernel, bias = (head[0]["classifier"][name] for name in ("kernel", "bias"))
    assert kernel.shape == (6, 5)
    assert not bias.any()
    scale = np.exp(here.weights[0]["logit_scale"])
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), scale, rtol=1e-5)
    assert here.loop_setup("full").layer == "embedding"


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        ({"finetune.head_init": "zeroshot"}, "needs a text tower"),
        ({"finetune.targets": ("vit_mlp",)}, "'vit_mlp' matches no parameter"),
        ({"finetune.rank": 5}, "LoRA of rank 5"),
        ({"finetune.noises": (0.2, 1.5)}, "finetune.noises must be a tuple of distinct shares from 0 to 1"),
        ({"finetune.batch": 13}, "finetune.batch=13"),
        ({"finetune.methods": ("lora", "half")}, "unknown 'half'"),
        ({"tune.validation": 0.0}, "no rows to choose finetune.lrs by"),
        ({"tune.validation": 0.0, "finetune.lrs": (0.1,), "tune.lrs": (0.1, 0.2)}, "no rows to choose tune.lrs by"),
        ({"finetune.nmtune.svd": -1.0}, "svd is -1.0"),
        ({"finetune.nmtune.mse": 1.0}, "finetune.nmtune.mse=1.0 belongs to a term that is left out"),
        (CLIP | {"data.tokenizer": "nowhere.json"}, "nowhere.json"),
        (CLIP | {"zeroshot.class_names": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(overrides, cause: str):
    config = next(
        iter(
            settings.expand_sweep(
                digits_experiment.config(**{"finetune.targets": ("resnet_conv",), **overrides})
            ).values()
        )
    )
    with pytest.raises(UserError) as e:
        finetune.check(config, runtime.make_mesh())
    assert cause in e.value.cause
