"""Test an embeddings service as the encoder: tables -> vectors -> heads -> report; and wrong configs."""

import csv
import json
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from configs import text_api
from nml_jax import main, predict, runtime
from nml_jax.data.features import banks
from nml_jax.errors import UserError
from nml_jax.stages import extract, finetune, pretrain
from nml_jax.tuning import head_file

scene = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "scenes" / "embeddings_server.py")))


@pytest.fixture
def server() -> Iterator[Any]:
    with scene.serve() as server:
        yield server


def write_tables(folder: Path) -> None:
    for name, rows in (("train", 40), ("dev", 20), ("other", 10)):
        lines = [f"{i}\tfirst {i}\tshared {i % 5}\t{'good' if i % 3 else 'bad'}" for i in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(["idx\tsentence1\tsentence2\tlabel", *lines]) + "\n")


def make_config(folder: Path, server: Any, **keys: Any):
    config = text_api.get_config("small")
    config.update_from_flattened_dict({
        "api.url": server.url, "runtime.api.cache": str(folder / "cache"), "runtime.api.batch": 8,
        "texts.train": str(folder / "train.tsv"), "texts.test": str(folder / "dev.tsv"),
        "texts.ood": str(folder / "other.tsv"), "sweep.seed": (0, 1), "tune.methods": ("lbfgs",), "tune.cs": (0.1,),
        "runtime.api.price": 5.0, "runtime.api.key": "A_KEY", **keys,
    })  # fmt: skip
    return config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tables(tmp_path)
    monkeypatch.setenv("A_KEY", "sk-very-secret")
    return tmp_path


def read_bank(run: Path, split: str) -> np.ndarray:
    layer = banks.Layer(banks.Bank(run / "banks" / "texts" / split), "features")
    return np.concatenate([block[:, 0] for _, block in layer.blocks(7)])


def test_from_a_service_to_a_report(folder: Path, server, capsys):
    config = make_config(folder, server)
    main.launch(config, folder / "runs", pinned={}, dry_run=True)
    plan = capsys.readouterr().out
    assert "texts: 70, 40 different, 0 of them in the cache" in plan
    assert not (folder / "cache").exists()
    assert server.asked == []
    main.launch(config, folder / "runs", pinned={})
    asked = [text for texts in server.asked for text in texts]
    assert sorted(asked) == sorted(f"first {i}\nshared {i % 5}" for i in range(40))  # of all splits, once
    run = folder / "runs" / "noise=0,seed=1"
    found = read_bank(run, "dev")
    np.testing.assert_array_equal(found, [scene.embed(f"first {i}\nshared {i % 5}") for i in range(20)])
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    assert {row["model"] for row in rows} == {"small"}
    assert (folder / "runs" / "report.html").is_file()
    main.launch(make_config(folder, server, **{"api.pairs": "compare"}), folder / "pairs", pinned={"seed": 0})
    asked = [text for texts in server.asked for text in texts][40:]
    assert sorted(asked) == sorted([f"first {i}" for i in range(40)] + [f"shared {i}" for i in range(5)])
    u, v = ([scene.embed(text.format(i, i % 5)) for i in range(20)] for text in ("first {0}", "shared {1}"))
    want = np.concatenate([u, v, np.abs(np.subtract(u, v)), np.multiply(u, v)], 1)
    np.testing.assert_array_equal(read_bank(folder / "pairs" / "noise=0,seed=0", "dev"), want)
    main.launch(config, folder / "runs", pinned={}, dry_run=True)
    captured = capsys.readouterr()
    assert "40 of them in the cache\n  tokens to ask for: about 0" in captured.out
    assert server.keys == {"Bearer sk-very-secret"}
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert not any(b"very-secret" in path.read_bytes() for path in kept)
    assert "very-secret" not in captured.out + captured.err


def test_predict_asks_for_new_texts_alone(folder: Path, server, capsys, monkeypatch):
    main.launch(make_config(folder, server, stages=("extract", "tune")), folder / "runs", pinned={"seed": 0})
    run, out = folder / "runs" / "noise=0,seed=0", folder / "out.csv"
    (path,) = (run / "heads").rglob("*.safetensors")
    texts = [("first 3", "shared 3"), ("of", "today"), ("first 1", "shared 1")]
    lines = [f"{i}\t{a}\t{b}" for i, (a, b) in enumerate(texts)]
    (folder / "new.tsv").write_text("\n".join(["id\tsentence1\tsentence2", *lines]) + "\n")
    before, arguments = len(server.asked), [str(path), str(folder / "new.tsv"), f"--encoder={run}", f"--out={out}"]
    assert predict.main([*arguments, "--proba", "--keep=id"]) == 0
    assert server.asked[before:] == [["of\ntoday"]]
    head = head_file.load(path)
    logits = head.outputs(np.stack([scene.embed("\n".join(pair)) for pair in texts]))[1]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["prediction"]) for row in rows] == [
        (str(i), head.classes[best]) for i, best in enumerate(logits.argmax(1))
    ]
    odds = [[float(row[name]) for name in head.classes] for row in rows]
    np.testing.assert_allclose(odds, head.probabilities(logits), atol=1e-5)
    out.unlink()
    captured = capsys.readouterr()
    with (folder / "new.tsv").open("a") as file:
        file.write("3\tnews\tagain\n")
    server.script[:] = [401]
    assert predict.main(arguments) == 2
    assert "answers 401" in capsys.readouterr().err
    shutil.rmtree(folder / "cache")
    server.script[:] = [lambda _, body: {**body, "data": [{**x, "embedding": [1.0, 2.0]} for x in body["data"]]}]
    assert predict.main(arguments) == 2
    assert "makes 2 numbers of a row" in capsys.readouterr().err
    monkeypatch.delenv("A_KEY")
    shutil.rmtree(folder / "cache")
    assert predict.main(arguments) == 2
    page = capsys.readouterr().err
    assert "is not set" in page
    assert "very-secret" not in captured.out + captured.err + page
    assert not out.exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"api.url": ""}, r"api\.url is empty"),
        ({"api.model": ""}, r"api\.model is empty"),
        ({"api.pairs": "both"}, r"api\.pairs is 'both'"),
        ({"api.dimensions": -1}, r"api\.dimensions must be at least 0"),
        ({"runtime.api.key": "sk-very-secret"}, "not the name of an environment variable"),
        ({"runtime.api.encoding": "hex"}, "encoding is 'hex'"),
        ({"runtime.api.batch": 0}, r"runtime\.api\.batch must be at least 1"),
        ({"runtime.api.timeout": 0.0}, r"runtime\.api\.timeout must be above 0"),
        ({"downstream.tasks": ("digits",)}, "reads texts"),
        ({"extract.views": 2}, "texts have one view"),
        ({"noise": 0.1}, "small was not pre-trained by this run"),
        ({"runtime.api.key": "NO_KEY"}, "is not set"),
    ],
)
def test_bad_configs(folder: Path, server, keys: dict, words: str):
    config = make_config(folder, server, **{"stages": ("extract",), **keys})
    with pytest.raises(UserError, match=words) as caught:
        main.launch(config, folder / "runs", pinned={"seed": 0})
    assert "very-secret" not in str(caught.value)
    assert server.asked == []
    assert not (folder / "cache").exists()


def test_an_empty_text_is_named(folder: Path, server):
    with (folder / "dev.tsv").open("a") as file:
        file.write("20\t \tb\tgood\n")
    config = make_config(folder, server, stages=("extract",))
    with pytest.raises(UserError, match="dev: the text of row 20 is empty"):
        main.launch(config, folder / "runs", pinned={"seed": 0})


@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_a_service_is_not_trained(folder: Path, server, stage):
    with pytest.raises(UserError, match=r"model\.name=api"):
        stage.check(make_config(folder, server, **{"train.batch": 16}), runtime.make_mesh(), data=False)


def test_what_names_a_bank(folder: Path, server):
    keys = []
    for change in (
        {},
        {"api.model": "large"},
        {"api.dimensions": 4},
        {"api.pairs": "compare"},
        {"api.url": "http://h"},
    ):
        config = make_config(folder, server, **change)
        frozen = extract.encoder.load(config, folder, runtime.make_mesh())
        test = extract.agreement.open_task("texts", config).tests[0]
        keys.append(extract.make_bank_key(config, frozen, test, views=1))
    assert len(set(keys)) == len(keys)
