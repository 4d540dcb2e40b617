"""Test the path of a text encoder's folder: texts in tables -> banks -> heads -> report."""

import dataclasses
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import text
from nml_jax import main, runtime
from nml_jax.data.features import banks
from nml_jax.data.sources.source import Subset
from nml_jax.data.text.batches import plan_batches
from nml_jax.data.text.folders import TextTokenizer
from nml_jax.errors import UserError
from nml_jax.models import build
from nml_jax.stages import extract
from nml_jax.training import pretrained
from tests.scenes.meshes import mesh_of

TESTS = Path(__file__).parents[1]
golden = SimpleNamespace(**runpy.run_path(str(TESTS / "data" / "text" / "golden_folders.py")))
weights = SimpleNamespace(**runpy.run_path(str(TESTS / "models" / "weights" / "golden_language.py")))
ABOUT = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16, "max_position_embeddings": 24, "layer_norm_eps": 1e-12}  # fmt: skip


SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]  # names of shards


def write_folder(folder: Path, **about) -> Path:
    """Write a tiny BERT as it is published: prefix, old names of norms, head, buffer and pooler."""
    folder.mkdir(exist_ok=True)
    golden.write_folder("bert", folder)
    vocab = TextTokenizer(folder, 24).size
    (folder / "config.json").write_text(json.dumps({**ABOUT, "vocab_size": vocab, **about}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    square = (*(f"attention.self.{name}" for name in ("query", "key", "value")), "attention.output.dense")
    kernels = {**dict.fromkeys(square, (8, 8)), "intermediate.dense": (16, 8),
               "output.dense": (8, 16)}  # fmt: skip
    layer = "bert.encoder.layer.0."
    shapes = {f"{layer}{name}.weight": shape for name, shape in kernels.items()}
    shapes |= {f"{layer}{name}.bias": shape[:1] for name, shape in kernels.items()}
    shapes |= {"bert.pooler.dense.weight": (8, 8), "bert.pooler.dense.bias": (8,), "cls.predictions.bias": (vocab,)}
    rows = {"word": vocab, "position": 24, "token_type": 2}
    shapes |= {f"bert.embeddings.{name}_embeddings.weight": (n, 8) for name, n in rows.items()}
    tensors = weights.weights(shapes, "sharp")
    for norm in ("bert.embeddings", f"{layer}attention.output", f"{layer}output"):
        tensors |= {
            f"{norm}.LayerNorm.gamma": np.ones(8, np.float32),
            f"{norm}.LayerNorm.beta": np.zeros(8, np.float32),
        }
    tensors["bert.embeddings.position_ids"] = np.arange(24)[None]
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


def write_tables(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, rows in (("train", 60), ("dev", 30), ("other", 20)):
        lines = ["idx\tsentence1\tsentence2\tlabel"]
        for i in range(rows):
            good = bool(rng.integers(2))
            own = " ".join(rng.choice(["hello world", "word"] if good else ["text in", "a b"], rng.integers(1, 6)))
            lines.append(f'{i}\t{own}\t"in {name}\t{"good" if good else "bad"}')
        (folder / f"{name}.tsv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", "utf-8")


def make_config(tmp_path: Path, **keys):
    config = text.get_config(str(tmp_path / "bert"))
    config.update_from_flattened_dict({
        "texts.train": str(tmp_path / "train.tsv"), "texts.test": str(tmp_path / "dev.tsv"),
        "texts.ood": str(tmp_path / "other.tsv"), "texts.length": 24, "texts.buckets": (8, 16),
        "extract.batch": 16, "sweep.seed": (0, 1), "tune.methods": ("lbfgs",), "tune.cs": (0.1,), **keys,
    })  # fmt: skip
    return config


def load_weights(tmp_path: Path, **keys):
    config = make_config(tmp_path, **keys)
    model = build(config.model, num_classes=1, image_size=8)
    return pretrained.load_weights(config.init_from, config, model, jax.random.key(0), head_for="features")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "bert")
    write_tables(tmp_path)
    return tmp_path


def test_from_a_folder_and_tables_to_a_report(folder: Path, capsys):
    config = make_config(folder)
    assert (config.model.name, config.model.pool, config.model.depth) == ("bert", "mean", 1)
    main.launch(config, folder / "runs", pinned={}, dry_run=True)
    assert not (folder / "runs").exists()
    main.launch(config, folder / "runs", pinned={})
    page = capsys.readouterr()
    assert (folder / "runs" / "report.html").is_file()
    (first, second) = sorted(path for path in (folder / "runs").iterdir() if (path / "banks").is_dir())
    bank = banks.Bank(first / "banks" / "texts" / "dev")
    assert bank.index["class_names"] == ["bad", "good"]
    found = np.concatenate([block[:, 0] for _, block in banks.Layer(bank, "features").blocks(7)])
    # the same texts one by one, in one length, without buckets
    model = build(config.model, num_classes=1, image_size=8)
    params, state = pretrained.load_weights(config.init_from, config, model, jax.random.key(0))
    cells = [line.split("\t") for line in (folder / "dev.tsv").read_text("utf-8-sig").split("\n")[1:] if line]
    table = TextTokenizer(folder / "bert", 24)([(a, b) for _, a, b, _ in cells])
    batch = table.make_batch(np.arange(len(cells)), len(cells), 24)
    want, _ = model.apply(params, state, batch, train=False, key=None)
    np.testing.assert_allclose(found, want["features"], atol=1e-5)
    assert found.std(0).min() > 1e-3
    assert (second / "banks" / "texts" / "dev").is_dir()
    assert "texts 'sentence1' and 'sentence2', label 'label'" in page.err + page.out


def test_features_do_not_depend_on_devices_batches_buckets_or_order(folder: Path):
    """To 1e-5, alone and among others."""
    found = []
    for devices, keys in ((1, {}), (8, {"texts.buckets": (24,)}), (8, {"extract.batch": 8}), (1, {"extract.batch": 1})):
        config, mesh = make_config(folder, **keys), mesh_of(devices)
        frozen = extract.encoder.load(config, folder, mesh)
        test = extract.agreement.open_task("texts", config).tests[0]
        order = np.random.default_rng(devices).permutation(len(test.source))[:: 1 if config.extract.batch > 1 else 10]
        count, test = len(test.source), dataclasses.replace(test, source=Subset(test.source, order))
        encode = extract.compile_encoder(frozen.model, ("features", "block0"), mesh)
        blocks = list(extract.encode_split(config, frozen, encode, mesh, test, None))
        rows = np.concatenate([np.concatenate([block["features"], block["block0"]], 1) for block in blocks])
        assert len(rows) == len(order)
        whole = np.full((count, rows.shape[1]), np.nan)
        whole[order] = rows
        found.append(whole)
    for other in found[1:]:
        there = np.isfinite(other[:, 0])
        assert there.sum() >= 3
        np.testing.assert_allclose(other[there], found[0][there], atol=1e-5)
    assert np.abs(found[0] - found[0][0]).max() > 0.1, "texts differ"


def shard(folder: Path, dtype: str) -> dict[str, np.ndarray]:
    """Write the weights again in two files and another type. Return them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors = {name: x.astype(dtype) if x.dtype == np.float32 else x for name, x in tensors.items()}
    parts = {file: sorted(tensors)[i::2] for i, file in enumerate(SHARDS)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_shards_of_any_precision(tmp_path: Path, dtype: str):
    folder = write_folder(tmp_path / "bert")
    tensors = shard(folder, dtype)
    params, _ = load_weights(tmp_path)
    for name, ours in (("embeddings.word_embeddings.weight", params["words"]["embedding"]),
                       ("encoder.layer.0.attention.self.key.weight", params["block0"]["attn"]["key"]["kernel"].T),
                       ("encoder.layer.0.output.LayerNorm.gamma", params["block0"]["norm2"]["scale"])):  # fmt: skip
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, tensors[f"bert.{name}"].astype(np.float32))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        load_weights(tmp_path)


def test_what_names_a_bank(folder: Path):
    mesh, keys = runtime.make_mesh(), []
    for change in ({}, {"model.pool": "cls"}, {"texts.buckets": (16,)}, {"extract.batch": 8}, {"texts.length": 20}):
        config = make_config(folder, **change)
        extract.check(config, mesh)
        frozen = extract.encoder.load(config, folder, mesh)
        task = extract.agreement.open_task("texts", config)
        keys.append(extract.make_bank_key(config, frozen, task.tests[0], views=1))
    assert len(set(keys)) == len(keys)


def test_batches_are_sorted_in_windows_and_cover_every_row():
    lengths, buckets = np.random.default_rng(0).integers(1, 60, 300), [16, 32, 64]
    windows = list(plan_batches(lengths, 4, buckets))
    assert len(windows) == 2
    seen = np.concatenate([rows for window in windows for rows, _, _ in window])
    assert sorted(seen) == list(range(300))
    for rows, size, width in (part for window in windows for part in window):
        assert len(rows) <= size == 64 // width
        assert width // 2 < max(lengths[rows].max(), 9) <= width
    (window,) = plan_batches(np.array([3, 60, 20, 4, 9]), 4, buckets)
    assert [(rows.tolist(), size, width) for rows, size, width in window] == [
        ([1], 1, 64), ([4, 2], 2, 32), ([0, 3], 4, 16),
    ]  # fmt: skip
    (window,) = plan_batches(np.array([3, 60, 20, 4, 9]), 4, buckets, devices=2)
    assert [(rows.tolist(), size, width) for rows, size, width in window] == [([2, 1], 2, 64), ([0, 3, 4], 4, 16)]


@pytest.mark.parametrize("mean", [11.7, 25.0, 37.6, 64.6])
@pytest.mark.parametrize("count", [71, 277, 1043, 5463])
def test_little_of_a_batch_is_padding_and_a_bucket_has_one_shape(mean: float, count: int):
    """Lengths as in GLUE's development sets: half of the mean and an exponential tail, at most 128 tokens."""
    buckets = [16, 24, 32, 48, 64, 128]
    draw = np.random.default_rng(0).exponential(mean / 2, count)
    lengths = np.clip(mean / 2 + draw, 4, 128).astype(int)
    parts = [part for window in plan_batches(lengths, 64, buckets) for part in window]
    shapes = {(size, width) for _, size, width in parts}
    assert len({width for _, width in shapes}) == len(shapes)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"texts.test": "{}/train.tsv"}, "is the same as"),
        ({"texts.test": "{}/none.tsv"}, "does not exist"),
        ({"texts.label": "sort"}, "has no column 'sort'"),
        ({"texts.length": 25}, "the model has 24 positions"),
        ({"extract.views": 2}, "texts have one view"),
        ({"downstream.tasks": ("digits",)}, "reads texts"),
        ({"model.name": "resnet18", "model.pool": "cls"}, "reads images"),
    ],
)
def test_bad_configs(folder: Path, keys: dict, words: str):
    keys = {key: value.format(folder) if isinstance(value, str) else value for key, value in keys.items()}

    def check():
        config = make_config(folder, **keys)
        extract.check(config, runtime.make_mesh())
        extract.agreement.open_task("texts", config)

    with pytest.raises(UserError, match=words):
        check()


@pytest.mark.parametrize(
    ("line", "words"),
    [("1\ta\tb", "line 62: 3 cells, but 4 columns"), ("1\ta\tb\t", "rows have no label"),
     ("1\ta\tb\tnone", "training never saw")],
)  # fmt: skip
def test_bad_rows(folder: Path, line: str, words: str):
    name = "other" if "none" in line else "train"
    with (folder / f"{name}.tsv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=words):
        extract.agreement.open_task("texts", make_config(folder))


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"hidden_size": 16}, "do not fit the model"),
        ({"vocab_size": 30}, "do not fit the model"),
        ({"model_type": "deberta"}, "is transformers' own form of a model"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_act": "gelu_python"}, "hidden_act is 'gelu_python'"),
        ({"is_decoder": True}, "is_decoder is True"),
    ],
)
def test_bad_folders(tmp_path: Path, about: dict, words: str):
    write_folder(tmp_path / "bert", **about)
    with pytest.raises(UserError, match=words):
        load_weights(tmp_path)


def test_bad_weights_and_contradictions(tmp_path: Path):
    folder = write_folder(tmp_path / "bert")

    def load(**keys):
        return load_weights(tmp_path, **keys)

    assert "pooler" in load(**{"model.pool": "pooler"})[0]
    for key, value in (("model.heads", 4), ("model.epsilon", 1e-5), ("model.activation", "relu")):
        with pytest.raises(UserError, match="says otherwise"):
            load(**{key: value})
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(UserError, match="pools by pooling_mode_max_tokens"):
        load()
    for damaged in ("{", "[]"):
        (folder / "1_Pooling" / "config.json").write_text(damaged)
        with pytest.raises(UserError, match=r"1_Pooling/config.json"):
            load()
    (folder / "1_Pooling" / "config.json").unlink()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-9])
    with pytest.raises(UserError, match="give a complete"):
        load()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle"):
        load()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda bert: (bert / "model.safetensors").unlink(), "holds no .safetensors file"),
        (lambda bert: (bert / "model.safetensors").rename(bert / "pytorch_model.bin"), "is a pickle"),
        (lambda bert: (bert / "model.safetensors").write_bytes(b"\x08" + bytes(15)), "give a complete"),
        (lambda bert: (shard(bert, "float32"), (bert / SHARDS[1]).unlink()), SHARDS[1]),
        (lambda bert: (bert / "vocab.txt").unlink(), "tokenizer"),
    ],
)
def test_a_dry_run_refuses_weights_as_the_run_does(folder: Path, damage, words: str):
    config = make_config(folder, stages=("extract",))
    damage(folder / "bert")
    for dry_run in (True, False):
        with pytest.raises(UserError, match=words):
            main.launch(config, folder / "runs", pinned={"seed": 0}, dry_run=dry_run)
