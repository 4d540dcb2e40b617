"""Image-text pre-training from end to end: what a run leaves, what it skips, what it refuses, how it continues."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import nml_jax
from configs import common
from nml_jax import noise
from nml_jax.data import sources
from nml_jax.data.features import banks
from nml_jax.errors import UserError
from nml_jax.processes import peers
from nml_jax.runs.rows import read_rows, write_rows
from nml_jax.stages import extract
from tests.scenes import clip_experiment

ROOT = Path(__file__).parents[2]
CELL = "noise=0.5,seed=0"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return clip_experiment.prepare(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data: Path) -> Path:
    """A finished experiment of one run. Copy it before changing it."""
    workdir = tmp_path_factory.mktemp("clip") / "clip_pairs"
    clip_experiment.launch(workdir, data)
    return workdir


def rows_of(workdir: Path, cell: str = CELL, **where):
    return [r for r in read_rows(workdir / cell) if all(getattr(r, k) == v for k, v in where.items())]


def test_a_run_leaves_every_number(finished: Path, data: Path):
    rows = rows_of(finished)
    assert {r.stage for r in rows} == {"pretrain", "extract", "zeroshot", "tune"}
    assert all(np.isfinite(r.value) for r in rows)
    recalls = {f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert {r.metric for r in rows_of(finished, stage="pretrain", split="validation")} == recalls
    assert {(r.noise_kind, r.objective) for r in rows} == {("caption_swap", "clip")}
    zero_shot = rows_of(finished, stage="zeroshot", method="zero-shot")
    assert {(r.task, r.split, r.domain) for r in zero_shot} == {("directory", "val", "id")}
    assert {r.metric for r in zero_shot} == {"accuracy", "macro_f1", "mean_per_class"}
    assert {r.metric for r in rows_of(finished, stage="zeroshot", method=None, split="shapes/val")} == recalls
    (fit,) = rows_of(finished, metric="noisy_nearer")
    clean, swap = (
        sources.load("directory", str(data), "train", captions=True),
        noise.CaptionSwap(n=60, rate=0.5, seed=0),
    )
    assert fit.n_test == sum(
        clean.captions[i][0] != clean.captions[int(swap(i))][0] for i in swap.list_swapped().tolist()
    )
    assert rows_of(finished, stage="tune", metric="accuracy")


def test_the_same_retrieval_in_training_and_after(finished: Path):
    """Validation is the split that the stage retrieves in: the numbers must be the same."""
    during = {r.metric: r.value for r in rows_of(finished, stage="pretrain", split="validation")}
    after = {r.metric: r.value for r in rows_of(finished, stage="zeroshot", split="shapes/val", method=None)}
    assert after == during


def test_the_ledger_tells_the_swap(finished: Path, data: Path):
    ledger = json.loads((finished / CELL / "noise.json").read_text())
    clean = sources.load("directory", str(data), "train", captions=True)
    swap = noise.CaptionSwap(n=60, rate=0.5, seed=0)
    assert (ledger["kind"], ledger["n"], ledger["count"], ledger["realised"]) == ("caption_swap", 60, 30, 0.5)
    unchanged = sum(clean.captions[i] == clean.captions[int(swap(i))] for i in swap.list_swapped().tolist())
    assert ledger["unchanged"] == unchanged
    assert noise.Ledger.from_dict(ledger) == noise.Ledger.from_captions(
        swap, ("\0".join(c) for c in clean.captions), unchanged=unchanged
    )


def test_numbers_on_the_way(finished: Path):
    lines = [json.loads(line) for line in (finished / CELL / "metrics.jsonl").read_text().splitlines()]
    names = set().union(*lines)
    assert {"probe/sve", "probe/top_share", "zeroshot/directory/val/accuracy", "validation/i2t_recall@1"} <= names
    assert {"train/loss", "train/accuracy", "train/logit_scale"} <= names


def test_the_report_shows_retrieval_and_zero_shot(finished: Path):
    page = (finished / "report.html").read_text()
    assert "recall@1" in page
    assert "zero-shot" in page
    assert "caption_swap" in page
    csv = (finished / "summary.csv").read_text()
    assert "i2t_recall@1" in csv


def test_finished_stages_are_skipped(finished: Path, data: Path, tmp_path: Path, capfd):
    workdir = shutil.copytree(finished, tmp_path / "again")
    clip_experiment.launch(workdir, data)
    assert capfd.readouterr().err.count("is done, skipped") == 4


def test_other_prompts_redo_zero_shot_alone(data: Path, tmp_path: Path, capfd, finished: Path):
    workdir, file = shutil.copytree(finished, tmp_path / "run"), tmp_path / "templates.json"
    file.write_text('["nothing of {c}", "{c}"]')
    before = rows_of(workdir)
    capfd.readouterr()
    clip_experiment.launch(workdir, data, force=("zeroshot",), **{"zeroshot.templates": str(file)})
    said = capfd.readouterr().err
    assert said.count("is done, skipped") == 3
    assert "zeroshot finished" in said
    file.write_text('["{c}"]')
    clip_experiment.launch(workdir, data, **{"zeroshot.templates": str(file)})
    assert "zeroshot finished" in (said := capfd.readouterr().err)
    assert said.count("is done, skipped") == 3
    assert len(rows_of(workdir)) == len(before)


def test_zero_shot_can_be_added_to_a_finished_run(data: Path, tmp_path: Path, finished: Path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((workdir / CELL / "run.json").read_text())
    del record["stages"]["zeroshot"]
    (workdir / CELL / "run.json").write_text(json.dumps(record))
    write_rows(workdir / CELL, "zeroshot", [])
    tuned = rows_of(workdir, stage="tune")
    clip_experiment.launch(workdir, data, stages=("zeroshot", "report"))
    assert rows_of(workdir, stage="zeroshot")
    assert rows_of(workdir, stage="tune") == tuned


def test_every_stage_says_where_it_is(monkeypatch, finished: Path, data: Path, tmp_path: Path):
    """As the other processes of a job would hear of it if there were any."""
    within: list[str | Callable[[], str]] = []
    been: set[str] = set()

    @contextlib.contextmanager
    def track(place: str | Callable[[], str]) -> Iterator[None]:
        within.append(place)
        been.add(": ".join(where if isinstance(where, str) else where() for where in within))
        yield
        within.remove(place)

    monkeypatch.setattr(peers, "track", track)
    workdir = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(extract, "WRITTEN", {})  # else the banks of the finished run would be copied
    clip_experiment.launch(workdir, data, force=("extract", "zeroshot", "tune"))
    assert within == []
    assert been == {
        "pretrain", "extract", "extract: directory/train", "extract: directory/train: batch 0 of images",
        "extract: val", "extract: val: batch 0 of images", "zeroshot", "zeroshot: val",
        "zeroshot: val: batch 0 of images", "zeroshot: val: batch 0 of texts", "tune",
        "tune: directory: linear, 0 of 1 methods done", "report",
    }  # fmt: skip


def test_both_layers_are_named(finished: Path, data: Path, tmp_path: Path):
    workdir = shutil.copytree(finished, tmp_path / "layers")
    layers = ("features", "embedding", "block0")
    clip_experiment.launch(workdir, data, force=("extract",), **{"extract.layers": layers})
    bank = banks.Bank(workdir / CELL / "banks" / "directory" / "val")
    embedding = bank.read("embedding")[:, 0]
    assert embedding.shape == (24, 8)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)
    assert {r.layer for r in rows_of(workdir, stage="extract")} == set(layers)


def test_a_checkpoint_reloads_and_encodes_both(finished: Path):
    loaded = nml_jax.load_model(finished / CELL)
    image = np.zeros((2, 8, 8, 3), np.uint8)
    text = np.array([[256, 97, 257] + [0] * 13] * 2, np.int32)
    whole, _ = loaded.model.apply(
        loaded.params, loaded.model_state, {"image": image, "text": text}, train=False, key=None
    )
    alone, _ = loaded.model.apply(loaded.params, loaded.model_state, {"text": text}, train=False, key=None)
    np.testing.assert_allclose(alone["text_embedding"], whole["text_embedding"], atol=1e-6)
    assert "embedding" not in alone
    assert whole["embedding"].shape == (2, 8)


def test_an_interrupted_run_ends_in_the_same_bits(finished: Path, data: Path, tmp_path: Path):
    workdir = shutil.copytree(finished, tmp_path / "cut")
    checkpoints = workdir / CELL / "checkpoints"
    last = max(checkpoints.iterdir(), key=lambda p: int(p.name) if p.name.isdecimal() else -1)
    shutil.rmtree(last)
    clip_experiment.launch(workdir, data)
    output = [json.loads((w / CELL / "run.json").read_text())["stages"]["pretrain"]["output"]
              for w in (finished, workdir)]  # fmt: skip
    assert output[0] == output[1]


@pytest.mark.slow
def test_micro_batches_and_chunks_reach_the_same_weights(data: Path, tmp_path: Path):
    """In a model without BatchNorm the parts of a batch must not change its gradient."""
    one = {"optimizer.name": "sgd", "train.epochs": 1.0, "optimizer.warmup_epochs": 0.5, "stages": ("pretrain",),
           "runtime.evaluators": (), "optimizer.decay": ((r".*", 0.0),)}  # fmt: skip
    weights = []
    for name, options in {
        "plain": {},
        "chunked": {"objective.chunk": 1},
        "parts": {"train.micro_batches": 2},
    }.items():
        clip_experiment.launch(tmp_path / name, data, **one, **options)
        weights.append(nml_jax.load_model(tmp_path / name / CELL).params)
    for other in weights[1:]:
        for a, b in zip(jax.tree.leaves(weights[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.slow
def test_weight_decay_leaves_scale_and_bias_of_the_logits_alone(data: Path):
    from nml_jax import models
    from nml_jax.training import optim

    for decay in (clip_experiment.config(data).optimizer.decay, common.get_config().optimizer.decay):
        config = clip_experiment.config(
            data, **{"model.logit_bias": -10.0, "optimizer.lr": 1.0, "optimizer.decay": decay}
        )
        model = models.build(config.model, num_classes=0, image_size=8)
        params, _ = model.init(jax.random.key(0), model.spec)
        tx, _ = optim.make(config.optimizer, params, steps=10, steps_per_epoch=1.0)
        state = tx.init(params)
        for _ in range(3):
            zero = jax.tree.map(np.zeros_like, params)
            updates, state = tx.update(zero, state, params)
        assert float(updates["logit_scale"]) == float(updates["logit_bias"]) == 0
        assert np.abs(updates["text"]["projection"]["kernel"]).max() > 0


def test_the_dry_run_counts_every_part_of_a_batch(data: Path, tmp_path: Path, capsys):
    told = []
    for parts in (1, 2):
        clip_experiment.launch(tmp_path / "dry", data, dry_run=True, **{"train.micro_batches": parts})
        out = capsys.readouterr().out
        told.append(float(re.search(r"FLOP per step: (\S+)", out)[1]))
    assert told[1] == pytest.approx(told[0] * 4 / 3, rel=0.01)


@pytest.mark.slow
def test_siglip_trains(data: Path, tmp_path: Path):
    options = {"objective.name": "siglip", "model.logit_bias": -10.0, "train.epochs": 1.0, "stages": ("pretrain",),
               "optimizer.warmup_epochs": 0.5, "runtime.evaluators": ()}  # fmt: skip
    clip_experiment.launch(tmp_path / "siglip", data, **options)
    assert "logit_bias" in nml_jax.load_model(tmp_path / "siglip" / CELL).params


@pytest.mark.slow
def test_a_mixture_with_weights(data: Path, tmp_path: Path):
    other = clip_experiment.prepare(tmp_path / "other", train=20, val=4)
    options = {
        "data.mixture": (str(data), str(other)), "data.weights": (1.0, 3.0), "data.path": "",
        "downstream.path": str(data), "stages": ("pretrain",), "runtime.evaluators": (),
    }  # fmt: skip
    clip_experiment.launch(tmp_path / "mixed", data, **options)
    ledger = json.loads((tmp_path / "mixed" / CELL / "noise.json").read_text())
    assert (ledger["n"], ledger["count"]) == (80, 40)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "cause", "cure"),
    [
        ({"noise_kind": "symmetric"}, "noise_kind=symmetric does not fit objective.name=clip", "caption_swap"),
        ({"objective.name": "supervised", "noise_kind": "symmetric"}, "has no head", "objective.name=clip"),
        ({"model.name": "resnet18"}, "needs a text tower", "clip"),
        ({"model.text_vocab": 1000}, "258", "--config.model.text_vocab=258"),
        ({"model.text_context": 2}, "text_context must be at least 3", "start and end"),
        ({"data.tokenizer": "/nowhere.json"}, "/nowhere.json", ""),
        ({"runtime.evaluators": ("retrieva",)}, "unknown evaluator 'retrieva'", "spectrum, zeroshot"),
        ({"objective.name": "siglip"}, "logit_bias", "model.logit_bias"),
        ({"objective.chunk": -1}, "objective.chunk=-1", "0"),
        ({"train.micro_batches": 3}, "train.micro_batches=3 does not divide", "divisor"),
        ({"data.weights": (1.0, 2.0)}, "for 1 dataset", "one positive number"),
        ({"extract.layers": ("features", "logit_scale")}, "no layer 'logit_scale'", "embedding, features"),
        ({"downstream.path": "/nowhere"}, "no prepared dataset at '/nowhere'", "downstream.path"),
        ({"zeroshot.retrieval": ("nope",)}, "no split 'nope'", "train, val"),
        ({"zeroshot.class_names": "/nowhere.json"}, "/nowhere.json", ""),
        (
            {"model.tower": "resnet18", "model.dim": None, "model.patch_dropout": 0.5},
            "model.patch_dropout is 0.5",
            "resnet18 has no patches",
        ),
        ({"objective.name": "clp"}, "no objective.name='clp'", "supervised, clip, siglip"),
        ({"data.classes": (0, 1)}, "data.classes=(0, 1)", "leave it out"),
        ({"data.path": "/nowhere", "stages": ("pretrain",)}, "holds no prepared dataset", "prepare image_text"),
        ({"data.train": "trian"}, "no split 'trian'", "train, val"),
        ({"zeroshot.templates": "/nowhere.json"}, "/nowhere.json", ""),
        ({"noise": 0.01}, "swaps only 1 caption", "at least two"),
    ],
)
def test_bad_input_is_told_in_two_lines_and_loses_nothing(data: Path, tmp_path: Path, options, cause: str, cure: str):
    with pytest.raises(UserError) as e:
        clip_experiment.launch(tmp_path / "run", data, **options)
    assert cause in e.value.cause
    assert cure in e.value.cure
    assert "\n" not in e.value.cause + e.value.cure
    assert not list((tmp_path / "run").glob("*/checkpoints/[0-9]*"))


def test_class_names_of_another_number_stop_zero_shot_and_keep_the_pretraining(
    finished: Path, data: Path, tmp_path: Path
):
    workdir, names = shutil.copytree(finished, tmp_path / "names"), tmp_path / "names.json"
    names.write_text('["one", "two"]')
    with pytest.raises(UserError, match=r"2 classes.* has 4"):
        clip_experiment.launch(workdir, data, force=("zeroshot",), **{"zeroshot.class_names": str(names)})
    assert list((workdir / CELL / "checkpoints").glob("[0-9]*"))


def test_a_template_without_its_placeholder(data: Path, tmp_path: Path):
    file = tmp_path / "templates.json"
    file.write_text('["a photo of {c}", "a photo"]')
    with pytest.raises(UserError, match=r"'a photo' .* has no placeholder"):
        clip_experiment.launch(tmp_path / "run", data, **{"zeroshot.templates": str(file)})


def test_the_loop_does_not_know_that_clip_exists():
    for name in ("loop.py", "state.py"):
        code = (ROOT / "nml_jax" / "training" / name).read_text("utf-8").lower()
        assert not re.search(r"\bclip\b|caption|\btext\b|contrast|embedding|logit_scale", code), name
