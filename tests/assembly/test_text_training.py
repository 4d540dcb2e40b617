"""Test the training of text encoders: pre-training with wrong labels, LoRA and full fine-tuning, and how they go on."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from nml_jax import load_model, main, runtime, settings
from nml_jax.assembly import noisy_data
from nml_jax.data.text import stream
from nml_jax.data.text.folders import TextTokenizer
from nml_jax.errors import Preempted, UserError
from nml_jax.runs.heads import read_correct
from nml_jax.runs.rows import Row, read_rows
from nml_jax.stages import finetune, pretrain
from tests.scenes.meshes import mesh_of
from tests.stages import test_texts

CELL = "noise=0.3,seed=0"
TINY = {"model.name": "bert", "model.pool": "mean", "model.dim": 8, "model.depth": 1, "model.heads": 2,
        "model.hidden": 16, "model.context": 24}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """Use a mesh of two devices, which compiles faster than eight."""
    mesh = mesh_of(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "make_mesh", lambda *_: mesh)
        yield


def make_config(folder: Path, **keys):
    """Make the config of an encoder that starts at random, with the tokenizer of the folder `bert`."""
    config = test_texts.make_config(folder)
    config.update_from_flattened_dict({
        **TINY, "model.vocab": TextTokenizer(folder / "bert", 24).size, "init_from": "", "sweep.seed": (), "noise": 0.3,
        "texts.tokenizer": str(folder / "bert"), "stages": ("pretrain", "finetune"), "data.source": "texts",
        "data.path": str(folder), "data.validation_split": "dev", "train.batch": 8, "train.epochs": 2.0,
        "optimizer.warmup_epochs": 0.0, "finetune.epochs": 1.0, "finetune.batch": 8, "finetune.lrs": (1e-2,),
        "finetune.rank": 2, "finetune.targets": ("text_attention", "text_mlp"), "finetune.terms": ("none",),
        "finetune.wise": (0.0, 1.0), "finetune.head_init": "fresh", "finetune.neftune": 5.0, "finetune.noisytune": 0.1,
        "runtime.save_every": 0.25, "runtime.keep_every": 0.0, **keys,
    })  # fmt: skip
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return the folder of data and tokenizer; beside it is `runs`, with a finished run."""
    folder = tmp_path_factory.mktemp("texts") / "data"
    folder.mkdir()
    test_texts.write_folder(folder / "bert")
    test_texts.write_tables(folder)
    main.launch(make_config(folder), folder.parent / "runs", pinned={})
    return folder


def list_scores(rows: list[Row]) -> dict:
    return {(row.method, row.split, row.metric, row.wise_alpha): row.value for row in rows if row.stage == "finetune"}


def test_labels_are_wrong_exactly_and_the_ledger_says_so(finished: Path):
    run = finished.parent / "runs" / CELL
    ledger = json.loads((run / "noise.json").read_text())
    assert (ledger["n"], ledger["count"], ledger["kind"]) == (60, 18, "symmetric")
    config = next(iter(settings.expand_sweep(make_config(finished)).values()))
    data = noisy_data.load_data(config)
    assert (data.train.labels != data.train.labels_clean).sum() == 18
    assert len(data.validation) == 30
    rows = {(row.split, row.metric): row for row in read_rows(run) if row.stage == "pretrain"}
    assert rows["validation", "accuracy"].n_test == 30
    assert rows["train", "noisy_fit"].n_test == 18


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_result_is_an_ordinary_checkpoint_with_the_scores_on_record(finished: Path, method: str):
    run = finished.parent / "runs" / CELL
    before = load_model(run)
    after = load_model(run / "finetune" / "texts" / f"{method},terms=none,share=1,seed=0")
    assert after.meta["class_names"] == ["bad", "good"]
    kernels = [m.params["block0"]["attn"]["query"]["kernel"] for m in (before, after)]
    words = [m.params["words"]["embedding"] for m in (before, after)]
    assert not np.array_equal(*kernels)
    assert not np.array_equal(*words)  # by NoisyTune, even with LoRA
    cells = [line.split("\t") for line in (finished / "dev.tsv").read_text("utf-8-sig").split("\n")[1:] if line]
    table = TextTokenizer(finished / "bert", 24)([(a, b) for _, a, b, _ in cells])
    batch = table.make_batch(np.arange(30), 30, 24)
    logits = after.model.apply(after.params, {}, batch, train=False, key=None)[0]["logits"]
    right = np.asarray(logits).argmax(1) == [line[3].strip() == "good" for line in cells]
    (row,) = [row for row in read_rows(run) if (row.stage, row.method, row.split, row.metric, row.wise_alpha) ==
              ("finetune", method, "dev", "accuracy", None)]  # fmt: skip
    assert row.value == right.mean()
    np.testing.assert_array_equal(read_correct(run, row), right)  # row by row, in the order of the file


@pytest.mark.slow  # the loop's own tests resume on images
def test_stopped_and_started_again_gives_the_same_weights_and_rows(finished: Path, monkeypatch):
    """Stop pre-training, then fine-tuning, in the middle of a window; batches come in several lengths."""
    runs, read, starts = finished.parent / "again", stream.train, []
    whole = read_rows(finished.parent / "runs" / CELL)
    widths = set()

    def stopping(*args, start_step, **how):
        starts.append(start_step)
        for k, portion in enumerate(read(*args, start_step=start_step, **how), start_step):
            widths.add(portion.batch["tokens"].shape[1])
            if k == 3 and len(starts) in (1, 3):
                os.kill(os.getpid(), signal.SIGTERM)
            yield portion

    monkeypatch.setattr(stream, "train", stopping)
    for _ in range(2):
        with pytest.raises(Preempted, match="step 6"):
            main.launch(make_config(finished), runs, pinned={})
    main.launch(make_config(finished), runs, pinned={})
    assert starts == [0, 6, 0, 6, 0]
    assert len(widths) > 1
    assert list_scores(read_rows(runs / CELL)) == list_scores(whole)
    outputs = [json.loads((folder / CELL / "run.json").read_text())["stages"]["pretrain"]["output"]
               for folder in (runs, finished.parent / "runs")]  # fmt: skip
    assert outputs[0] == outputs[1]  # the digest of all weights
    shutil.rmtree(runs)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"data.source": "digits"}, "data.source=digits does not hold any"),
        ({"model.name": "resnet18", "model.pool": "cls"}, "reads images, and data.source=texts"),
        ({"objective.mixup": 0.2}, "mix images"),
        ({"texts.tokenizer": ""}, "there is no tokenizer"),
        ({"texts.length": 25}, "the model has 24 positions"),
        ({"model.vocab": 5}, "the model 5 embeddings"),
        ({"data.validation_split": "none"}, "holds no none.parquet, .tsv"),
        ({"data.validation_split": "one"}, "the classes of 'one' are best, good, those of 'train' are bad, good"),
        ({"data.label": "sort"}, "has no column 'sort'"),
    ],
)
def test_bad_pre_training(finished: Path, keys: dict, words: str):
    (finished / "one.tsv").write_text("sentence\tlabel\nhello\tgood\na b\tbest\n")
    config = next(iter(settings.expand_sweep(make_config(finished, **keys)).values()))

    def check():
        pretrain.check(config, runtime.make_mesh())
        noisy_data.load_data(config)

    with pytest.raises(UserError, match=words):
        check()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"finetune.targets": ("vit_mlp",)}, "'vit_mlp' matches no parameter"),
        ({"finetune.targets": ("vit_attention",)}, "'vit_attention' matches no parameter"),
        ({"finetune.rank": 9}, "LoRA of rank 9"),
        ({"downstream.tasks": ("digits",)}, "reads texts, and the downstream task is 'digits'"),
        ({"texts.regression": True}, "trains classifiers, and texts has scores\n  cure: use the stage tune"),
        ({"downstream.tasks": ("rte", "stsb")}, "trains classifiers, and stsb has scores"),
    ],
)
def test_bad_tuning(finished: Path, keys: dict, words: str):
    config = next(iter(settings.expand_sweep(make_config(finished, **keys)).values()))
    with pytest.raises(UserError, match=words):
        finetune.check(config, runtime.make_mesh(), data="texts" in config.downstream.tasks)


def test_a_published_folder_is_tuned_with_its_own_tokenizer(finished: Path):
    keys = {"init_from": str(finished / "bert"), "texts.tokenizer": "", "noise": 0.0, "stages": ("finetune",),
            "finetune.methods": ("lora",), "model.epsilon": 1e-12}  # fmt: skip
    main.launch(make_config(finished, **keys), finished.parent / "published", pinned={})
    scores = list_scores(read_rows(finished.parent / "published" / "noise=0,seed=0"))
    assert {split for _, split, *_ in scores} == {"dev", "other"}
