"""The full-size configs from end to end, by name: on stand-ins with the schemas of the real data, in small.

What no download can give here is made: the catalogue's sets as TFDS prepares them, archives in the distributors'
layouts for our own builders, and tars of pairs as img2dataset writes them. Configs keep every recipe; keys make
networks narrow and runs short.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from configs import clip_r50, clip_vitb16, vitb16_in1k
from configs.studies import spectra
from nml_jax import main, runtime
from nml_jax.prepare.__main__ import main as prepare
from nml_jax.runs.rows import Row, read_rows
from nml_jax.tasks import catalogue, class_maps
from tests.data.text import golden_tokenizer
from tests.scenes import clip_experiment, tiny_archives, tiny_sets
from tests.scenes.meshes import mesh_of

pytestmark = pytest.mark.slow
RECORDS = 24  # in each split
LABELS = (13, 281, 340)  # junco, tabby, zebra: of ImageNet
SHORT = {
    "train.epochs": 2.0, "optimizer.warmup_epochs": 1.0, "runtime.threads": 0, "runtime.log_every": 1,
    "extract.batch": 16, "tune.epochs": 2, "tune.lrs": (0.01,), "tune.weight_decays": (0.0,), "tune.cs": (0.1,),
    "tune.width": 1, "tune.methods": ("lbfgs", "nmtune"), "tune.presets": ("paper",),
}  # fmt: skip
IMAGENET = SHORT | {
    "data.image_size": 32, "augment.test_size": 32, "data.size": RECORDS, "train.batch": 16,
    "downstream.corruptions": ("fog",), "downstream.severities": (5,),
}  # fmt: skip
VIT = {"model.patch": 16, "model.dim": 16, "model.depth": 1, "model.heads": 2}
TEXT = {"model.text_width": 16, "model.text_depth": 1, "model.text_heads": 2, "model.embed_dim": 8}


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """Use a mesh of two devices, which compiles faster than eight."""
    mesh = mesh_of(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "make_mesh", lambda *_, **__: mesh)
        yield


def aircraft() -> dict[str, bytes]:
    """FGVC-Aircraft with all of its 100 variants."""
    top, variants = "fgvc-aircraft-2013b/data", [f"{i:03} / Boeing" for i in range(100)]
    files = {f"{top}/variants.txt": tiny_archives.text(*variants)}
    for s, (split, n) in enumerate({"train": RECORDS, "val": 6, "test": RECORDS}.items()):
        images = [f"{10_000 * s + i:07}" for i in range(n)]
        lines = [f"{image} {variants[i % 3]}" for i, image in enumerate(images)]
        files[f"{top}/images_variant_{split}.txt"] = tiny_archives.text(*lines)
        files |= {f"{top}/images/{image}.jpg": tiny_sets.image(int(image)) for image in images}
    return files


ARCHIVES = {
    **tiny_archives.LAYOUTS,
    "fgvc_aircraft": aircraft,
    "country211": lambda: tiny_archives.clip_set("country211", tuple(f"C{i:03}" for i in range(211))),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalogue's 16 sets, DomainNet, and all partners, each prepared as its entry says."""
    root = tmp_path_factory.mktemp("catalogue")
    entries = catalogue.TRAINED | catalogue.PARTNERS
    entries |= {
        f"domainnet/{name}": catalogue.make_domain_entry(name) for name in ("real", "clipart", "painting", "sketch")
    }
    for name, entry in entries.items():
        if entry.builder:
            src = tiny_archives.pack(root / f"{name}.tar", ARCHIVES[entry.builder](), "tar")
            assert prepare([entry.builder, str(src), str(root / "sets" / entry.folder)]) == 0
            continue
        own = tuple(i for (i,) in class_maps.load_ids(name)[:3]) if entry.subset else ()
        labels = LABELS if entry.num_classes == 1000 and not own else own or (0, 1)
        tiny_sets.write(root / "sets", entry, "fog_5" if "{}" in entry.folder else "", labels, records=RECORDS)
    return root / "sets"


def launch(config: ConfigDict, workdir: Path, keys: dict[str, Any], **pinned: Any) -> dict[str, list[Row]]:
    """Run a config with some keys changed; return the rows of every run by its folder."""
    with config.unlocked():
        config.update_from_flattened_dict({**keys, **pinned})
    main.launch(config, workdir, pinned=pinned)
    assert (workdir / "report.html").stat().st_size > 10_000
    return {run.parent.name: read_rows(run.parent) for run in workdir.glob("*/rows.jsonl")}


def list_tests(rows: list[Row]) -> set[tuple[str, str, str]]:
    return {(row.task, row.split, row.domain) for row in rows if row.stage == "tune" and row.metric == "accuracy"}


def test_imagenet_to_all_downstream_sets(sets: Path, tmp_path: Path) -> None:
    """A study's twin of ResNet-50: 14 in-domain sets, ImageNet and Country211, with all variants; and DomainNet."""
    keys = IMAGENET | {
        "data.path": str(sets), "downstream.catalogue": str(sets), "model.width": 4, "model.blocks": (1, 1, 1, 1),
        "model.bn_group": 8, "sweep.noise": (0.0, 0.3), "sweep.seed": (0,),
    }  # fmt: skip
    found = launch(spectra.get_config("imagenet"), tmp_path / "runs", keys)
    assert len(found) == 2
    variants = catalogue.TRAINED["imagenet2012"].partners
    for rows in found.values():
        tests = list_tests(rows)
        assert {(name, "test", "id") for name in catalogue.TRAINED} <= tests
        assert {("imagenet2012", name, "ood") for name in variants} <= tests
        assert {("cifar10", "cifar10_c/fog_5", "ood"), ("cifar10", "cifar10_1", "ood"),
                ("cifar100", "cifar100_c/fog_5", "ood")} <= tests  # fmt: skip
        assert {
            ("domainnet", "real", "id"),
            *(("domainnet", name, "ood") for name in ("clipart", "painting", "sketch")),
        } <= tests
        assert len(tests) == 16 + len(variants) + 3 + 4
        assert all(np.isfinite(row.value) for row in rows)
        assert {row.metric for row in rows if row.split == "imagenet_vid_robust"} >= {"pm0", "pm10"}
    summary = pd.read_csv(tmp_path / "runs" / "summary.csv")
    assert {"id", "ood"} <= {*summary["domain"]}
    assert (tmp_path / "runs" / "studies" / "spectra" / "figure.pdf").is_file()
    (noisy,) = (name for name in found if "noise=0.3" in name)
    ledger = json.loads((tmp_path / "runs" / noisy / "noise.json").read_text())
    assert ledger["count"] == round(0.3 * RECORDS)


def test_vit_on_imagenet_and_its_variants(sets: Path, tmp_path: Path) -> None:
    config = vitb16_in1k.get_config()
    keys = IMAGENET | VIT | {
        "data.path": str(sets), "downstream.catalogue": str(sets), "downstream.tasks": ("imagenet2012",),
        "downstream.partners": catalogue.TRAINED["imagenet2012"].partners,
        "stages": ("pretrain", "extract", "tune", "report"),
    }  # fmt: skip
    ((_, rows),) = launch(config, tmp_path / "runs", keys, noise=0.1).items()
    assert len(list_tests(rows)) == 7


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YFCC15M and CC12M as pairs, a labelled folder, and a vocabulary in CLIP's layout."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    colours = list(clip_experiment.COLOURS)
    for name in ("yfcc15m", "cc12m"):
        samples = [
            {"png": clip_experiment.image(c := colours[i % 4], "square", rng), "txt": f"a {c} square {i}".encode()}
            for i in range(48)
        ]
        clip_experiment.write_tar(root / name / "00000.tar", samples)
        assert prepare(["image_text", str(root / name), str(root / "prepared" / name), "--workers=1"]) == 0
    for split in ("train", "test"):
        for colour in colours:
            (folder := root / "photos" / split / colour).mkdir(parents=True)
            for i in range(6):
                (folder / f"{i}.png").write_bytes(clip_experiment.image(colour, "frame", rng))
    assert prepare(["image_folder", str(root / "photos"), str(root / "prepared" / "downstream")]) == 0
    (root / "vocabulary.txt.gz").write_bytes(gzip.compress(golden_tokenizer.VOCABULARY.read_bytes()))
    return root


@pytest.mark.parametrize("name", ["clip_r50", "clip_vitb16"])
def test_clip_to_a_labelled_folder(pairs: Path, tmp_path: Path, name: str) -> None:
    prepared = pairs / "prepared"
    config = {"clip_r50": clip_r50, "clip_vitb16": clip_vitb16}[name].get_config()
    keys = SHORT | TEXT | {
        "data.image_size": 32, "data.tokenizer": str(pairs / "vocabulary.txt.gz"), "model.text_vocab": 715,
        "data.validation": 0.25, "train.batch": 16, "optimizer.warmup_steps": 2, "objective.chunk": 4,
        "downstream.path": str(prepared / "downstream"),
    }  # fmt: skip
    if name == "clip_r50":
        keys |= {"data.path": str(prepared / "yfcc15m"), "model.bn_group": 8, "model.width": 8,
                 "model.blocks": (1, 1, 1, 1), "model.heads": 2}  # fmt: skip
    else:
        keys |= VIT | {"data.mixture": (str(prepared / "yfcc15m"), str(prepared / "cc12m"))}
    ((folder, rows),) = launch(config, tmp_path / "runs", keys, noise=0.25, seed=0).items()
    assert {row.stage for row in rows} == {"pretrain", "extract", "zeroshot", "tune"}
    assert list_tests(rows) == {("directory", "test", "id")}
    ledger = json.loads((tmp_path / "runs" / folder / "noise.json").read_text())
    assert (ledger["kind"], ledger["realised"]) == ("caption_swap", 0.25)
    assert {row.metric for row in rows if row.stage == "zeroshot" and row.method} >= {"accuracy"}
