"""Test the stages on datasets of the catalogue: one tiny set of each kind, in the schema of TFDS."""

from pathlib import Path

import pytest

from nml_jax.data.features import banks
from nml_jax.prepare import downstream
from nml_jax.runs.rows import read_rows
from nml_jax.tasks import catalogue, class_maps
from tests.scenes import digits_experiment, tiny_archives, tiny_sets

KINDS = {
    "downstream.tasks": ("cifar10", "domainnet"),
    "downstream.partners": ("cifar10_1", "cifar10_c"),
    "downstream.corruptions": ("fog",),
    "downstream.severities": (5,),
    "downstream.domain_test": ("sketch",),
    "tune.methods": ("linear",),
    "tune.epochs": 1,
    "extract.spectra": ("paper",),
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Return a folder with the datasets and a run on them."""
    root = tmp_path_factory.mktemp("runs")
    trained, partners = catalogue.TRAINED, catalogue.PARTNERS
    for entry, corruption in (
        (trained["cifar10"], ""), (partners["cifar10_1"], ""), (partners["cifar10_c"], "fog_5"),
        (catalogue.make_domain_entry("real"), ""), (catalogue.make_domain_entry("sketch"), ""),
    ):  # fmt: skip
        tiny_sets.write(root / "sets", entry, corruption, labels=(0, 1, 2), records=24)
    keys = {**KINDS, "downstream.catalogue": str(root / "sets"), "stages": ("pretrain", "extract", "tune")}
    digits_experiment.launch(root / "first", **keys)
    return root


def test_heads_on_catalogue_sets(runs: Path):
    (cell,) = (runs / "first").glob("noise=*")
    rows = [row for row in read_rows(cell) if row.stage == "tune" and row.metric == "accuracy"]
    assert {(row.task, row.split, row.domain, row.n_train, row.n_test) for row in rows} == {
        ("cifar10", "test", "id", 24, 24),
        ("cifar10", "cifar10_1", "ood", 24, 24),
        ("cifar10", "cifar10_c/fog_5", "ood", 24, 24),
        ("domainnet", "real", "id", 24, 24),
        ("domainnet", "sketch", "ood", 24, 24),
    }
    assert all(0 <= row.value <= 1 for row in rows)


def test_heads_of_imagenet_on_tests_of_other_classes(runs: Path):
    """Test that a bank has the labels of the test, and that the class map scores a head of 1000 classes on them."""
    sets, others = runs / "sets", {c for (c,) in class_maps.load_ids("imagenet_a")}
    assert class_maps.load_ids("imagenet_a")[2] == (13,)
    assert 281 not in others
    tiny_sets.write(sets, catalogue.TRAINED["imagenet2012"], labels=(13, 281), records=24)  # junco, tabby
    tiny_sets.write(sets, catalogue.PARTNERS["imagenet_a"], labels=(13,), records=4)
    src = tiny_archives.pack(runs / "vid.tar", tiny_archives.vid(), "tar")
    downstream.build_imagenet_vid_robust(src, sets / "imagenet_vid_robust")
    (first,) = (runs / "first").glob("noise=*")
    keys = {
        **KINDS, "tune.epochs": 200, "tune.lrs": (0.1,), "stages": ("extract", "tune"), "init_from": str(first),
        "noise": 0.0, "downstream.tasks": ("imagenet2012",), "downstream.catalogue": str(sets),
        "downstream.partners": ("imagenet_a", "imagenet_vid_robust"),
    }  # fmt: skip
    digits_experiment.launch(runs / "second", **keys)
    (cell,) = (runs / "second").glob("noise=*")
    bank = banks.Bank(cell / "banks" / "imagenet2012" / "imagenet_a")
    assert bank.read("label").tolist() == [2, 2, 2, 2]
    found = {(row.split, row.metric): row.value for row in read_rows(cell) if row.stage == "tune"}
    assert {split for split, _ in found} == {"test", "imagenet_a", "imagenet_vid_robust"}
    assert {split for split, metric in found if metric in ("pm0", "pm10")} == {"imagenet_vid_robust"}
    assert 0 <= found["imagenet_vid_robust", "pm10"] <= found["imagenet_vid_robust", "pm0"] <= 1
    assert found["imagenet_a", "accuracy"] == 1.0  # it has only one of the two training classes
