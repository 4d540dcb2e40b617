"""Every reader under seeded mischief: what it reads is right and counted, or it raises UserError, in time and memory.

An hour of it by name: MISCHIEF_SECONDS=3600 MISCHIEF_SEED=1 pytest -m slow tests/whole/test_mischief.py
"""

import csv
import functools
import io
import itertools
import json
import os
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from PIL import Image

from configs import digits
from nml_jax import models, settings
from nml_jax.assembly import noisy_data
from nml_jax.data import sources
from nml_jax.data.features import banks, files
from nml_jax.data.text import tokenizer
from nml_jax.errors import UserError
from nml_jax.models.heads.mlp import Form
from nml_jax.models.weights import timm
from nml_jax.models.weights.files import read_weights
from nml_jax.noise import Ledger
from nml_jax.prepare.image_folder import build_image_folder
from nml_jax.prepare.pairs.build import build_image_text
from nml_jax.runs import goodput, heads, record, rows, tensors
from nml_jax.runs.banks import read_index
from nml_jax.runs.classes import read_counts
from nml_jax.runs.finished import read_finished
from nml_jax.tasks import prompts
from nml_jax.tuning import head_file
from tests.reporting.test_report import write_cell
from tests.scenes import mischief
from tests.scenes.mischief import Scene

ROWS, DIM = 12, 4


# ---- features


def draw(rng: mischief.Rng) -> np.ndarray:
    return rng.normal(size=(ROWS, DIM)).astype(np.float32)


def read_features(folder: Path, spec: str) -> int:
    """Read all of a feature file. The rows, labels and blocks agree. Return the bytes of the decoded input."""
    opened = files.open_features(spec)
    n, views, dim = opened.shape
    assert len(opened.labels) == n > 0
    assert opened.labels.dtype.kind in "biuU"
    values = opened.read()
    assert values.shape == (n, views, dim)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(np.concatenate([block for _, block in opened.blocks(5)]), values)
    some = np.array([n - 1, 0])
    np.testing.assert_array_equal(opened.rows(some), values[some])
    assert len(opened.fingerprint) == 64
    columns = (*opened.columns, *opened.left_out, *filter(None, [opened.label]))
    assert len(set(columns)) == len(columns)
    return values.nbytes + opened.labels.nbytes


def write_npy(folder: Path, rng: mischief.Rng) -> list[Path]:
    np.save(folder / "x.npy", draw(rng).astype(mischief.pick(rng, ("f2", "f4", "f8"))))
    np.save(folder / "y.npy", mischief.pick(rng, (rng.integers(0, 3, ROWS), np.array(["ant", "bee"] * 6))))
    return [folder / "x.npy", folder / "y.npy"]


def write_npz(folder: Path, rng: mischief.Rng) -> list[Path]:
    save = mischief.pick(rng, (np.savez, np.savez_compressed))
    save(folder / "x.npz", X=draw(rng), y=rng.integers(0, 3, ROWS), class_names=np.array(["a", "b", "c"]))
    return [folder / "x.npz"]


def write_safetensors(folder: Path, rng: mischief.Rng) -> list[Path]:
    kind = mischief.pick(rng, (np.float16, np.float32, ml_dtypes.bfloat16))
    tensors = {"features": draw(rng).astype(kind), "labels": rng.integers(0, 3, ROWS)}
    safetensors.numpy.save_file(tensors, folder / "x.safetensors", {"class_names": '["a", "b", "c"]'})
    return [folder / "x.safetensors"]


def write_text(suffix: str, mark: str):
    def write(folder: Path, rng: mischief.Rng) -> list[Path]:
        x, wide = draw(rng), rng.random() < 0.6
        labels = mischief.pick(rng, (["ant", "bee"] * 6, list(rng.integers(0, 3, ROWS)), ["café", 'a"b', "c,d"] * 4))
        with (folder / f"x{suffix}").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter=mark)
            table.writerow(["id", *([f"f{i}" for i in range(DIM)] if wide else ["embedding"]), "label"])
            for i, (row, label) in enumerate(zip(x.tolist(), labels, strict=True)):
                table.writerow([f"row {i}", *(row if wide else [str(row)]), label])
        return [folder / f"x{suffix}"]

    return write


def write_parquet(folder: Path, rng: mischief.Rng) -> list[Path]:
    x, labels = draw(rng), mischief.pick(rng, (pa.array(["ant", "bee"] * 6), pa.array(rng.integers(0, 3, ROWS))))
    names = {"names": ["a", "b", "c"], "_type": "ClassLabel"}
    about = {"huggingface": json.dumps({"info": {"features": {"label": names}}})} if rng.random() < 0.3 else None
    if rng.random() < 0.5:
        columns = {"embedding": pa.array(x.tolist()), "label": labels}
    else:
        columns = {**{f"f{i}": pa.array(x[:, i]) for i in range(DIM)}, "label": labels}
    pq.write_table(pa.table(columns).replace_schema_metadata(about), folder / "x.parquet", row_group_size=5)
    return [folder / "x.parquet"]


def features(name: str, write, *changes) -> Scene:
    spec = "{0}/x.npy,{0}/y.npy" if name == "npy" else f"{{0}}/x.{name}"
    return Scene(f"features {name}", write, lambda folder: read_features(folder, spec.format(folder)), changes)


# ---- images and pairs


def encode(rng: mischief.Rng, kind: str = "PNG") -> bytes:
    pixels = rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out := io.BytesIO(), kind)
    return out.getvalue()


def write_images(folder: Path, rng: mischief.Rng) -> list[Path]:
    paths = []
    for split, name, i in itertools.product(("train", "test"), ("ant", "café"), range(2)):
        path = folder / "src" / split / name / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(rng, mischief.pick(rng, ("JPEG", "JPEG", "PNG", "WEBP", "BMP", "GIF"))))
        paths.append(path)
    return paths


def read_images(folder: Path) -> None:
    manifest = build_image_folder(folder / "src", folder / "out", workers=1)
    accepted = sum(split["records"] for split in manifest["splits"].values())
    left_out = sum(entry["files"] for entry in manifest["files_left_out"])
    assert accepted + len(manifest["refused"]) + left_out == manifest["seen"]
    for name, split in manifest["splits"].items():
        source = sources.load("directory", str(folder / "out"), name)
        assert len(source) == split["records"] == sum(split["per_class"].values())
        assert source.class_names is not None
        assert Counter(source.class_names[c] for c in source.labels.tolist()) == +Counter(split["per_class"])


def write_tar(folder: Path, rng: mischief.Rng) -> list[Path]:
    import tarfile

    with tarfile.open(folder / "0.tar", "w") as archive:
        for i in range(4):
            about = {"caption": f"a caption {i}", "label": "ant", "n": i}
            for suffix, content in (
                ("jpg", encode(rng, "JPEG")),
                ("txt", b"one"),
                ("json", json.dumps(about).encode()),
            ):
                member = tarfile.TarInfo(f"{i:05}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return [folder / "0.tar"]


def write_pairs(suffix: str, mark: str):
    def write(folder: Path, rng: mischief.Rng) -> list[Path]:
        captions = ("a cat", 'the "best" dog', "one, two", "two\nlines", "café", "tab\there")
        with (folder / f"x{suffix}").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter=mark)
            table.writerow(["image", "caption", "label"])
            for i, caption in enumerate(captions):
                (folder / f"{i}.png").write_bytes(encode(rng))
                table.writerow([f"{i}.png", caption, "ant" if i % 2 else "bee"])
        return [folder / f"x{suffix}", folder / f"x{suffix}", folder / "0.png"]

    return write


def write_pairs_parquet(folder: Path, rng: mischief.Rng) -> list[Path]:
    images = [{"bytes": encode(rng), "path": f"{i}.png"} for i in range(6)]
    captions = mischief.pick(rng, (["a cat", "two dogs"] * 3, [["one", "two"], ["three"]] * 3))
    pq.write_table(pa.table({"image": images, "caption": captions, "label": ["ant", "bee"] * 3}), folder / "x.parquet")
    return [folder / "x.parquet"]


def read_pairs(folder: Path) -> None:
    """Build pairs. Records and refused pairs are all pairs; rows and the like are all lines."""
    label = "label" if zlib.crc32(folder.parent.name.encode()) % 2 else ""
    manifest = build_image_text([folder], folder.with_name("out"), workers=1, label=label)
    seen, accepted = manifest["seen"], sum(split["records"] for split in manifest["splits"].values())
    assert accepted + sum(manifest["refused"].values()) == seen["pairs"]
    if lines := seen.get("lines"):
        assert sum(lines[kind] for kind in ("rows", "refused", "continued", "blank", "header")) == lines["lines"]
    for name, split in manifest["splits"].items():
        source = sources.load("directory", str(folder.with_name("out")), name, captions=True)
        assert source.captions is not None
        assert len(source) == split["records"] == len(source.captions)
        assert all(caption.strip() for i in range(len(source)) for caption in source.captions[i])


# ---- noise, names, tokenizers


def write_noise(folder: Path, rng: mischief.Rng) -> list[Path]:
    np.save(folder / "labels.npy", rng.integers(0, 10, len(noisy_source())))
    np.save(folder / "matrix.npy", np.full((10, 10), 0.1))
    keys = noisy_source().keys
    assert keys is not None
    lines = [f"{key},{label}" for key, label in zip(keys, rng.integers(0, 10, len(keys)).tolist(), strict=True)]
    (folder / "labels.csv").write_text("\n".join(["key,label", *lines]), "utf-8")
    return [folder / "labels.npy", folder / "matrix.npy", folder / "labels.csv"]


def noisy_source():
    images = np.zeros((40, 8, 8, 1), np.uint8)
    labels = np.arange(40, dtype=np.int64) % 10
    return sources.source.Arrays(
        images, labels, keys=[f"train/é/{i}.png" for i in range(40)], num_classes=10,
        class_names=tuple("abcdefghij"), fingerprint="x",
    )  # fmt: skip


def read_noise(folder: Path) -> None:
    """Read every file of noise. If one is refused, so is all; else the ledgers count what differs."""
    train, errors = noisy_source(), []
    for name in ("labels.npy", "matrix.npy", "labels.csv"):
        config = digits.get_config()
        with config.unlocked():
            config.noise_kind, config.noise_file, config.noise_seed = name.split(".")[0], str(folder / name), 0
        try:
            noisy, ledger = noisy_data.corrupt(config, train)
        except UserError as e:
            errors.append(e)
            continue
        assert noisy.shape == train.labels.shape
        assert 0 <= noisy.min() <= noisy.max() < 10
        assert ledger.count == (noisy != train.labels).sum()
    if errors:
        raise errors[0]


def write_names(folder: Path, rng: mischief.Rng) -> list[Path]:
    listed = ["ant", "bee", "café"]
    content = mischief.pick(rng, (listed, {"digits": listed, "other": ["x"]}))
    (folder / "names.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    templates = mischief.pick(rng, (["a {c}."], {"digits": {name: [f"a {name}"] for name in listed}}))
    (folder / "templates.json").write_text(json.dumps(templates, ensure_ascii=False), "utf-8")
    return [folder / "names.json", folder / "templates.json"]


def read_names(folder: Path) -> None:
    names = prompts.read_class_names(str(folder / "names.json"), "digits", ("0", "1", "2"))
    filled = prompts.fill_templates(names, prompts.read_templates(str(folder / "templates.json"), "digits"))
    assert len(names) == len(filled) == 3
    assert all(isinstance(text, str) for texts in filled for text in texts)


CORPUS = ["a cat and a dog", "the dog and the cat", "two cats, two dogs", "café"] * 3


def write_tokenizer(folder: Path, rng: mischief.Rng) -> list[Path]:
    import gzip

    (folder / "t.json").write_text(tokenizer.train(CORPUS, 520), "utf-8")
    merges = "title\n" + "\n".join(f"{a} {b}" for a, b in itertools.pairwise("abcdefghij"))
    (folder / "t.txt").write_text(merges, "utf-8")
    (folder / "t.txt.gz").write_bytes(gzip.compress(merges.encode()))
    (folder / "corpus.txt").write_text("\n".join(CORPUS), "utf-8")
    return list(folder.iterdir())


def read_tokenizer(folder: Path) -> None:
    from nml_jax.tokenizer import read_captions

    for name in ("t.json", "t.txt", "t.txt.gz"):
        made = tokenizer.load(str(folder / name), 8)
        ids = made(["a cat", "", "caf\u00e9 😀 \u200b", "<start_of_text> x <end_of_text>", "1" * 100])
        assert ids.shape == (5, 8)
        assert (ids >= 0).all()
        assert (ids < made.vocab_size).all()
        assert (ids[:, 0] == made.start).all()
        assert (ids.argmax(1) == [list(row).index(made.end) for row in ids]).all()
    assert tokenizer.train(read_captions([str(folder / "corpus.txt")]), 600)


# ---- weights, heads, banks, runs


def write_weights(folder: Path, rng: mischief.Rng) -> list[Path]:
    safetensors.numpy.save_file(timm.export_weights(*tiny_model()), folder / "w.safetensors")
    return [folder / "w.safetensors"]


@functools.cache
def tiny_model() -> Any:
    import jax

    config = digits.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({"model.width": 4, "model.blocks": (1, 1)})
    config = next(iter(settings.expand_sweep(config).values()))
    shapes = models.build(config.model, num_classes=3, image_size=8).shapes
    return jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)


def read_tiny_weights(folder: Path) -> None:
    import jax

    params, state = tiny_model()
    got, _ = read_weights(folder / "w.safetensors", (params, state))
    want = {k: v for k, v in params.items() if k in got}
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, want)


def write_head(folder: Path, rng: mischief.Rng) -> list[Path]:
    params = {"classifier": {"kernel": np.eye(4, 3, dtype=np.float32), "bias": np.arange(3, dtype=np.float32)}}
    about = {"method": "linear", "hyper": {"lr": 0.01}}
    head = head_file.TunedHead(Form(False), params, {}, ("ant", "bee", "cat"), about, ("a", "b", "c", "d"))
    head.save(folder / "h.safetensors")
    return [folder / "h.safetensors"]


def read_head(folder: Path) -> None:
    """A head with a proof is the very same, or refused. Without one, as of an older version, its parts fit."""
    head = head_file.load(folder / "h.safetensors")
    if "sha256" not in tensors.read_tensors(folder / "h.safetensors")[1]:
        assert len(head.classes) == 3
        assert len(head.columns) in (0, 4)
        return
    np.testing.assert_array_equal(head.params["classifier"]["kernel"], np.eye(4, 3))
    assert head.classes == ("ant", "bee", "cat")
    assert head.columns == ("a", "b", "c", "d")


def write_bank(folder: Path, rng: mischief.Rng) -> list[Path]:
    about = {"label": np.arange(6, dtype=np.int32), "id": np.arange(6, dtype=np.int32)}
    blocks = [{**about, "features": draw(rng)[:6, None]} for _ in range(2)]
    banks.write(folder / "bank", blocks, key="k" * 64, num_classes=6, class_names=tuple("abcdef"))
    return [path for path in (folder / "bank").rglob("*") if path.is_file()]


def read_bank(folder: Path) -> None:
    if bank := banks.find(folder / "bank", "k" * 64):
        assert bank.read("features").shape == (12, 1, DIM)


def write_run(folder: Path, rng: mischief.Rng) -> list[Path]:
    cell = write_cell(folder / "study", splits=(("test", "id"),), heads=(("linear", None),), head_seeds=1)
    done = record.read_record(cell)
    for stage in done["stages"]:
        done["stages"][stage]["files"] = {}
    (cell / "classes.json").write_text(json.dumps({"train": {"ant": 3}}), "utf-8")
    (cell / "goodput.jsonl").write_text('{"step": 1}\n', "utf-8")
    return [path for path in cell.rglob("*") if path.is_file()]


def read_run(folder: Path) -> None:
    cells, left_out = read_finished([folder / "study"])
    assert len(cells) + len(left_out) <= 1
    for cell in cells:
        assert isinstance(cell.noise, float)
        assert all(isinstance(row.value, float) for row in cell.rows)
        for row in cell.rows:
            heads.read_correct(cell.folder, row)
        goodput.read(cell.folder)
        read_index(cell.folder)
        read_counts(cell.folder)
        rows.has_rows(cell.folder)
        Ledger.read(cell.folder / "noise.json")


JSON = (mischief.change_json,) * 3
WORDS = mischief.TEXT * 2
SCENES = [
    features("npy", write_npy, mischief.change_npy),
    features("npz", write_npz, mischief.change_zip),
    features("safetensors", write_safetensors, mischief.change_safetensors),
    features("csv", write_text(".csv", ","), *WORDS),
    features("tsv", write_text(".tsv", "\t"), *WORDS),
    features("parquet", write_parquet, mischief.change_parquet),
    Scene("images", write_images, read_images),
    Scene("tar", write_tar, read_pairs, (mischief.change_tar,)),
    Scene("pairs csv", write_pairs(".csv", ","), read_pairs, WORDS),
    Scene("pairs tsv", write_pairs(".tsv", "\t"), read_pairs, WORDS),
    Scene("pairs parquet", write_pairs_parquet, read_pairs, (mischief.change_parquet,)),
    Scene("noise", write_noise, read_noise, (mischief.change_npy, *mischief.TEXT)),
    Scene("names", write_names, read_names, (*JSON, *mischief.TEXT)),
    Scene("tokenizer", write_tokenizer, read_tokenizer, (*JSON, *mischief.TEXT)),
    Scene("weights", write_weights, read_tiny_weights, (mischief.change_safetensors,)),
    Scene("head", write_head, read_head, (mischief.change_safetensors,)),
    Scene("bank", write_bank, read_bank, (*JSON, mischief.change_npy)),
    Scene("run", write_run, read_run, (*JSON, *mischief.TEXT)),
]


def work(scene: Scene, tmp_path: Path, first: int, seconds: float, count: int | None = None) -> Counter:
    """Play a scene with seeds from `first` on, for some seconds or times. Return how often each outcome came."""
    outcomes: Counter[str] = Counter()
    start = time.monotonic()
    for seed in itertools.count(first):
        if (count is not None and seed - first >= count) or (count is None and time.monotonic() - start > seconds):
            return outcomes
        folder = tmp_path / f"{seed}" / "in"
        folder.mkdir(parents=True)
        error = mischief.play(scene, folder, seed)
        outcomes["refused" if error else "right"] += 1
    return outcomes


def check(scene: Scene, outcomes: Counter) -> None:
    """Check that the mischief is neither too wild nor too tame. A folder of images is seldom refused as a whole."""
    assert outcomes["right"] > 0
    assert outcomes["refused"] > 0 or scene.name == "images"


COUNTS = {"images": 12, "tar": 20, "pairs csv": 20, "pairs tsv": 20, "pairs parquet": 20, "run": 15, "tokenizer": 20}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_whatever_is_read_is_right_or_refused(scene: Scene, tmp_path: Path):
    check(scene, work(scene, tmp_path, 0, 0, COUNTS.get(scene.name, 60)))


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_an_hour_of_mischief(scene: Scene, tmp_path: Path):
    seconds = float(os.environ.get("MISCHIEF_SECONDS", "3600")) / len(SCENES)
    check(scene, work(scene, tmp_path, 1_000_000 * int(os.environ.get("MISCHIEF_SEED", "1")), seconds))
